"""Discriminators and losses that train a BigVGAN (arXiv 2206.04658), from the `bigvgan` package.

Independent of optimizers and of how segments are drawn.

Letters: B segments, N samples.
"""

import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import wraps
from typing import Literal, NamedTuple

import torch
from bigvgan.discriminators import (
    MultiPeriodDiscriminator,
    MultiResolutionDiscriminator,
    MultiScaleSubbandCQTDiscriminator,
)
from bigvgan.env import AttrDict
from bigvgan.loss import MultiScaleMelSpectrogramLoss, feature_loss, generator_loss
from nnAudio.features.cqt import CQT2010v2
from torch import Tensor, nn
from torchaudio.transforms import Resample

from sf_lightning.audio.mel import MelConfig, MelSpectrogram

CQT_FILTERS = 128
"""Channels of a sub-band CQT discriminator in the authors' second version."""

CQT_BINS = (24, 36, 48)
"""Bins per octave of each of the sub-band CQT discriminators."""

CQT_LOWEST_HZ = 32.7
"""Lowest frequency of nnAudio's first octave in Hz."""

REACH = 1024
"""Samples that the longest spectrograms of discriminators and losses reflect at the edges of a segment."""


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Kind and width of the discriminators.

    Args:
        kind: The discriminator beside the multi-period one: "cqt", sub-band constant-Q transforms (the authors'
            second version), or "resolutions", spectrograms at three resolutions (their first version).
        periods: Periods of the multi-period discriminator in samples.
        cqt_octaves: Octaves of the constant-Q transforms of "cqt"; at 16 kHz the authors' 9 would exceed the band.
        width: Number of channels relative to the published one; less than 1 is for small machines.
        gain: Factor by which waves are multiplied before discrimination. Speech with a peak of 0.7 is small
            beside the biases of newly initialized discriminators, which learn sooner from louder waves (LOG.md).
    """

    kind: Literal["cqt", "resolutions"] = "cqt"
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    cqt_octaves: int = 8
    width: float = 1.0
    gain: float = 1.0

    def __post_init__(self) -> None:
        if not 1 / 32 <= self.width <= 4:
            raise ValueError(f"discriminators.width is {self.width}: expected 1/32 to 4")
        if not self.periods or min(self.periods) < 1 or max(self.periods) > REACH:
            raise ValueError(f"discriminators.periods are {[*self.periods]}: expected one or more of 1 to {REACH}")
        if self.gain <= 0:
            raise ValueError(f"discriminators.gain is {self.gain}: expected more than 0")
        if self.cqt_octaves < 1:
            raise ValueError(f"discriminators.cqt_octaves is {self.cqt_octaves}: expected 1 or more")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the generator's losses.

    Args:
        mel: "multi_scale" compares log-mels at seven resolutions (the authors' second version), "single" only the
            mel of the configuration (their first version).
        mel_weight: Weight of the mel loss; the authors use 15 for "multi_scale" and 45 for "single".
        feature_weight: Weight of the feature-matching loss, which the package already doubles.
        adversarial_weight: Weight of the adversarial loss.
    """

    mel: Literal["multi_scale", "single"] = "multi_scale"
    mel_weight: float = 15.0
    feature_weight: float = 1.0
    adversarial_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mel_weight", "feature_weight", "adversarial_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"losses.{name} is {getattr(self, name)}: expected 0 or more")


class GeneratorLosses(NamedTuple):
    """Weighted losses of the generator, scalars."""

    mel: Tensor
    feature: Tensor
    adversarial: Tensor

    @property
    def total(self) -> Tensor:
        """Sum of the three."""
        return self.mel + self.feature + self.adversarial


