"""What a tokenizer is to the rest of the house, and how one is loaded."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
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


def load_tokenizer(path: Path, device: str = "cpu") -> Tokenizer:
    """Loads a tokenizer from its file; the suffix says its kind (`.npz`: k-means; `.onnx`, `.pt`: S3).

    Args:
        path: Of the file.
        device: Where it runs; k-means runs on the CPU.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if no tokenizer has that suffix, or the file is not one.
    """
    # Each kind brings libraries of its own: scikit-learn only where k-means is used, s3tokenizer likewise.
    if not path.is_file():
        raise FileNotFoundError(f"tokenizer: no file {path}")
    if path.suffix == ".npz":
        from sf_lightning.tokens.kmeans import KMeansTokenizer

        return KMeansTokenizer.load(path)
    if path.suffix in (".onnx", ".pt"):
        from sf_lightning.tokens.s3 import S3Tokenizer

        return S3Tokenizer(path, device)
    raise ValueError(f"tokenizer: {path} has suffix {path.suffix!r}, known are .npz (k-means), .onnx and .pt (S3)")
