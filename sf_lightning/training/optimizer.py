"""How weights are stepped: AdamW, its learning rate over a run, and the settings of both kinds of training."""

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
    """AdamW with warm-up and cosine.

    Args:
        learning_rate: Its highest value.
        warmup_steps: Steps in which it rises.
        weight_decay: Of matrices; biases and other vectors have none.
        beta2: Decay of the second moment.
        ema_decay: Decay of the averaged weights.
        max_bad_steps: Training stops at so many steps in a row whose gradient is not finite.
    """

    learning_rate: float = 1e-4
    warmup_steps: int = 1000
    weight_decay: float = 0.01
    beta2: float = 0.98
    ema_decay: float = 0.9995
    max_bad_steps: int = 10


@dataclass(frozen=True)
class GANOptimizerConfig:
    """Two AdamW, one for the generator and one for the discriminators, as BigVGAN's authors have them.

    Args:
        learning_rate: At the first step.
        discriminator_learning_rate: That of the discriminators; None is the same.
        decay: Each step multiplies it by this.
        beta1: Decay of the first moment.
        beta2: Decay of the second moment.
        clip_norm: Gradients are clipped to this norm, those of the two kinds of discriminators apart.
        early_clip_norm: So in the first steps: where batches are small, its authors saw them diverge there.
        early_steps: How many these are.
        freeze_steps: In so many steps at the beginning the discriminators rest and the generator follows the mel
            loss alone (the package's `freeze_step`): steps that cost half where adversarial ones are dear.
        ema_decay: Decay of the generator's averaged weights.
        max_bad_steps: Training stops at so many steps in a row whose gradient is not finite.
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
            raise ValueError(f"optimizer.max_bad_steps is {self.max_bad_steps}: wanted 1 or more")
        for name in ("learning_rate", "discriminator_learning_rate", "clip_norm", "early_clip_norm"):
            if (value := getattr(self, name)) is not None and value <= 0:
                raise ValueError(f"optimizer.{name} is {value}: wanted more than 0")
        for name in ("beta1", "beta2", "ema_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} is {getattr(self, name)}: wanted 0 or more, less than 1")
        if not 0 < self.decay <= 1:
            raise ValueError(f"optimizer.decay is {self.decay}: wanted more than 0, at most 1")
        if min(self.early_steps, self.freeze_steps) < 0:
            raise ValueError(
                f"optimizer: early_steps {self.early_steps}, freeze_steps {self.freeze_steps}: wanted 0 or more"
            )


def adamw(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """Returns AdamW on matrices with, on vectors without weight decay; fused, so the device itself skips a step."""
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
    """Returns a schedule to be stepped once per optimizer step.

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
"""Steps over which `train/clip_share` is counted."""


class ClippedSteps:
    """Counts, on the device, which of the last `CLIP_WINDOW` steps had a gradient beyond the limit."""

    def __init__(self) -> None:
        self._last: deque[Tensor] = deque(maxlen=CLIP_WINDOW)
        self._came: list[bool] = []

    def update(self, norm: Tensor, limit: float) -> Tensor:
        """Takes the norm of a step's gradient, a scalar; returns the share of clipped steps, a scalar."""
        if self._came:
            self._last.extend(torch.tensor(self._came, device=norm.device))
            self._came = []
        self._last.append(norm > limit)
        return torch.stack([*self._last]).float().mean()

    def state_dict(self) -> list[bool]:
        """Of each of the last steps, whether it was clipped."""
        return self._came or [bool(each) for each in self._last]

    def load_state_dict(self, state: list[bool]) -> None:
        """Takes it back; a checkpoint comes before a module is on its device."""
        self._last.clear()
        self._came = [*state]
