"""Classifier-free guidance: conditions dropped in training, two branches mixed in decoding."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sf_lightning.flow.solver import Velocity
from sf_lightning.model.blocks import Blocks


@dataclass(frozen=True)
class DropConfig:
    """Probabilities of the null condition in training, drawn per utterance and independently.

    Args:
        speaker: Probability that only the speaker is null.
        everything: Probability that tokens and speaker are null.
    """

    speaker: float = 0.3
    everything: float = 0.2

    def __post_init__(self) -> None:
        for name in ("speaker", "everything"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"drop.{name} is {getattr(self, name)}: expected a probability, 0 to 1")

    def draw(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Returns for which of `count` utterances the speaker and the tokens are dropped, two bool [count]."""
        chance = torch.rand(2, count, generator=generator, device=generator.device)
        everything = chance[0] < self.everything
        return everything | (chance[1] < self.speaker), everything


def mix(conditional: Tensor, null: Tensor, strength: float) -> Tensor:
    """Returns the guided velocity v_c + w (v_c - v_null)."""
    return conditional + strength * (conditional - null)


def guided(
    network: Callable[[Tensor, int, Tensor, Blocks], Tensor],
    condition: Tensor,
    null: Tensor | None,
    blocks: Blocks,
    strength: float,
) -> Velocity:
    """Returns the guided velocity of a list of blocks, both branches in one call of the network.

    Args:
        network: Function (x, index of the evaluation, condition, blocks) -> velocity.
        condition: Condition of each block, [M, W, D].
        null: Null condition, [M, W, D]; None without guidance.
        blocks: Utterance, position and padding of the blocks.
        strength: Strength w; 0 turns guidance off.
    """
    if null is None or strength == 0:
        return lambda x, number: network(x, number, condition, blocks)
    both, conditions = Blocks.cat([blocks, blocks]), torch.cat([condition, null])

    def velocity(x: Tensor, number: int) -> Tensor:
        conditional, unconditional = network(torch.cat([x, x]), number, conditions, both).chunk(2)
        return mix(conditional, unconditional, strength)

    return velocity
