"""Exponential moving average of weights, held by a second network: the one that is evaluated and exported."""

import torch
from torch import nn


@torch.no_grad()
def move_average(average: nn.Module, current: nn.Module, step: int, decay: float) -> None:
    """Moves the averaged parameters towards the current ones, in place.

    Args:
        average: Network with the averaged parameters.
        current: Network with the current parameters, of the same architecture and sharding.
        step: Number of the training step, counted from 1.
        decay: Weight of the past; (1 + step) / (10 + step) while that is lower.
    """
    weight = 1 - min(decay, (1 + step) / (10 + step))
    torch._foreach_lerp_([*average.parameters()], [*current.parameters()], weight)
