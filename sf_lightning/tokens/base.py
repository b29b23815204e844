"""Interface of all tokenizers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sf_lightning.audio.wave import Wave

MAX_VOCABULARY, MAX_FRAMES_PER_TOKEN = 2**24, 1000
"""Largest accepted numbers of codes, and of mel frames per token."""

Tokens = NDArray[np.int64]


@dataclass(frozen=True)
class TokenizerSpec:
    """Properties of a tokenizer that must be equal in shards and model.

    Args:
        name: Kind of tokenizer, such as "kmeans" or "s3".
        vocabulary: Number of codes.
        frames_per_token: Mel frames per token.
        digest: Digest of its weights, because k-means fitted on other speech has the same name and other tokens.

    Raises:
        ValueError: if a number is out of its range.
    """

    name: str
    vocabulary: int
    frames_per_token: int
    digest: str

    def __post_init__(self) -> None:
        if not (1 <= self.vocabulary <= MAX_VOCABULARY and 1 <= self.frames_per_token <= MAX_FRAMES_PER_TOKEN):
            raise ValueError(
                f"tokenizer {self.name}: vocabulary {self.vocabulary}, {self.frames_per_token} frames per token: "
                f"expected 1 to {MAX_VOCABULARY} and 1 to {MAX_FRAMES_PER_TOKEN}"
            )


class Tokenizer(Protocol):
    """Encodes waves as tokens.

    Attributes:
        spec: Its properties.
    """

    spec: TokenizerSpec

    def encode(self, waves: Sequence[Wave]) -> list[Tokens]:
        """Returns the tokens [L] of each wave [N] at 16 kHz."""
        ...
