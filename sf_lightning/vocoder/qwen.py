"""The BigVGAN of Qwen2.5-Omni (arXiv 2503.20215), from its weights on disk: 16 kHz mels in, 24 kHz waves out.

`model/qwen_files.py` reads the files, `bigvgan.py` computes the waves.
"""

import math
from pathlib import Path

from torch import Tensor

from sf_lightning.audio.mel import MelConfig
from sf_lightning.files.records import from_plain
from sf_lightning.files.torch_files import weight_mismatches, weights_digest
from sf_lightning.model.qwen_files import read_qwen
from sf_lightning.vocoder.bigvgan import BigVGANVocoder, remove_weight_norm
from sf_lightning.vocoder.files import Hyperparameters
from sf_lightning.vocoder.generator import require_buildable

COMPONENT = "code2wav_bigvgan_model"

SAMPLE_RATE = 24000
"""Sample rate of its waves in Hz."""

SIZES = {
    "upsample_rates": [5, 3, 2, 2, 2, 2],
    "upsample_kernel_sizes": [11, 7, 4, 4, 4, 4],
    "upsample_initial_channel": 1536,
    "resblock_kernel_sizes": [3, 7, 11],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5], [1, 3, 5]],
}
"""Sizes of the released checkpoint; `bigvgan_config` has them under the same names."""

FIXED = {
    # The mel of its input.
    "sampling_rate": 16000,
    "n_fft": 1024,
    "hop_size": 160,
    "win_size": 640,
    "fmin": 0,
    "fmax": 8000,
    # Settings that its configuration does not hold.
    "resblock": "1",
    "activation": "snakebeta",
    "snake_logscale": True,
    "use_tanh_at_final": False,
    "use_bias_at_final": False,
}
"""The other hyperparameters of the `bigvgan` package."""


def load_qwen(path: Path, mel: MelConfig) -> BigVGANVocoder:
    """Returns the vocoder of Qwen2.5-Omni's token2wav, in eval mode.

    Args:
        path: Folder of the model, a `.safetensors` file or a state dict; with `config.json` in or beside it,
            unless its sizes are those of the released checkpoint.
        mel: The mel that it is given.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is damaged, the sizes of the weights are not those of the configuration, or the mel is
            not that of Qwen2.5-Omni.
    """
    tensors, config = read_qwen(path, COMPONENT)
    sizes = {name: config.get(name, default) for name, default in SIZES.items()}
    h = FIXED | sizes | {"num_mels": config.get("mel_dim", 80)}
    try:
        from_plain(Hyperparameters, h, "bigvgan_config")
        require_buildable(h, len(tensors))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    vocoder = BigVGANVocoder(h, mel, SAMPLE_RATE, to_input=decibels)
    remove_weight_norm(vocoder.generator)
    # The filters of the activations are constants, which the generator has under other names.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".filter")}
    if mismatches := weight_mismatches(tensors, dict(vocoder.generator.named_parameters())):
        source = "bigvgan_config" if config else "the released checkpoint (there is no bigvgan_config)"
        raise ValueError(f"{len(mismatches)} tensors of {path} do not have the sizes of {source}: {mismatches[0]}")
    vocoder.generator.load_state_dict(tensors, strict=False)  # strict loading would require the filters
    vocoder.digest = weights_digest(tensors, repr(h))
    return vocoder.eval()


def decibels(mel: Tensor) -> Tensor:
    """Returns the generator's input for log-mels of any shape: decibels - 20, -115 to 0 dB scaled to [-1, 1]."""
    level = mel * (20 / math.log(10)) - 20
    return (2 * (level + 115) / 115 - 1).clamp(-1, 1)
