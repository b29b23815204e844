"""BigVGAN (arXiv 2206.04658), built from the `bigvgan` package's own classes; from its checkpoints on disk.

Convolutional, so a stream equals the whole when each piece comes with the context that the layers reach.
"""

import json
import math
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from bigvgan import BigVGAN
from bigvgan.bigvgan import load_hparams_from_json
from bigvgan.env import AttrDict
from torch import Tensor, nn

from sf_lightning.audio.mel import MelConfig
from sf_lightning.model.plain import from_plain
from sf_lightning.model.qwen_files import read_torch

WEIGHTS = "bigvgan_generator.pt"
"""Name of the package's weights in a folder."""

CONFIG = "config.json"
"""Name of its hyperparameters there."""


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of a generator.

    Args:
        upsample_rates: By how much each stage upsamples; they multiply to the hop length.
        upsample_kernel_sizes: Of each stage's transposed convolution; an even number above its rate.
        channels: Before the first stage; each stage halves them.
        kernel_sizes: Of the convolutions whose blocks stand side by side in a stage.
        dilations: Of each block's convolutions.
        activation: Periodic activation: "snakebeta" has two parameters for each channel, "snake" one.
    """

    upsample_rates: tuple[int, ...] = (5, 4, 4, 2)
    upsample_kernel_sizes: tuple[int, ...] = (11, 8, 8, 4)
    channels: int = 1536
    kernel_sizes: tuple[int, ...] = (3, 7, 11)
    dilations: tuple[int, ...] = (1, 3, 5)
    activation: Literal["snake", "snakebeta"] = "snakebeta"

    def __post_init__(self) -> None:
        rates, kernels = self.upsample_rates, self.upsample_kernel_sizes
        if len(rates) != len(kernels):
            raise ValueError(
                f"generator: {len(rates)} upsample_rates and {len(kernels)} upsample_kernel_sizes: wanted as many"
            )
        for rate, kernel in zip(rates, kernels, strict=True):
            if rate < 1 or kernel < rate or (kernel - rate) % 2:
                raise ValueError(
                    f"generator: an upsample kernel of {kernel} for a rate of {rate}: wanted the rate and an even "
                    "number above it, or a stage would not multiply its length by the rate"
                )
        if self.channels < 1 or self.channels % 2 ** len(rates):
            raise ValueError(
                f"generator.channels is {self.channels}: wanted a multiple of {2 ** len(rates)}, for each of the "
                f"{len(rates)} stages halves them"
            )
        if any(kernel % 2 == 0 for kernel in self.kernel_sizes):
            raise ValueError(f"generator.kernel_sizes are {[*self.kernel_sizes]}: wanted odd ones")

    def hyperparameters(self, mel: MelConfig) -> dict[str, Any]:
        """Returns the package's hyperparameters, as its `config.json` holds them."""
        return {
            "resblock": "1",
            "upsample_rates": [*self.upsample_rates],
            "upsample_kernel_sizes": [*self.upsample_kernel_sizes],
            "upsample_initial_channel": self.channels,
            "resblock_kernel_sizes": [*self.kernel_sizes],
            "resblock_dilation_sizes": [[*self.dilations] for _ in self.kernel_sizes],
            "activation": self.activation,
            "snake_logscale": True,
            # As its authors' second version: neither squeezes the wave.
            "use_tanh_at_final": False,
            "use_bias_at_final": False,
            "sampling_rate": mel.sample_rate,
            "n_fft": mel.n_fft,
            "num_mels": mel.num_bands,
            "hop_size": mel.hop_length,
            "win_size": mel.win_length,
            "fmin": mel.f_min,
            "fmax": mel.f_max,
        }


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
        """Loads a generator in the package's own format, or the averaged one of a checkpoint of `sf-fit`.

        Args:
            path: A checkpoint file with `config.json` beside it, or the folder that holds
                `bigvgan_generator.pt` and `config.json`; or a checkpoint of `sf-fit`.
            mel: The mel it will be given.

        Raises:
            FileNotFoundError: if one of the two files is missing.
            ValueError: if the checkpoint was made for another mel, or is broken.
        """
        if is_trained(path):
            trained = read_trained(path)
            vocoder = cls(trained.generator.hyperparameters(trained.mel), mel)
            vocoder.load_state_dict(trained.weights)
            remove_weight_norm(vocoder.generator)
            return vocoder.eval()
        weights = path / WEIGHTS if path.is_dir() else path
        config = weights.with_name(CONFIG)
        for file in (weights, config):
            if not file.is_file():
                raise FileNotFoundError(
                    f"vocoder: {file} is missing: give a BigVGAN checkpoint with its config.json, or the "
                    "folder of Qwen2.5-Omni"
                )
        vocoder = cls(dict(load_hparams_from_json(config)), mel)
        vocoder.generator.load_state_dict(read_torch(weights)["generator"])
        remove_weight_norm(vocoder.generator)
        return vocoder.eval()

    def decode(self, mel: Tensor) -> Tensor:
        """Returns the waves [B, T * hop] of mels [B, T, F]."""
        return self.generator(self.to_input(mel).transpose(1, 2))[:, 0]

    def extend(self, mel: Tensor, past: Tensor, num_new: int) -> Tensor:
        """Returns the next [B, num_new * hop] samples; of the past, only its length is needed."""
        start = past.shape[1]
        return self.decode(mel)[:, start : start + num_new * self.hop]


