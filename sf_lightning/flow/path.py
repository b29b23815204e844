"""The straight (optimal-transport) path from noise to mel: x_t = (1 - t) x_0 + t x_1."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass
class PathSample:
    """A point of the path and its velocity, both shaped like x_1."""

    x_t: Tensor
    dx_t: Tensor


def straight_path(x_0: Tensor, x_1: Tensor, t: Tensor) -> PathSample:
    """Returns the point at time t, broadcastable to x_1, and its velocity x_1 - x_0."""
    return PathSample(x_t=torch.lerp(x_0, x_1, t), dx_t=x_1 - x_0)


def draw_times(count: int, kind: Literal["logit_normal", "uniform"], generator: torch.Generator) -> Tensor:
    """Returns training times t [count] in (0, 1); logit-normal times are denser in the middle."""
    device = generator.device
    if kind == "uniform":
        return torch.rand(count, generator=generator, device=device)
    return torch.sigmoid(torch.randn(count, generator=generator, device=device))
