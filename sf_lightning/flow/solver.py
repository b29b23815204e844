"""Solvers that carry noise at t = 0 to a mel at t = 1, for any velocity.

A solver is a list of network evaluations, numbered from 0: the point and the time of each evaluation, and how its
velocity advances the solution. Integration can pause after any evaluation and resume later, which is how a
stream computes no more than it must.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

Method = Literal["euler", "midpoint", "rk4"]

MAX_STEPS = 1000
"""Largest accepted number of steps."""

Velocity = Callable[[Tensor, int], Tensor]
"""Function (x, e) -> dx/dt, shaped like x, for evaluation number e at time `Solver.times[e]`."""


@dataclass(frozen=True)
class _Tableau:
    """A Runge-Kutta method: stage times in a step, weights of earlier stages, weights at the end of the step."""

    times: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    end: tuple[float, ...]


TABLEAUS: dict[Method, _Tableau] = {
    "euler": _Tableau((0,), ((),), (1,)),
    "midpoint": _Tableau((0, 1 / 2), ((), (1 / 2,)), (0, 1)),
    # Kutta's 3/8 rule, as in Qwen2.5-Omni token2wav.
    "rk4": _Tableau((0, 1 / 3, 2 / 3, 1), ((), (1 / 3,), (-1 / 3, 1), (1, -1, 1)), (1 / 8, 3 / 8, 3 / 8, 1 / 8)),
}


MIN_SWAY, MAX_SWAY = -1.0, 2 / (math.pi - 2)
"""Sways with which the times of `sway_grid` increase: its slope is 1 + s at t = 0, 1 + s (1 - pi / 2) at t = 1."""


def sway_grid(steps: int, sway: float = -1.0) -> Tensor:
    """Returns steps + 1 times from 0 to 1, t + s (cos(pi t / 2) - 1 + t), float64.

    s = -1 puts more steps near the noise (F5-TTS, arXiv 2410.06885, eq. 7); s = 0 is an even grid.
    """
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    return t + sway * (torch.cos(math.pi / 2 * t) - 1 + t)


@dataclass
class SolverState:
    """State of an integration.

    Attributes:
        x: Point at which the current step started, any shape.
        slopes: Velocities evaluated in the current step.
        evaluations: Number of evaluations so far.
    """

    x: Tensor
    slopes: list[Tensor] = field(default_factory=list)
    evaluations: int = 0


@dataclass(frozen=True)
class Solver:
    """A method on a grid of times.

    Args:
        steps: Steps from noise to mel.
        method: "euler", "midpoint" (2 evaluations a step) or "rk4" (4, the 3/8 rule).
        sway: Sway of the time grid, -1 to 2 / (pi - 2) = 1.7519; see `sway_grid`.

    Raises:
        ValueError: if a value is out of range or the method is unknown.
    """

    steps: int = 10
    method: Method = "euler"
    sway: float = -1.0

    def __post_init__(self) -> None:
        if not 1 <= self.steps <= MAX_STEPS:
            raise ValueError(f"decode.steps is {self.steps}: expected 1 to {MAX_STEPS}")
        if not MIN_SWAY <= self.sway <= MAX_SWAY:
            raise ValueError(
                f"decode.sway is {self.sway}: expected {MIN_SWAY:g} to {MAX_SWAY:.4f}, so that times increase"
            )
        if self.method not in TABLEAUS:
            raise ValueError(f"decode.method is {self.method!r}: expected one of {', '.join(TABLEAUS)}")

    @property
    def num_evaluations(self) -> int:
        """Network evaluations (NFE) from noise to mel."""
        return self.steps * len(TABLEAUS[self.method].times)

    @cached_property
    def grid(self) -> list[float]:
        """Times of the steps, steps + 1 of them."""
        return sway_grid(self.steps, self.sway).tolist()

    @cached_property
    def times(self) -> Tensor:
        """Time of each evaluation, float32 [NFE]."""
        steps = zip(self.grid, self.grid[1:], strict=False)
        return torch.tensor([t + part * (end - t) for t, end in steps for part in TABLEAUS[self.method].times])

    def point(self, progress: SolverState) -> Tensor:
        """Returns the point x of the next evaluation."""
        weights = TABLEAUS[self.method].stages[len(progress.slopes)]
        return self._advanced_point(progress, weights)

    def advance(self, progress: SolverState, velocity: Tensor) -> None:
        """Advances the state by the velocity of the evaluation at `point`."""
        tableau = TABLEAUS[self.method]
        progress.slopes.append(velocity)
        if len(progress.slopes) == len(tableau.times):
            progress.x = self._advanced_point(progress, tableau.end)
            progress.slopes = []
        progress.evaluations += 1

    def integrate(self, velocity: Velocity, x_0: Tensor) -> Tensor:
        """Returns x at t = 1 for x_0 at t = 0, any shape."""
        progress = SolverState(x_0)
        for number in range(self.num_evaluations):
            self.advance(progress, velocity(self.point(progress), number))
        return progress.x

    def _advanced_point(self, progress: SolverState, weights: tuple[float, ...]) -> Tensor:
        step = progress.evaluations // len(TABLEAUS[self.method].times)
        h = self.grid[step + 1] - self.grid[step]
        x = progress.x
        for weight, slope in zip(weights, progress.slopes, strict=True):
            if weight:
                x = x + h * weight * slope
        return x
