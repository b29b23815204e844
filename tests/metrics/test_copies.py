"""Measures of copies: multi-resolution STFT distance and periodicity, checked against closed forms."""

import math

import numpy as np
import pytest
import torch

from sf_lightning.metrics.scorers import periodicity, periodicity_error
from sf_lightning.metrics.spectral import stft_distance
from tests.toys.audio import synthetic_voice


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_the_distance_of_a_scaled_copy_is_its_gain_error_plus_its_log_gain(gain: float) -> None:
    # Noise, since some bins of a voice are below the smallest magnitude that counts.
    noise = torch.randn(16000, generator=torch.Generator().manual_seed(0))
    assert float(stft_distance(gain * noise, noise)) == pytest.approx(abs(1 - gain) + abs(math.log(gain)), rel=1e-4)
    assert float(stft_distance(noise, noise)) == 0


def test_a_shifted_copy_has_a_small_distance_and_noise_a_large_one() -> None:
    wave = torch.from_numpy(synthetic_voice(2.0))
    near, far = stft_distance(wave.roll(8), wave), stft_distance(torch.randn(32000) * wave.std(), wave)
    assert near < 0.25 < 1 < far
    assert torch.isfinite(stft_distance(torch.zeros(32000), wave))
    assert float(stft_distance(wave[:20000], wave)) == 0  # the longer is truncated to the shorter
    assert stft_distance(wave[:1025], wave) == 0 and stft_distance(wave[:1024], wave).isnan()


@pytest.mark.parametrize("pitch_hz", [70, 220, 450])
def test_tones_are_periodic_and_noise_and_silence_are_not(pitch_hz: float) -> None:
    time = np.arange(16000) / 16000
    buzz = sum(np.sin(2 * np.pi * pitch_hz * k * time) / k for k in range(1, 10))
    noise = np.random.default_rng(0).standard_normal(16000)
    assert periodicity(buzz).min() > 0.97
    assert periodicity(noise).mean() < 0.4
    assert periodicity(np.zeros(16000)).max() < 1e-12
    # Half of the power is noise, whose d' is 1: half of the periodicity remains.
    both = buzz / buzz.std() + noise
    assert periodicity(both).mean() == pytest.approx(0.55, abs=0.12)


def test_a_whispered_voice_has_a_periodicity_error_and_a_softer_one_has_none() -> None:
    clip = synthetic_voice(2.0)
    assert periodicity_error(clip, clip) == 0
    assert periodicity_error(clip, 0.5 * clip) < 0.05
    whisper = np.random.default_rng(0).standard_normal(len(clip)).astype(np.float32) * np.abs(clip)
    assert periodicity_error(clip, whisper) > 0.3
    assert math.isnan(periodicity_error(clip, np.zeros_like(clip)))
