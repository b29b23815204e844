"""What tells a copy from its original: spectra at several resolutions and periodicity, by closed forms."""

import math

import numpy as np
import pytest
import torch

from sf_lightning.metrics.scorers import periodicity, periodicity_error
from sf_lightning.metrics.spectral import stft_distance
from sf_lightning.metrics.speech import SpeechScores
from tests.toys.audio import synthetic_voice


@pytest.mark.parametrize("gain", [0.5, 2.0])
def test_a_copy_that_is_louder_is_away_by_its_gain_and_its_logarithm(gain: float) -> None:
    # Noise, for in a voice some bins lie below the least magnitude that counts.
    noise = torch.randn(16000, generator=torch.Generator().manual_seed(0))
    assert float(stft_distance(gain * noise, noise)) == pytest.approx(abs(1 - gain) + abs(math.log(gain)), rel=1e-4)
    assert float(stft_distance(noise, noise)) == 0


def test_a_copy_with_another_phase_is_near_and_noise_is_far() -> None:
    wave = torch.from_numpy(synthetic_voice(2.0))
    near, far = stft_distance(wave.roll(8), wave), stft_distance(torch.randn(32000) * wave.std(), wave)
    assert near < 0.25 < 1 < far
    assert torch.isfinite(stft_distance(torch.zeros(32000), wave))
    assert float(stft_distance(wave[:20000], wave)) == 0  # the longer is cut to the shorter
    assert stft_distance(wave[:1025], wave) == 0 and stft_distance(wave[:1024], wave).isnan()


@pytest.mark.parametrize("pitch_hz", [70, 220, 450])
def test_a_tone_is_periodic_noise_and_silence_are_not(pitch_hz: float) -> None:
    time = np.arange(16000) / 16000
    buzz = sum(np.sin(2 * np.pi * pitch_hz * k * time) / k for k in range(1, 10))
    noise = np.random.default_rng(0).standard_normal(16000)
    assert periodicity(buzz).min() > 0.97
    assert periodicity(noise).mean() < 0.4
    assert periodicity(np.zeros(16000)).max() < 1e-12
    # Half of the power is noise, d' of which is 1: half of the period is left.
    both = buzz / buzz.std() + noise
    assert periodicity(both).mean() == pytest.approx(0.55, abs=0.12)


def test_a_voice_that_turns_to_noise_has_an_error_of_its_periodicity_and_a_softer_one_has_none() -> None:
    clip = synthetic_voice(2.0)
    assert periodicity_error(clip, clip) == 0
    assert periodicity_error(clip, 0.5 * clip) < 0.05
    whisper = np.random.default_rng(0).standard_normal(len(clip)).astype(np.float32) * np.abs(clip)
    assert periodicity_error(clip, whisper) > 0.3
    assert math.isnan(periodicity_error(clip, np.zeros_like(clip)))


def test_only_copies_are_judged_as_copies() -> None:
    wave, mel, edges = (
        torch.from_numpy(synthetic_voice(1.0)),
        torch.zeros(100, 80),
        torch.empty(0, dtype=torch.long),
    )
    found = {}
    for copies in (False, True):
        scores = SpeechScores(16000, copies=copies)
        scores.update([0.5 * wave], [wave], [mel], [mel], [edges])
        found[copies] = scores.compute()
    assert found[True].keys() - found[False].keys() == {"mr_stft", "periodicity"}
    assert found[True]["periodicity"] < 0.05 and found[True]["mr_stft"] > 0.5
