"""Sizes of a BigVGAN, and how much mel they reach. Knows nothing of weights."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from sf_lightning.audio.mel import MelConfig


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
        if not self.kernel_sizes or any(kernel < 1 or kernel % 2 == 0 for kernel in self.kernel_sizes):
            raise ValueError(f"generator.kernel_sizes are {[*self.kernel_sizes]}: wanted one or more, all odd")
        if not self.dilations or min(self.dilations) < 1:
            raise ValueError(f"generator.dilations are {[*self.dilations]}: wanted one or more, each 1 or more")

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
            **mel_hyperparameters(mel),
        }


def mel_hyperparameters(mel: MelConfig) -> dict[str, Any]:
    """Returns what the package calls the numbers of a mel."""
    return {
        "sampling_rate": mel.sample_rate,
        "n_fft": mel.n_fft,
        "num_mels": mel.num_bands,
        "hop_size": mel.hop_length,
        "win_size": mel.win_length,
        "fmin": mel.f_min,
        "fmax": mel.f_max,
    }


ACTIVATION_REACH = 5
"""Samples on each side that an anti-aliased activation mixes."""

EDGE_REACH = 3
"""Of the first and the last convolution, kernel 7."""


def context_frames(h: dict) -> int:
    """Returns how many frames of mel on each side can change a sample, from the layers' kernels.

    What the samples of one frame depend on is followed back through the layers, as an interval of samples at each
    stage's rate: a convolution of kernel k and dilation d reaches (k - 1) / 2 * d further, and sample n of a
    transposed one of kernel k, stride u and padding (k - u) / 2 comes from samples i with
    n = i u - (k - u) / 2 + j, 0 <= j < k.
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
