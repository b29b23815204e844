"""Pitch and level jumps at chunk edges."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from sf_lightning.metrics.jumps import level_jump, pitch_jump


def tone(pitches: list[float], gains: list[float]) -> Tensor:
    """Returns a buzz with continuous phase, one pitch in Hz and gain for each chunk of 0.24 s."""
    frequency = torch.tensor(pitches).repeat_interleave(3840)
    phase = 2 * math.pi * torch.cumsum(frequency.double() / 16000, 0)
    wave = sum(torch.sin(k * phase) / k for k in range(1, 15))
    assert isinstance(wave, Tensor)
    return (wave * torch.tensor(gains).repeat_interleave(3840)).float() / 4


def test_steps_of_pitch_and_level_are_measured_at_edges_and_not_elsewhere() -> None:
    edges, up = torch.arange(1, 8) * 3840, 2 ** (2 / 12)
    flat_ = tone([120.0] * 8, [1.0] * 8)
    stepping = tone([120.0, 120.0 * up] * 4, [1.0] * 8)
    pulsing = tone([120.0] * 8, [1.0, 0.5] * 4)
    assert abs(pitch_jump(flat_, edges, 16000)) < 0.1 and abs(level_jump(flat_, edges, 16000)) < 0.3
    assert pitch_jump(stepping, edges, 16000) == pytest.approx(2.0, abs=0.3)
    assert level_jump(pulsing, edges, 16000) == pytest.approx(6.0, abs=1.0)
    assert abs(pitch_jump(stepping, edges + 1920, 16000)) < 0.4  # the steps are not at these edges
    for wave in (torch.zeros(8 * 3840), flat_[:100]):
        assert math.isnan(pitch_jump(wave, edges, 16000)) and math.isnan(level_jump(wave, edges, 16000))
    assert math.isnan(pitch_jump(flat_, edges[:0], 16000))


def test_a_larger_pitch_jump_never_has_a_lower_score() -> None:
    edges = torch.arange(1, 8) * 3840
    waves = [tone([120.0, 120.0 * 2 ** (jump / 12)] * 4, [1.0] * 8) for jump in (0, 1, 3, 5, 6.5, 8, 12)]
    found = [pitch_jump(wave, edges, 16000) for wave in waves]
    assert all(after > before - 0.05 for before, after in itertools.pairwise(found)), found
    assert found[-1] == pytest.approx(6.0, abs=0.3)
    worst = tone([120.0, 180.0, 120.0, 120.0, 120.0, 120.0, 120.0, 120.0], [1.0] * 8)
    assert pitch_jump(worst, edges, 16000) == pytest.approx(
        2 * 6 / 7, abs=0.2
    )  # two of seven edges jump, each by the maximum
