"""Seams: clicks at any place near a chunk edge show, and waves without chunks have none."""

import numpy as np
import pytest
import torch
from torch import Tensor

from sf_lightning.audio.seam import seam_db
from tests.toys.audio import synthetic_voice

RATE, CHUNK = 16000, 3840
EDGES = torch.arange(CHUNK, 16 * CHUNK, CHUNK)
"""Fifteen edges."""


def voices(count: int = 4) -> list[Tensor]:
    """Returns waves without chunks, of sixteen chunks each."""
    return [torch.from_numpy(synthetic_voice(3.84, 90 + 37 * i, seed=i)) for i in range(count)]


def chord() -> Tensor:
    """Returns three steady tones, like music."""
    time = torch.arange(16 * CHUNK) / RATE
    return 0.2 * sum(torch.sin(2 * torch.pi * hz * time) for hz in (220.0, 277.2, 329.6))  # type: ignore[return-value]


def silence() -> Tensor:
    """Returns digital silence with one second of a voice, far from most edges."""
    wave = torch.zeros(16 * CHUNK)
    wave[20000:36000] = voices(1)[0][:16000]
    return wave


def mean_seam(waves: list[Tensor], rate: int = RATE) -> float:
    """Returns the mean over waves of sixteen chunks."""
    return float(torch.stack([seam_db(wave, EDGES * rate // RATE, rate) for wave in waves]).nanmean())


def with_clicks(wave: Tensor, places: Tensor, level: float) -> Tensor:
    """Returns a copy with a click of one sample at each place."""
    wave = wave.clone()
    wave[places] += level
    return wave


def test_waves_without_chunks_have_no_seam_on_average() -> None:
    assert mean_seam(voices(40)) == pytest.approx(0, abs=0.6)
    assert mean_seam([chord()]) == pytest.approx(0, abs=0.1)
    assert mean_seam([0.1 * torch.randn(16 * CHUNK, generator=torch.Generator().manual_seed(0))]) < 1
    assert mean_seam([torch.zeros(16 * CHUNK)]) == 0


@pytest.mark.parametrize("offset", [-80, -33, -1, 0, 1, 16, 32, 80])
def test_clicks_within_five_milliseconds_of_edges_show(offset: int) -> None:
    for waves, level, least in (
        (voices(), 0.1, 15.0),
        (voices(), 0.03, 6.0),
        ([chord()], 0.03, 15.0),
        ([chord()], 0.003, 0.3),
        ([silence()], 0.01, 6.0),
    ):
        clicking = [with_clicks(wave, EDGES + offset, level) for wave in waves]
        assert mean_seam(clicking) > mean_seam(waves) + least, (level, least)


@pytest.mark.parametrize("offset", [-80, 0, 32, 80])
def test_one_click_among_fifteen_edges_shows(offset: int) -> None:
    for edge in EDGES[[0, 7, 13]]:
        for waves, least in ((voices(), 2.0), ([chord()], 10.0), ([silence()], 2.0)):
            clicking = [with_clicks(wave, edge + offset, 0.1) for wave in waves]
            assert mean_seam(clicking) > mean_seam(waves) + least, (int(edge), least)


@pytest.mark.parametrize("offset", [100, 160, 300, -100, 640])
def test_a_click_beside_an_edge_does_not_hide_seams(offset: int) -> None:
    for waves in (voices(), [chord()]):
        clicking = [with_clicks(wave, EDGES[:-1] + offset, 0.1) for wave in waves]
        assert mean_seam(clicking) > mean_seam(waves) - 2.5
        at_edges_too = [with_clicks(wave, EDGES, 0.1) for wave in clicking]
        assert mean_seam(at_edges_too) > mean_seam(waves) + 6


def test_a_chunk_that_starts_at_another_level_or_phase_is_a_seam() -> None:
    loud = torch.arange(16 * CHUNK) // CHUNK % 2 * 0.2 + 0.8
    shifted = torch.cat([part.roll(37) for part in chord().split(CHUNK)])
    assert mean_seam([chord() * loud]) > 3 and mean_seam([shifted]) > 10


def test_the_seam_at_24_khz_is_about_that_at_16_khz() -> None:
    time = np.arange(16 * CHUNK * 3 // 2) / 24000
    tone = torch.from_numpy(0.3 * np.sin(2 * np.pi * 220 * time)).float()
    clicking = with_clicks(tone, EDGES * 3 // 2 + 120, 0.03)
    assert mean_seam([tone], 24000) == pytest.approx(0, abs=0.1) and mean_seam([clicking], 24000) > 15


@pytest.mark.parametrize("length", [0, 1, 2, 1000, CHUNK, CHUNK + 500])
def test_a_wave_without_a_complete_edge_has_an_undefined_seam(length: int) -> None:
    assert seam_db(torch.zeros(length), EDGES[EDGES < length], RATE).isnan()
    assert seam_db(torch.zeros(length), torch.tensor([10]), RATE).isnan()


def test_one_edge_is_enough() -> None:
    wave = with_clicks(chord()[: 2 * CHUNK], torch.tensor([CHUNK]), 0.1)
    assert float(seam_db(wave, torch.tensor([CHUNK]), RATE)) > 10
