"""Rotary positions relative to the own block: 0..W-1 in it, -W..-1 before it, W..2W-1 after it.

Scores depend on differences only, so they equal those of absolute positions, the tables are constant, and
results do not depend on the length of a stream. Pairs are interleaved, theta 10,000.
"""

import torch
from torch import Tensor

THETA = 10_000.0


def rotation(positions: Tensor, head_width: int) -> Tensor:
    """Returns cosines and sines [2, P, head_width / 2] in float32 for positions [P]."""
    frequencies = THETA ** (-torch.arange(0, head_width, 2, device=positions.device) / head_width)
    angles = positions.float()[:, None] * frequencies
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, table: Tensor, num_heads: int) -> Tensor:
    """Rotates pairs of channels of the first heads of x [..., H, P, head_width].

    Args:
        x: Queries or keys.
        table: Rotation table of the positions, [2, P, head_width / 2].
        num_heads: Number of heads that are rotated; the others have no position.
    """
    cos, sin = table.to(x.dtype)
    rotated = x[..., :num_heads, :, :]
    even, odd = rotated[..., 0::2], rotated[..., 1::2]
    rotated = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return rotated if num_heads == x.shape[-3] else torch.cat([rotated, x[..., num_heads:, :, :]], dim=-3)