@dataclass(frozen=True)
class TrainedVocoder:
    """What a checkpoint of `sf-fit` says of a vocoder.

    Attributes:
        weights: The state dict of `BigVGANVocoder`.
        generator: Its sizes.
        mel: The mel that it was trained on.
        step: Steps of training.
    """

    weights: dict[str, Tensor]
    generator: GeneratorConfig
    mel: MelConfig
    step: int


def is_trained(path: Path) -> bool:
    """Returns whether a file is a checkpoint of `sf-fit`.

    Raises:
        ValueError: if it is a file that cannot be read.
    """
    return path.is_file() and path.suffix != ".safetensors" and "hyper_parameters" in read_torch(path)


def read_trained(path: Path, average: bool = True) -> TrainedVocoder:
    """Reads the vocoder of a checkpoint of `sf-fit`, on the CPU.

    Args:
        path: Of the file.
        average: Whether to take the averaged weights or the raw ones.

    Raises:
        ValueError: if it is no checkpoint of a vocoder, or is broken.
    """
    content = read_torch(path)
    given = content.get("hyper_parameters", {})
    if missing := {"generator", "mel"} - given.keys():
        raise ValueError(f"vocoder: {path} is no checkpoint of a vocoder: it has no {min(missing)}")
    prefix = "average." if average else "model."
    weights = {
        name.removeprefix(prefix): value for name, value in content["state_dict"].items() if name.startswith(prefix)
    }
    try:
        generator = from_plain(GeneratorConfig, given["generator"], "generator")
        return TrainedVocoder(
            weights, generator, from_plain(MelConfig, given["mel"], "mel"), content["global_step"]
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def is_vocoder(path: Path) -> bool:
    """Returns whether a file is a checkpoint of `sf-fit` that holds a vocoder; what cannot be read is none."""
    try:
        return is_trained(path) and "generator" in read_torch(path)["hyper_parameters"]
    except ValueError:
        return False


def save_in_their_format(folder: Path, trained: TrainedVocoder) -> None:
    """Writes the folder that the package's own `BigVGAN.from_pretrained` reads, and `from_checkpoint`."""
    prefix = "generator."
    generator = {name.removeprefix(prefix): value.clone() for name, value in trained.weights.items()}
    folder.mkdir(parents=True)
    torch.save({"generator": generator}, folder / WEIGHTS)
    h = trained.generator.hyperparameters(trained.mel)
    (folder / CONFIG).write_text(json.dumps(h, indent=4) + "\n")


def remove_weight_norm(generator: BigVGAN) -> None:
    """Folds the norms of the weights in, without the package's word about it."""
    with redirect_stdout(None):
        generator.remove_weight_norm()


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
