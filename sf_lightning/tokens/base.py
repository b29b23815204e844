"""Interface of all tokenizers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sf_lightning.audio.wave import Wave

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class TokenizerSpec:
    """Properties of a tokenizer that must be equal in shards and model.

    Args:
        name: Kind of tokenizer, such as "kmeans" or "s3".
        vocabulary: Number of codes.
        frames_per_token: Mel frames per token.
        digest: Digest of its weights, because k-means fitted on other speech has the same name and other tokens.
    """

    name: str
    vocabulary: int
    frames_per_token: int
    digest: str


class Tokenizer(Protocol):
    """Encodes waves as tokens.

    Attributes:
        spec: Its properties.
    """

    spec: TokenizerSpec

    def encode(self, waves: Sequence[Wave]) -> list[Tokens]:
        """Returns the tokens [L] of each wave [N] at 16 kHz."""
        ...
