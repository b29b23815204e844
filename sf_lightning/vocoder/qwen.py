"""The BigVGAN of Qwen2.5-Omni (arXiv 2503.20215), from its weights on disk: 16 kHz mels in, 24 kHz waves out.

Knows nothing of how the weights were saved, see `model/qwen_files.py`, nor of how waves are made from them,
see `bigvgan.py`.
"""

import math
from pathlib import Path

from torch import Tensor

from sf_lightning.audio.mel import MelConfig
from sf_lightning.files.torch_files import read_torch, weight_mismatches, weights_digest
from sf_lightning.model.qwen_files import read_qwen
from sf_lightning.vocoder.bigvgan import BigVGANVocoder, remove_weight_norm
from sf_lightning.vocoder.files import WEIGHTS, holds_generator

COMPONENT = "code2wav_bigvgan_model"

SAMPLE_RATE = 24000
"""Of its waves, in Hz."""

SIZES = {
    "upsample_rates": [5, 3, 2, 2, 2, 2],
    "upsample_kernel_sizes": [11, 7, 4, 4, 4, 4],
    "upsample_initial_channel": 1536,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
}
"""Of the released checkpoint; `bigvgan_config` has them under the same names."""

FIXED = {
    # The mel that it hears.
    "sampling_rate": 16000,
    "n_fft": 1024,
    "hop_size": 160,
    "win_size": 640,
    "fmin": 0,
    "fmax": 8000,
    # What no configuration says.
    "resblock": "1",
    "activation": "snakebeta",
    "snake_logscale": True,
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
}
"""The rest of the package's hyperparameters."""


def is_qwen(path: Path) -> bool:
    """Returns whether a checkpoint is in Qwen's form: safetensors, or a state dict, but not the
    package's or ours.

    Raises:
        ValueError: if it is a file that cannot be read.
    """
    if path.is_dir():
        return not holds_generator(path) and any(path.glob("*.safetensors*"))
    if path.name == WEIGHTS:
        return False
    return path.suffix == ".safetensors" or (
        path.is_file() and not {"generator", "hyper_parameters"} & read_torch(path).keys()
    )


def load_qwen(path: Path, mel: MelConfig) -> BigVGANVocoder:
    """Loads the vocoder of Qwen2.5-Omni's token2wav.

    Args:
        path: The model's folder, a `.safetensors` file or a state dict; with `config.json` in or beside it,
            unless its sizes are those of the released checkpoint.
        mel: The mel it will be given.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is broken, the weights have other sizes than the configuration, or the mel is
            not Qwen's.
    """
    tensors, config = read_qwen(path, COMPONENT)
    sizes = {name: config.get(name, default) for name, default in SIZES.items()}
    h = FIXED | sizes | {"num_mels": config.get("mel_dim", 80)}
    vocoder = BigVGANVocoder(h, mel, SAMPLE_RATE, to_input=decibels)
    remove_weight_norm(vocoder.generator)
    # The filters of the activations are constants: the generator has made its own, under other names.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".filter")}
    if mismatches := weight_mismatches(tensors, dict(vocoder.generator.named_parameters())):
        source = "bigvgan_config" if config else "the released checkpoint, for want of a bigvgan_config"
        raise ValueError(
            f"vocoder: {len(mismatches)} tensors of {path} do not fit the sizes of {source}: {mismatches[0]}"
        )
    vocoder.generator.load_state_dict(tensors, strict=False)  # strict would miss the filters
    vocoder.digest = weights_digest(tensors, repr(h))
    return vocoder.eval()


def decibels(mel: Tensor) -> Tensor:
    """Returns log-mels of any shape as the generator wants them: decibels, 20 lower, -115 to 0 dB on [-1, 1]."""
    level = mel * (20 / math.log(10)) - 20
    return (2 * (level + 115) / 115 - 1).clamp(-1, 1)
