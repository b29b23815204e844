"""What trains a BigVGAN (arXiv 2206.04658): discriminators and losses, the `bigvgan` package's own.

Knows nothing of optimizers, nor of where segments come from.

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
"""Bins of an octave of each of them."""

CQT_LOWEST_HZ = 32.7
"""Where nnAudio's first octave begins."""

REACH = 1024
"""Samples that the longest spectrograms of discriminators and losses mirror at the edges of a segment."""


@dataclass(frozen=True)
class DiscriminatorConfig:
    """Which discriminators, and how wide.

    Args:
        kind: What stands beside the multi-period discriminator: "cqt", sub-band constant-Q transforms (the authors'
            second version), or "resolutions", spectrograms at three resolutions (their first).
        periods: Of the multi-period discriminator, in samples.
        cqt_octaves: Octaves of the constant-Q transforms, of "cqt"; the authors' 9 leave the band at 16 kHz.
        width: Share of the published channels; 1 are all, less is for small machines.
        gain: Waves are multiplied by this before they are judged. Speech with a peak of 0.7 is small beside the
            biases of fresh discriminators, which hear the louder the sooner (LOG.md).
    """

    kind: Literal["cqt", "resolutions"] = "cqt"
    periods: tuple[int, ...] = (2, 3, 5, 7, 11)
    cqt_octaves: int = 8
    width: float = 1.0
    gain: float = 1.0

    def __post_init__(self) -> None:
        if not 1 / 32 <= self.width <= 4:
            raise ValueError(f"discriminators.width is {self.width}: wanted 1/32 to 4")
        if not self.periods or min(self.periods) < 1 or max(self.periods) > REACH:
            raise ValueError(f"discriminators.periods are {[*self.periods]}: wanted one or more of 1 to {REACH}")
        if self.gain <= 0:
            raise ValueError(f"discriminators.gain is {self.gain}: wanted more than 0")
        if self.cqt_octaves < 1:
            raise ValueError(f"discriminators.cqt_octaves is {self.cqt_octaves}: wanted 1 or more")


@dataclass(frozen=True)
class LossConfig:
    """Weights of the generator's losses.

    Args:
        mel: "multi_scale" compares log-mels at seven resolutions (the authors' second version), "single" that of
            the configuration (their first).
        mel_weight: Of the distance of mels; the authors have 15 for "multi_scale" and 45 for "single".
        feature_weight: Of the distance of the discriminators' features; the package doubles it already.
        adversarial_weight: Of the discriminators' judgement.
    """

    mel: Literal["multi_scale", "single"] = "multi_scale"
    mel_weight: float = 15.0
    feature_weight: float = 1.0
    adversarial_weight: float = 1.0

    def __post_init__(self) -> None:
        for name in ("mel_weight", "feature_weight", "adversarial_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"losses.{name} is {getattr(self, name)}: wanted 0 or more")


class GeneratorLosses(NamedTuple):
    """The generator's losses, each with its weight, scalars."""

    mel: Tensor
    feature: Tensor
    adversarial: Tensor

    @property
    def total(self) -> Tensor:
        """Their sum."""
        return self.mel + self.feature + self.adversarial


class MultiScaleMels(MultiScaleMelSpectrogramLoss):
    """The package's loss, with windows and filters kept on the device.

    The package copies them to it at each use, and waits for that.

    Args:
        sample_rate: Of the waves.
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
    """Judges segments [B, N].

    Under autocast the discriminators' convolutions alone run in 16 bits: constant-Q transforms, mels and losses do
    not, for the quiet bands would drown in the loud ones.

    Args:
        discriminators: Which.
        losses: Their weights.
        mel: For the sample rate, and for the mel loss "single".

    Raises:
        ValueError: if the constant-Q transforms would leave the band.
    """

    def __init__(self, discriminators: DiscriminatorConfig, losses: LossConfig, mel: MelConfig) -> None:
        super().__init__()
        self.losses, self.gain = losses, discriminators.gain
        top = CQT_LOWEST_HZ * 2**discriminators.cqt_octaves
        # The package doubles the rate before the transform, so the band ends at the sample rate itself.
        if discriminators.kind == "cqt" and top > mel.sample_rate:
            raise ValueError(
                f"discriminators.cqt_octaves: {discriminators.cqt_octaves} octaves reach {top:.0f} Hz, a sample "
                f"rate of {mel.sample_rate} Hz allows {mel.sample_rate} Hz: lower it"
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
        # The package prints what it makes, and norms weights in a way that torch warns of.
        with redirect_stdout(None), warnings.catch_warnings(action="ignore", category=FutureWarning):
            # Apart, because their gradients are clipped apart.
            self.parts = nn.ModuleList([MultiPeriodDiscriminator(h), spectral(h)])
        for each in self.parts.modules():
            if isinstance(each, CQT2010v2 | Resample):
                each.forward = in_full(each.forward)
        self.multi_scale = MultiScaleMels(mel.sample_rate)
        self.mel = MelSpectrogram(mel)

    def discriminator_loss(self, wave: Tensor, made: Tensor) -> Tensor:
        """Returns how badly real and made segments [B, N] are told apart, a scalar."""
        total = wave.new_zeros(())
        for part in self.parts:
            real, fake, _, _ = part(self.gain * wave[:, None], self.gain * made[:, None].detach())
            # As the package's discriminator_loss, which waits for the device to say what each one lost.
            for yes, no in zip(_full(real), _full(fake), strict=True):
                total = total + (1 - yes).square().mean() + no.square().mean()
        return total

    def generator_losses(self, wave: Tensor, made: Tensor) -> GeneratorLosses:
        """Returns how far made segments [B, N] are from real ones, and how well they pass for them."""
        feature, adversarial = wave.new_zeros(()), wave.new_zeros(())
        for part in self.parts:
            _, fake, real_features, fake_features = part(self.gain * wave[:, None], self.gain * made[:, None])
            feature = feature + feature_loss(
                *([_full(each) for each in of] for of in (real_features, fake_features))
            )
            adversarial = adversarial + generator_loss(_full(fake))[0]
        weights = self.losses
        return self.regression(wave, made)._replace(
            feature=weights.feature_weight * feature, adversarial=weights.adversarial_weight * adversarial
        )

    def regression(self, wave: Tensor, made: Tensor) -> GeneratorLosses:
        """Returns the same without what discriminators say."""
        zero = wave.new_zeros(())
        return GeneratorLosses(self.losses.mel_weight * self.mel_loss(wave, made), zero, zero)

    def mel_loss(self, wave: Tensor, made: Tensor) -> Tensor:
        """Returns the mean distance of the log-mels of segments [B, N], a scalar, without its weight."""
        if self.losses.mel == "multi_scale":
            with torch.autocast(wave.device.type, enabled=False):
                return self.multi_scale(wave[:, None], made[:, None])
        return nn.functional.l1_loss(self.mel(wave), self.mel(made))


def in_full(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Returns a function of a tensor that autocast does not change."""

    @wraps(forward)
    def full(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    return full


def _full(tensors: Sequence[Tensor]) -> list[Tensor]:
    return [each.float() for each in tensors]
