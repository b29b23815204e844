"""Waves: read at any rate, written as 16-bit; roughness at the edges between chunks."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from sf_lightning.audio.wave import read_wave, write_wave
from tests.toys.audio import synthetic_voice


@pytest.mark.parametrize("rate", [8000, 22050, 48000])
def test_another_rate_and_stereo_are_read_as_16_khz_mono(tmp_path: Path, rate: int) -> None:
    time = np.arange(rate) / rate
    tone = np.sin(2 * np.pi * 440 * time)
    soundfile.write(tmp_path / "a.wav", np.stack([tone, 0 * tone], axis=1), rate)
    wave = read_wave(tmp_path / "a.wav", 16000)
    assert abs(len(wave) - 16000) <= 1
    assert np.abs(np.fft.rfft(wave)).argmax() == 440
    assert np.isclose(np.abs(wave).max(), 0.5, atol=0.02)


def test_flac_in_memory_is_read_as_it_was_written(tmp_path: Path) -> None:
    wave = synthetic_voice(1.0)
    soundfile.write(tmp_path / "a.flac", wave, 16000)
    assert np.allclose(read_wave((tmp_path / "a.flac").read_bytes(), 16000), wave, atol=1e-4)


def test_bytes_that_are_no_audio_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be decoded"):
        read_wave(b"not audio at all", 16000)


def test_samples_beyond_full_scale_are_clipped_not_wrapped(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav", np.array([2.0, -2.0, 0.5], np.float32), 16000)
    assert soundfile.read(tmp_path / "a.wav")[0] == pytest.approx([1.0, -1.0, 0.5], abs=1e-4)
