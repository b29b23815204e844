"""What a tokenizer is to the rest of the house."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sf_lightning.audio.wave import Wave

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class TokenizerSpec:
    """What must agree between shards and model.

    Args:
        name: Kind of tokenizer, such as "kmeans" or "s3".
        vocabulary: Number of codes.
        frames_per_token: Mel frames of a token.
        digest: Of its weights: two k-means fitted on different speech have one name and nothing in common.
    """

    name: str
    vocabulary: int
    frames_per_token: int
    digest: str


class Tokenizer(Protocol):
    """Turns waves into tokens."""

    spec: TokenizerSpec

    def encode(self, waves: Sequence[Wave]) -> list[Tokens]:
        """Returns tokens [L] of each wave [N] at 16 kHz."""
        ...
