"""Jumps of pitch and level at chunk edges, beyond the changes of speech itself.

Two adjacent windows meet at each place. Their difference at chunk edges is compared with that elsewhere in the same
wave, where neither window contains an edge. 0 is no jump.
"""

import math
from collections.abc import Callable

import torch
from speechbrain.processing.vocal_features import autocorrelate
from torch import Tensor

LOWEST_HZ, HIGHEST_HZ = 65.0, 400.0
"""Range of pitch in Hz; the lowest one has two periods and more in a window, as autocorrelation needs."""

PITCH_SECONDS, LEVEL_SECONDS = 0.04, 0.01
"""Lengths of the windows in seconds."""

LEAST_HARMONICITY = 0.6
"""Normalized autocorrelation from which a window is voiced."""

OCTAVE_COST = 0.05
"""Penalty on autocorrelation for each octave down: two periods correlate as well as one, but are not the pitch."""

MOST_SEMITONES = 6.0
"""Larger changes are clipped to this value, at edges and elsewhere: no voice changes more within 40 ms, so the wave
is broken there or the estimate is off by an octave. If they were left out, the worst jumps would not count; if they
were left out elsewhere alone, such estimates would add half a semitone at any place of a recording."""

LEAST_LEVEL_DB = -40.0
"""Level relative to the loudest window in dB; places that are quieter on both sides are not speech."""


def pitch_jump(wave: Tensor, edges: Tensor, sample_rate: int) -> float:
    """Returns the mean change of pitch at edges minus that elsewhere, in semitones.

    Args:
        wave: Wave, [N].
        edges: Sample numbers at which chunks meet, [E].
        sample_rate: Sample rate in Hz.

    Returns:
        The difference; NaN if no edge, or no other place, is in voiced speech.
    """
    size = round(PITCH_SECONDS * sample_rate)

    def voiced(frames: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the pitch of each window in semitones and whether it is voiced, both [P]."""
        low, high = round(sample_rate / HIGHEST_HZ), round(sample_rate / LOWEST_HZ)
        correlation = autocorrelate(frames[None])[0, :, low : min(high, size // 2) + 1]
        octaves = torch.log2(torch.arange(low, low + correlation.shape[-1]) / low)
        lag = (correlation - OCTAVE_COST * octaves).argmax(dim=-1)
        strength = correlation.gather(1, lag[:, None])[:, 0]
        return -12 * torch.log2((lag + low).float()), strength >= LEAST_HARMONICITY

    def change(before: Tensor, after: Tensor) -> Tensor:
        (a, is_a), (b, is_b) = voiced(before), voiced(after)
        return (b - a).abs().clamp(max=MOST_SEMITONES)[is_a & is_b]

    return _excess_at_edges(wave, edges, size, change)


def level_jump(wave: Tensor, edges: Tensor, sample_rate: int) -> float:
    """Returns the mean change of level at edges minus that elsewhere, in dB; arguments as for `pitch_jump`."""
    size = round(LEVEL_SECONDS * sample_rate)
    whole = wave.float()[: len(wave) // size * size]
    loudest = whole.view(-1, size).square().mean(1).max() if len(whole) else wave.new_zeros(())
    least = float(loudest) * 10 ** (LEAST_LEVEL_DB / 10) + 1e-12

    def change(before: Tensor, after: Tensor) -> Tensor:
        a, b = before.square().mean(1), after.square().mean(1)
        # The lower bound keeps the change finite where one side is silent.
        return (10 * torch.log10(b.clamp(min=least) / a.clamp(min=least))).abs()[torch.maximum(a, b) > least]

    return _excess_at_edges(wave, edges, size, change)


def _excess_at_edges(wave: Tensor, edges: Tensor, size: int, change: Callable[[Tensor, Tensor], Tensor]) -> float:
    """Returns the mean change at edges minus that elsewhere; windows [P, size] meet at each place."""
    wave, edges = wave.float().cpu(), edges.cpu()
    inside = edges[(edges >= size) & (edges + size <= len(wave))]
    places = torch.arange(size, max(size, len(wave) - size + 1), max(1, size // 4))
    if len(edges):
        places = places[(places[:, None] - edges).abs().amin(1) >= size]
    if not len(inside) or not len(places):
        return math.nan
    offsets = torch.arange(size)

    def changes(starts: Tensor) -> Tensor:
        return change(wave[starts[:, None] - size + offsets], wave[starts[:, None] + offsets])

    at_edges, elsewhere = changes(inside), changes(places)
    return float(at_edges.mean() - elsewhere.mean()) if len(at_edges) and len(elsewhere) else math.nan
