"""Edge roughness: audible discontinuities where chunks of audio meet."""

import torch
from torch import Tensor


def seam_db(wave: Tensor, edges: Tensor, reach: int = 16) -> Tensor:
    """Returns the roughness at edges relative to their surroundings in dB; 0 dB means no audible edge.

    Roughness is the energy of the second difference, which a click raises and smooth speech does not,
    averaged over `reach` samples on each side of an edge. Each edge is compared with its own surroundings
    (`8 * reach` samples on each side) before averaging, so that edges in loud speech count no more than others.

    Args:
        wave: Samples [N].
        edges: Sample indices [E] at which chunks meet.
        reach: Samples on each side that belong to the edge.

    Returns:
        A scalar; NaN if no edge has all its surroundings inside the wave.
    """
    surround = 8 * reach
    roughness = torch.diff(wave.double(), n=2).square()
    edges = edges[(edges >= surround) & (edges + surround <= len(roughness))]
    if len(edges) == 0:
        return torch.tensor(float("nan"))
    around = roughness[edges[:, None] + torch.arange(-surround, surround, device=wave.device)]
    middle = around[:, surround - reach : surround + reach]
    elsewhere = (around.sum(1) - middle.sum(1)) / (2 * surround - 2 * reach)
    return (10 * torch.log10((middle.mean(1) + 1e-12) / (elsewhere + 1e-12))).mean().float()
