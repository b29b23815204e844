"""Rotary positions, counted from the own block: 0..W-1 there, -W..-1 before it, W..2W-1 after it.

Scores depend on differences alone, so they equal those of absolute positions, the tables are constant, and
an hour-long stream has the numbers of a one-second one. Pairs are interleaved, theta 10,000.
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
        table: Of the positions, [2, P, head_width / 2].
        num_heads: How many heads are rotated; the others know no position.
    """
    cos, sin = table.to(x.dtype)
    turned = x[..., :num_heads, :, :]
    even, odd = turned[..., 0::2], turned[..., 1::2]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1).flatten(-2)
    return turned if num_heads == x.shape[-3] else torch.cat([turned, x[..., num_heads:, :, :]], dim=-3)
