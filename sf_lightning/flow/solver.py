"""Solvers that carry noise at t = 0 to a mel at t = 1. Know nothing of what the velocity is made of."""

import math
from typing import Literal

import torch
from torch import Tensor

from sf_lightning.flow.guidance import Velocity

Method = Literal["euler", "midpoint", "rk4"]

EVALUATIONS: dict[Method, int] = {"euler": 1, "midpoint": 2, "rk4": 4}
"""Network evaluations of one step."""


def sway_grid(steps: int, sway: float = -1.0) -> Tensor:
    """Returns steps + 1 times from 0 to 1, t + s (cos(pi t / 2) - 1 + t), float32.

    s = -1 puts more steps near the noise (F5-TTS, arXiv 2410.06885, eq. 7); s = 0 is an even grid.
    """
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return (t + sway * (torch.cos(math.pi / 2 * t) - 1 + t)).float()


def integrate(velocity: Velocity, x_0: Tensor, grid: Tensor, method: Method = "euler") -> Tensor:
    """Returns x at the end of the grid.

    Args:
        velocity: (x, t) -> dx/dt with t a scalar tensor on the device of x.
        x_0: Where to start, any shape.
        grid: Increasing times [steps + 1].
        method: "euler", "midpoint", or "rk4" (the 3/8 rule).
    """
    x = x_0
    grid = grid.to(x)
    for t, end in zip(grid[:-1], grid[1:], strict=True):
        h = end - t
        k1 = velocity(x, t)
        if method == "euler":
            x = x + h * k1
        elif method == "midpoint":
            x = x + h * velocity(x + h / 2 * k1, t + h / 2)
        else:
            k2 = velocity(x + h / 3 * k1, t + h / 3)
            k3 = velocity(x + h * (k2 - k1 / 3), t + 2 * h / 3)
            k4 = velocity(x + h * (k1 - k2 + k3), end)
            x = x + h / 8 * (k1 + 3 * k2 + 3 * k3 + k4)
    return x
