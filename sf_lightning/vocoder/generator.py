"""Sizes of a BigVGAN, and the context that they need. Independent of weights."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from sf_lightning.audio.mel import MelConfig


@dataclass(frozen=True)
class GeneratorConfig:
    """Sizes of a generator.

    Args:
        upsample_rates: Upsampling rate of each stage; their product is the hop length.
        upsample_kernel_sizes: Kernel size of each stage's transposed convolution: the rate plus an even number.
        channels: Number of channels before the first stage; each stage halves it.
        kernel_sizes: Kernel sizes of the parallel residual blocks of a stage, all odd.
        dilations: Dilations of the convolutions of each residual block.
        activation: Periodic activation: "snakebeta" has two parameters per channel, "snake" one.
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
                f"generator has {len(rates)} upsample_rates, {len(kernels)} upsample_kernel_sizes: expected as many"
            )
        for rate, kernel in zip(rates, kernels, strict=True):
            if rate < 1 or kernel < rate or (kernel - rate) % 2:
                raise ValueError(
                    f"generator.upsample_kernel_sizes has {kernel} for a rate of {rate}: expected the rate plus an "
                    "even number, or the stage would not multiply the length by the rate"
                )
        if self.channels < 1 or self.channels % 2 ** len(rates):
            raise ValueError(
                f"generator.channels is {self.channels}: expected a multiple of {2 ** len(rates)}, for each of the "
                f"{len(rates)} stages halves it"
            )
        if not self.kernel_sizes or any(kernel < 1 or kernel % 2 == 0 for kernel in self.kernel_sizes):
            raise ValueError(f"generator.kernel_sizes are {[*self.kernel_sizes]}: expected one or more, all odd")
        if not self.dilations or min(self.dilations) < 1:
            raise ValueError(f"generator.dilations are {[*self.dilations]}: expected one or more, each 1 or more")

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
            # As in the authors' second version: the output is neither squashed nor biased.
            "use_tanh_at_final": False,
            "use_bias_at_final": False,
            **mel_hyperparameters(mel),
        }


def mel_hyperparameters(mel: MelConfig) -> dict[str, Any]:
    """Returns the settings of a mel under the names of the `bigvgan` package."""
    return {
        "sampling_rate": mel.sample_rate,
        "n_fft": mel.n_fft,
        "num_mels": mel.num_bands,
        "hop_size": mel.hop_length,
        "win_size": mel.win_length,
        "fmin": mel.f_min,
        "fmax": mel.f_max,
    }


def require_buildable(h: dict, num_weights: int) -> None:
    """Checks sizes of a generator before it is built, so that a small file cannot demand gigabytes.

    Args:
        h: Hyperparameters of the `bigvgan` package.
        num_weights: Number of weights that were stored with them.

    Raises:
        ValueError: if sizes are missing or out of range, or describe more convolutions than there are weights.
    """
    rates, kernels = h["upsample_rates"], h["upsample_kernel_sizes"]
    blocks, dilations = h["resblock_kernel_sizes"], h["resblock_dilation_sizes"]
    channels = h["upsample_initial_channel"]
    if not rates or len(rates) != len(kernels) or not blocks or len(blocks) != len(dilations):
        raise ValueError("its lists of sizes are empty, or not of one length")
    if len(rates) * sum(len(convolutions) for convolutions in dilations) > num_weights or not all(dilations):
        raise ValueError(f"its lists of sizes describe more convolutions than the {num_weights} weights")
    sizes = [*rates, *kernels, *blocks, *(dilation for convolutions in dilations for dilation in convolutions)]
    if not all(1 <= size <= MAX_SIZE for size in sizes) or not 2 ** len(rates) <= channels <= MAX_CHANNELS:
        raise ValueError(f"its sizes are out of range: expected 1 to {MAX_SIZE}, at most {MAX_CHANNELS} channels")
    if any(kernel < rate for rate, kernel in zip(rates, kernels, strict=True)):
        raise ValueError("an upsample_kernel_sizes is smaller than its rate")


MAX_SIZE, MAX_CHANNELS = 4096, 2**16
"""Largest accepted rates, kernels and dilations, and numbers of channels, of a generator from a file."""

ACTIVATION_REACH = 5
"""Samples on each side that an anti-aliased activation depends on."""

EDGE_REACH = 3
"""Frames or samples on each side that the first and the last convolution, of kernel 7, depend on."""


def context_frames(h: dict) -> int:
    """Returns the number of mel frames on each side that a sample depends on, from the kernels of the layers.

    The dependence of one frame's samples is followed back through the layers, as an interval of samples at each
    stage's rate: a convolution of kernel k and dilation d widens it by (k - 1) / 2 * d on each side; sample n of a
    transposed convolution of kernel k, stride u and padding (k - u) / 2 depends on the samples i with
    n = i u - (k - u) / 2 + j, 0 <= j < k.

    Args:
        h: Hyperparameters of the `bigvgan` package.
    """
    reach = EDGE_REACH + ACTIVATION_REACH
    first, last = -reach, math.prod(h["upsample_rates"]) - 1 + reach
    stages = list(zip(h["upsample_rates"], h["upsample_kernel_sizes"], strict=True))
    for rate, upsample_kernel in reversed(stages):
        blocks = []
        for kernel, dilations in zip(h["resblock_kernel_sizes"], h["resblock_dilation_sizes"], strict=True):
            half = (kernel - 1) // 2
            second = ACTIVATION_REACH + half if h["resblock"] == "1" else 0
            blocks.append(sum(ACTIVATION_REACH + half * dilation + second for dilation in dilations))
        pad = (upsample_kernel - rate) // 2
        first = -((upsample_kernel - 1 - pad - first + max(blocks)) // rate)
        last = (last + max(blocks) + pad) // rate
    return max(-first, last) + EDGE_REACH
