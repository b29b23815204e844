"""How much pitch and level jump at the edges between chunks, beyond what speech does anyway.

Two windows meet at a place. What changes from one to the other at the edges is compared with what changes from one
to the next elsewhere in the same wave, where no edge lies in either of them. 0 is no jump.
"""

import math
from collections.abc import Callable

import torch
from speechbrain.processing.vocal_features import autocorrelate
from torch import Tensor

LOWEST_HZ, HIGHEST_HZ = 65.0, 400.0
"""Of a voice. Below two periods in a window there would be nothing to compare."""

PITCH_SECONDS, LEVEL_SECONDS = 0.04, 0.01
"""Of the windows."""

LEAST_HARMONICITY = 0.6
"""A window is voiced from this autocorrelation on."""

OCTAVE_COST = 0.05
"""Of autocorrelation for each octave down: two periods are as periodic as one, and not the pitch."""

MOST_SEMITONES = 6.0
"""No voice moves more within 40 ms: the wave is broken there, or the estimate has slipped by an octave. More
counts as this much, at edges and elsewhere alike: left out, the worst jumps would look like none; left out
elsewhere alone, the slips would make half a semitone of jump at any place of a recording."""

LEAST_LEVEL_DB = -40.0
"""Below the loudest window: what is quieter on both sides is no speech."""


def pitch_jump(wave: Tensor, edges: Tensor, sample_rate: int) -> float:
    """Returns the mean change of pitch at edges beyond that elsewhere, in semitones.

    Args:
        wave: [N].
        edges: Sample numbers at which chunks meet, [E].
        sample_rate: Hz.

    Returns:
        NaN where no edge lies in voiced speech, or nothing else does.
    """
    size = round(PITCH_SECONDS * sample_rate)

    def voiced(frames: Tensor) -> tuple[Tensor, Tensor]:
        """Semitones of each window, and whether it is voiced, [P]."""
        low, high = round(sample_rate / HIGHEST_HZ), round(sample_rate / LOWEST_HZ)
        found = autocorrelate(frames[None])[0, :, low : min(high, size // 2) + 1]
        octaves = torch.log2(torch.arange(low, low + found.shape[-1]) / low)
        lag = (found - OCTAVE_COST * octaves).argmax(dim=-1)
        strength = found.gather(1, lag[:, None])[:, 0]
        return -12 * torch.log2((lag + low).float()), strength >= LEAST_HARMONICITY

    def change(before: Tensor, after: Tensor) -> Tensor:
        (a, is_a), (b, is_b) = voiced(before), voiced(after)
        return (b - a).abs().clamp(max=MOST_SEMITONES)[is_a & is_b]

    return _beyond(wave, edges, size, change)


def level_jump(wave: Tensor, edges: Tensor, sample_rate: int) -> float:
    """Returns the mean change of level at edges beyond that elsewhere, in dB; arguments as of `pitch_jump`."""
    size = round(LEVEL_SECONDS * sample_rate)
    whole = wave.float()[: len(wave) // size * size]
    loudest = whole.view(-1, size).square().mean(1).max() if len(whole) else wave.new_zeros(())
    least = float(loudest) * 10 ** (LEAST_LEVEL_DB / 10) + 1e-12

    def change(before: Tensor, after: Tensor) -> Tensor:
        a, b = before.square().mean(1), after.square().mean(1)
        # Where one side falls silent, the floor keeps the jump finite.
        return (10 * torch.log10(b.clamp(min=least) / a.clamp(min=least))).abs()[torch.maximum(a, b) > least]

    return _beyond(wave, edges, size, change)


def _beyond(wave: Tensor, edges: Tensor, size: int, change: Callable[[Tensor, Tensor], Tensor]) -> float:
    """The mean change at edges less the mean change elsewhere; windows [P, size] meet at each place."""
    wave, edges = wave.float().cpu(), edges.cpu()
    inside = edges[(edges >= size) & (edges + size <= len(wave))]
    places = torch.arange(size, max(size, len(wave) - size + 1), max(1, size // 4))
    if len(edges):
        places = places[(places[:, None] - edges).abs().amin(1) >= size]
    if not len(inside) or not len(places):
        return math.nan
    offsets = torch.arange(size)

    def at(starts: Tensor) -> Tensor:
        return change(wave[starts[:, None] - size + offsets], wave[starts[:, None] + offsets])

    here, elsewhere = at(inside), at(places)
    return float(here.mean() - elsewhere.mean()) if len(here) and len(elsewhere) else math.nan
