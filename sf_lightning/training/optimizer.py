"""Optimizers and learning-rate schedules of decoder and vocoder training, and their settings."""

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class OptimizerConfig:
    """Settings of AdamW with linear warm-up and cosine decay.

    Args:
        learning_rate: Highest learning rate.
        warmup_steps: Number of steps of the warm-up.
        weight_decay: Weight decay of matrices; biases and other vectors have none.
        beta2: Decay of the second moment.
        ema_decay: Decay of the averaged weights.
        max_bad_steps: Number of consecutive steps with a non-finite gradient at which training stops.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 1000
    weight_decay: float = 0.01
    beta2: float = 0.98
    ema_decay: float = 0.9995
    max_bad_steps: int = 10


@dataclass(frozen=True)
class GANOptimizerConfig:
    """Settings of two AdamW optimizers, for the generator and the discriminators, as in BigVGAN's training code.

    Args:
        learning_rate: Learning rate of the first step.
        discriminator_learning_rate: The same for the discriminators; None is the generator's.
        decay: Factor of both learning rates per step.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        clip_norm: Norm to which gradients are clipped, each kind of discriminator separately.
        early_clip_norm: The same for the first steps, in which BigVGAN's authors saw small batches diverge.
        early_steps: Number of these first steps.
        freeze_steps: Number of steps at the start in which the discriminators are not trained and the generator
            minimizes the mel loss alone (`freeze_step` of the bigvgan package); such a step takes about half the
            time.
        ema_decay: Decay of the generator's averaged weights.
        max_bad_steps: Number of consecutive steps with a non-finite gradient at which training stops.
    """

    learning_rate: float = 1e-4
    discriminator_learning_rate: float | None = None
    decay: float = 0.9999996
    beta1: float = 0.8
    beta2: float = 0.99
    clip_norm: float = 500.0
    early_clip_norm: float = 100.0
    early_steps: int = 20000
    freeze_steps: int = 0
    ema_decay: float = 0.9995
    max_bad_steps: int = 10

    def __post_init__(self) -> None:
        if self.max_bad_steps < 1:
            raise ValueError(f"optimizer.max_bad_steps is {self.max_bad_steps}: expected 1 or more")
        for name in ("learning_rate", "discriminator_learning_rate", "clip_norm", "early_clip_norm"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"optimizer.{name} is {value}: expected more than 0")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}: expected 0 or more, less than 1")
        if not 0 < self.decay <= 1:
            raise ValueError(f"optimizer.decay is {self.decay}: expected more than 0, at most 1")
        if min(self.early_steps, self.freeze_steps) < 0:
            raise ValueError(
                f"optimizer: early_steps {self.early_steps}, freeze_steps {self.freeze_steps}: expected 0 or more"
            )


def adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Returns AdamW with weight decay on matrices only; fused, so that the device itself can skip a step."""
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=(0.9, config.beta2),
        weight_decay=config.weight_decay,
        fused=True,
    )


def warmup_cosine(optimizer: Optimizer, warmup_steps: int, total_steps: int) -> LambdaLR:
    """Returns linear warm-up and cosine decay to 0; the schedule advances once per optimizer step.

    >>> import torch
    >>> optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    >>> schedule = warmup_cosine(optimizer, warmup_steps=2, total_steps=4)
    >>> [round(schedule.lr_lambdas[0](step), 2) for step in range(5)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        done = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return LambdaLR(optimizer, factor)


CLIP_WINDOW = 100
"""Number of steps that `train/clip_share` covers."""


class ClippedSteps:
    """Counts, on the device, which of the last `CLIP_WINDOW` steps had a gradient above the limit."""

    def __init__(self) -> None:
        self._last: deque[Tensor] = deque(maxlen=CLIP_WINDOW)
        self._restored: list[bool] = []

    def update(self, norm: Tensor, limit: float) -> Tensor:
        """Adds the gradient norm of a step, a scalar, and returns the share of clipped steps, a scalar."""
        if self._restored:
            self._last.extend(torch.tensor(self._restored, device=norm.device))
            self._restored = []
        self._last.append(norm > limit)
        return torch.stack([*self._last]).float().mean()

    def state_dict(self) -> list[bool]:
        """Returns for each of the last steps whether it was clipped."""
        return self._restored or [bool(clipped) for clipped in self._last]

    def load_state_dict(self, state: list[bool]) -> None:
        """Restores the flags; `update` moves them to the device, which is not known yet."""
        self._last.clear()
        self._restored = [*state]
