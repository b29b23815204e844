"""An exponential moving average of weights, held by a second network: what is decoded, judged and shipped."""

import torch
from torch import nn


@torch.no_grad()
def move_average(average: nn.Module, current: nn.Module, step: int, decay: float) -> None:
    """Moves the parameters of a module towards those of another one of the same make, sharded alike.

    Args:
        average: Moved in place.
        current: What training has arrived at.
        step: Of training, counted from 1.
        decay: Weight of the past; lower at first, (1 + step) / (10 + step).
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_([*average.parameters()], [*current.parameters()], weight)
