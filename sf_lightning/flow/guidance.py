"""Classifier-free guidance: conditions dropped in training, two branches mixed in decoding."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sf_lightning.flow.solver import Velocity
from sf_lightning.model.blocks import Blocks


@dataclass(frozen=True)
class DropConfig:
    """How often training sees the null condition, per utterance and independently.

    Args:
        speaker: Probability that the speaker alone is null.
        everything: Probability that tokens and speaker are null.
    """

    speaker: float = 0.3
    everything: float = 0.2

    def __post_init__(self) -> None:
        for name in ("speaker", "everything"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"drop.{name} is {getattr(self, name)}: a probability is wanted")

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns which of `count` utterances lose their speaker and which their tokens, bool [count]."""
        chance = torch.rand(2, count, generator=generator, device=generator.device)
        everything = chance[0] < self.everything
        return everything | (chance[1] < self.speaker), everything


def mix(conditional: Tensor, null: Tensor, strength: float) -> Tensor:
    """Returns the guided velocity v_c + w (v_c - v_null)."""
    return conditional + strength * (conditional - null)


def guided(
    network: Callable[[Tensor, int, Tensor, Blocks], Tensor],
    condition: Tensor,
    null: Tensor,
    blocks: Blocks,
    strength: float,
) -> Velocity:
    """Returns the guided velocity of a list of blocks, both branches in one call of the network.

    Args:
        network: (x, number of the evaluation, condition, blocks) -> velocity.
        condition: Of each block, [M, W, D].
        null: The condition of nothing, shaped alike.
        blocks: Where the blocks belong.
        strength: w; 0 leaves the null branch out.
    """
    if strength == 0:
        return lambda x, number: network(x, number, condition, blocks)
    twice, conditions = Blocks.cat([blocks, blocks]), torch.cat([condition, null])

    def velocity(x: Tensor, number: int) -> Tensor:
        conditional, unconditional = network(torch.cat([x, x]), number, conditions, twice).chunk(2)
        return mix(conditional, unconditional, strength)

    return velocity
