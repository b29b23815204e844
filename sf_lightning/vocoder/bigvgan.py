"""BigVGAN (arXiv 2206.04658), built from the `bigvgan` package's own classes; from its checkpoints on disk.

Convolutional, so a stream equals the whole when each piece comes with the context that the layers reach.
"""

import math
from collections.abc import Callable
from pathlib import Path

from bigvgan import BigVGAN
from bigvgan.bigvgan import load_hparams_from_json
from bigvgan.env import AttrDict
from torch import Tensor, nn

from sf_lightning.audio.mel import MelConfig
from sf_lightning.model.qwen_files import read_torch

WEIGHTS = "bigvgan_generator.pt"
"""Name of the package's weights in a folder."""


def as_it_is(mel: Tensor) -> Tensor:
    """Returns the log-mel itself: what the package's generators were trained on."""
    return mel


class BigVGANVocoder(nn.Module):
    """Turns log-mels [B, T, F] into waves [B, T * hop].

    Args:
        h: The package's hyperparameters, as in its `config.json`; `sampling_rate` is the mel's.
        mel: The mel it will be given.
        sample_rate: Of the waves in Hz, by default the mel's.
        to_input: What the generator wants to see of a log-mel.

    Raises:
        ValueError: if the two describe different mels, or the upsampling does not multiply to the samples
            of a frame at the rate of the waves.
    """

    def __init__(
        self,
        h: dict,
        mel: MelConfig,
        sample_rate: int | None = None,
        to_input: Callable[[Tensor], Tensor] = as_it_is,
    ) -> None:
        super().__init__()
        theirs = {
            "sampling_rate": mel.sample_rate,
            "n_fft": mel.n_fft,
            "num_mels": mel.num_bands,
            "hop_size": mel.hop_length,
            "win_size": mel.win_length,
            "fmin": mel.f_min,
            "fmax": mel.f_max,
        }
        for name, wanted in theirs.items():
            came = h.get(name)
            if came != wanted and not (name == "fmax" and came is None and wanted == mel.sample_rate / 2):
                raise ValueError(f"vocoder: its {name} is {came}, the decoder's mel has {wanted}")
        rate = mel.sample_rate if sample_rate is None else sample_rate
        product, hop = math.prod(h["upsample_rates"]), rate * mel.hop_length / mel.sample_rate
        if product != hop:
            raise ValueError(
                f"vocoder: upsample_rates multiply to {product}, the hop length is {hop:g} at {rate} Hz"
            )
        self.mel, self.sample_rate, self.hop, self.to_input = mel, rate, product, to_input
        self.left = self.right = context_frames(h)
        self.generator = BigVGAN(AttrDict(h))

    @classmethod
    def from_checkpoint(cls, path: Path, mel: MelConfig) -> "BigVGANVocoder":
        """Loads a generator in the package's own format.

        Args:
            path: A checkpoint file with `config.json` beside it, or the folder that holds
                `bigvgan_generator.pt` and `config.json`.
            mel: The mel it will be given.

        Raises:
            FileNotFoundError: if one of the two files is missing.
            ValueError: if the checkpoint was made for another mel, or is broken.
        """
        weights = path / WEIGHTS if path.is_dir() else path
        config = weights.with_name("config.json")
        for file in (weights, config):
            if not file.is_file():
                raise FileNotFoundError(
                    f"vocoder: {file} is missing: give a BigVGAN checkpoint with its config.json, or the "
                    "folder of Qwen2.5-Omni"
                )
        vocoder = cls(dict(load_hparams_from_json(config)), mel)
        vocoder.generator.load_state_dict(read_torch(weights)["generator"])
        vocoder.generator.remove_weight_norm()
        return vocoder.eval()

    def decode(self, mel: Tensor) -> Tensor:
        """Returns the waves [B, T * hop] of mels [B, T, F]."""
        return self.generator(self.to_input(mel).transpose(1, 2))[:, 0]

    def extend(self, mel: Tensor, past: Tensor, num_new: int) -> Tensor:
        """Returns the next [B, num_new * hop] samples; of the past, only its length is needed."""
        start = past.shape[1]
        return self.decode(mel)[:, start : start + num_new * self.hop]


def context_frames(h: dict) -> int:
    """Returns how many frames of mel on each side can change a sample, from the layers' kernels.

    Counted from the output back, in samples at each stage's rate: an anti-aliased activation reaches 6
    samples, a dilated convolution (k - 1) / 2 * d, a transposed convolution of kernel k and stride u about
    k / u samples of its input.
    """
    activation = 6
    reach = 3.0 + activation  # the last convolution, kernel 7, and its activation
    stages = list(zip(h["upsample_rates"], h["upsample_kernel_sizes"], strict=True))
    for rate, upsample_kernel in reversed(stages):
        blocks = []
        for kernel, dilations in zip(h["resblock_kernel_sizes"], h["resblock_dilation_sizes"], strict=True):
            half = (kernel - 1) // 2
            each = [activation + half * d + (activation + half if h["resblock"] == "1" else 0) for d in dilations]
            blocks.append(sum(each))
        reach = math.ceil((reach + max(blocks) + upsample_kernel / 2) / rate)
    return int(reach) + 3  # the first convolution, kernel 7