class MultiScaleMels(MultiScaleMelSpectrogramLoss):
    """The package's multi-scale mel loss, with windows and filters on the device.

    The package copies them to the device in each step, which blocks.

    Args:
        sample_rate: Sample rate of the waves in Hz.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__(sample_rate)
        for bands, low, high, params in zip(
            self.n_mels, self.mel_fmin, self.mel_fmax, self.stft_params, strict=True
        ):
            length = params.window_length
            window = torch.from_numpy(self.get_window(params.window_type, length)).float()
            filters = torch.from_numpy(self.get_mel_filters(sample_rate, length, bands, low, high))
            self.register_buffer(f"window_{length}", window, persistent=False)
            self.register_buffer(f"filters_{length}", filters, persistent=False)

    def mel_spectrogram(self, wav: Tensor, window_length: int, hop_length: int, **_: object) -> Tensor:
        """Returns the mel magnitudes [B, 1, bands, frames] of waves [B, 1, N]."""
        window, filters = (self.get_buffer(f"{name}_{window_length}") for name in ("window", "filters"))
        spectrum = torch.stft(wav[:, 0], window_length, hop_length, window=window, return_complex=True)
        return (filters @ spectrum.abs())[:, None]


class Adversary(nn.Module):
    """Discriminators and losses on segments [B, N].

    Under autocast only the discriminators' convolutions run in 16 bits: constant-Q transforms, mels and losses
    would lose the quiet bands.

    Args:
        discriminators: Kind and width of the discriminators.
        losses: Weights of the losses.
        mel: Mel of the loss "single", and sample rate of the segments.

    Raises:
        ValueError: if the constant-Q transforms would exceed half the sample rate that they run at.
    """

    def __init__(self, discriminators: DiscriminatorConfig, losses: LossConfig, mel: MelConfig) -> None:
        super().__init__()
        self.losses, self.gain = losses, discriminators.gain
        top = CQT_LOWEST_HZ * 2**discriminators.cqt_octaves
        # The package doubles the rate before the transform, so the limit is the sample rate itself.
        if discriminators.kind == "cqt" and top > mel.sample_rate:
            raise ValueError(
                f"discriminators.cqt_octaves is {discriminators.cqt_octaves}, which reaches {top:.0f} Hz: a sample "
                f"rate of {mel.sample_rate} Hz allows {mel.sample_rate} Hz, lower it"
            )
        h = AttrDict(
            mpd_reshapes=[*discriminators.periods],
            use_spectral_norm=False,
            discriminator_channel_mult=discriminators.width,
            resolutions=[[1024, 120, 600], [2048, 240, 1200], [512, 50, 240]],
            sampling_rate=mel.sample_rate,
            cqtd_filters=round(CQT_FILTERS * discriminators.width),
            cqtd_n_octaves=[discriminators.cqt_octaves] * len(CQT_BINS),
            cqtd_bins_per_octaves=[*CQT_BINS],
        )
        spectral = MultiResolutionDiscriminator
        if discriminators.kind == "cqt":
            spectral = MultiScaleSubbandCQTDiscriminator
        # The package prints a line for each, and uses a weight norm that torch deprecates.
        with redirect_stdout(None), warnings.catch_warnings(action="ignore", category=FutureWarning):
            # A list, because their gradients are clipped separately.
            self.parts = nn.ModuleList([MultiPeriodDiscriminator(h), spectral(h)])
        for module in self.parts.modules():
            if isinstance(module, CQT2010v2 | Resample):
                module.forward = in_float32(module.forward)
        self.multi_scale = MultiScaleMels(mel.sample_rate)
        self.mel = MelSpectrogram(mel)

    def discriminator_loss(self, wave: Tensor, generated: Tensor) -> Tensor:
        """Returns the discriminators' loss on real and generated segments [B, N], a scalar."""
        total = wave.new_zeros(())
        for part in self.parts:
            real, fake, _, _ = part(self.gain * wave[:, None], self.gain * generated[:, None].detach())
            # As the package's discriminator_loss, which also blocks to copy each loss from the device.
            for on_real, on_fake in zip(_to_float32(real), _to_float32(fake), strict=True):
                total = total + (1 - on_real).square().mean() + on_fake.square().mean()
        return total

    def generator_losses(self, wave: Tensor, generated: Tensor) -> GeneratorLosses:
        """Returns the generator's losses on real and generated segments [B, N]."""
        feature, adversarial = wave.new_zeros(()), wave.new_zeros(())
        for part in self.parts:
            _, fake, real_features, fake_features = part(self.gain * wave[:, None], self.gain * generated[:, None])
            feature = feature + feature_loss(
                *([_to_float32(layer) for layer in features] for features in (real_features, fake_features))
            )
            adversarial = adversarial + generator_loss(_to_float32(fake))[0]
        weights = self.losses
        return self.mel_only_losses(wave, generated)._replace(
            feature=weights.feature_weight * feature, adversarial=weights.adversarial_weight * adversarial
        )

    def mel_only_losses(self, wave: Tensor, generated: Tensor) -> GeneratorLosses:
        """Returns the losses as `generator_losses`, with those of the discriminators zero."""
        zero = wave.new_zeros(())
        return GeneratorLosses(self.losses.mel_weight * self.mel_loss(wave, generated), zero, zero)

    def mel_loss(self, wave: Tensor, generated: Tensor) -> Tensor:
        """Returns the mel loss on real and generated segments [B, N], a scalar, without its weight."""
        if self.losses.mel == "multi_scale":
            with torch.autocast(wave.device.type, enabled=False):
                return self.multi_scale(wave[:, None], generated[:, None])
        return nn.functional.l1_loss(self.mel(wave), self.mel(generated))


def in_float32(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Returns a function of a tensor that runs in float32 under autocast too."""

    @wraps(forward)
    def forward_float32(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    return forward_float32


def _to_float32(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [tensor.float() for tensor in tensors]
