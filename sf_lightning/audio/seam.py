"""Edge roughness: audible discontinuities where chunks of audio meet."""

import torch
from torch import Tensor

REACH_SECONDS = 0.005
"""Distance from an edge at which a click belongs to the edge: the middle window reaches as far on both sides."""

NUM_NEIGHBORS = 3
"""Windows of the same length on each side with which the middle one is compared."""

TAIL = 0.1
"""Share of the roughest places that are averaged: a mean over all would hide one click among many edges."""

QUIET = 0.01
"""Roughness, relative to the mean of the wave, below which differences count less: small clicks of a recording in
near silence are not audible."""


def seam_db(wave: Tensor, edges: Tensor, sample_rate: int) -> Tensor:
    """Returns how much rougher a wave is at chunk edges than half a chunk before them, in dB; 0 dB is no seam.

    Roughness is the largest squared second difference in a window, which a click raises and smooth speech does not.
    That of the window around a place is divided by the second largest of the six windows beside it, so that
    neither loud speech, nor the onset of a sound, nor a click next to the place counts as a seam. The mean of the
    roughest tenth of the edges is compared with that of the places half a chunk before them. Single clips without
    a seam vary by several dB around 0: average over clips.

    Args:
        wave: Samples [N].
        edges: Sample numbers at which chunks meet, [E], in ascending order; the first chunk starts at 0.
        sample_rate: Sample rate in Hz.

    Returns:
        A scalar; NaN if no edge, with the place before it, has all its windows inside the wave.
    """
    half, num_windows = round(REACH_SECONDS * sample_rate) + 2, 2 * NUM_NEIGHBORS + 1
    roughness = torch.diff(wave.double(), n=2).square()
    between = edges - torch.diff(edges, prepend=edges.new_zeros(1)) // 2
    reach = num_windows * half
    inside = (between > reach) & (edges - 1 + reach <= len(roughness))
    if not inside.any():
        return torch.tensor(float("nan"))
    places = torch.stack([edges[inside], between[inside]])  # [2, E]
    # The second difference with index n is centered on sample n + 1.
    samples = places[..., None] - 1 + torch.arange(-reach, reach, device=wave.device)
    peaks = roughness[samples].unflatten(-1, (num_windows, 2 * half)).amax(-1)
    levels = 10 * torch.log10(peaks + QUIET * roughness.mean() + 1e-12)
    beside = torch.cat([levels[..., :NUM_NEIGHBORS], levels[..., NUM_NEIGHBORS + 1 :]], dim=-1)
    excess = levels[..., NUM_NEIGHBORS] - beside.topk(2).values[..., 1]
    roughest = excess.topk(-(-excess.shape[1] // round(1 / TAIL))).values.mean(1)
    return (roughest[0] - roughest[1]).float()
