"""How loud the edges between chunks are. Knows nothing of why there are chunks."""

import torch
from torch import Tensor


def seam_db(wave: Tensor, edges: Tensor, reach: int = 16) -> Tensor:
    """Returns the roughness at edges over the roughness elsewhere, in dB; 0 dB is no seam at all.

    Roughness is the energy of the second difference, which a click raises and smooth speech does not,
    averaged over `reach` samples on each side of an edge. To be fair to edges that fall into loud speech,
    each edge is compared with its own surroundings (8 reaches on each side) before the mean is taken.

    Args:
        wave: Samples [N].
        edges: Sample numbers [E] at which chunks meet.
        reach: Samples on each side that count as the edge.

    Returns:
        A scalar; NaN where no edge has its surroundings inside the wave.
    """
    far = 8 * reach
    roughness = torch.diff(wave.double(), n=2).square()
    edges = edges[(edges >= far) & (edges + far <= len(roughness))]
    if len(edges) == 0:
        return torch.tensor(float("nan"))
    around = roughness[edges[:, None] + torch.arange(-far, far, device=wave.device)]
    middle = around[:, far - reach : far + reach]
    elsewhere = (around.sum(1) - middle.sum(1)) / (2 * far - 2 * reach)
    return (10 * torch.log10((middle.mean(1) + 1e-12) / (elsewhere + 1e-12))).mean().float()
