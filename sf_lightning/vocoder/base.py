"""The interface of a vocoder."""

from typing import Protocol

from torch import Tensor

from sf_lightning.audio.mel import MelConfig


class Vocoder(Protocol):
    """Converts log-mels to waves, whole or chunk by chunk.

    Attributes:
        mel: The mel that it accepts.
        sample_rate: Sample rate of its waves in Hz; it may differ from the mel's.
        left: Number of past mel frames that it needs when it extends a wave.
        right: Number of future mel frames that it can use.
        digest: Digest of its weights; empty if it has none.
    """

    mel: MelConfig
    sample_rate: int
    left: int
    right: int
    digest: str

    @property
    def hop(self) -> int:
        """Number of samples, at its own rate, of one mel frame."""
        ...

    def decode(self, mel: Tensor) -> Tensor:
        """Returns the waves [B, T * hop] of complete mels [B, T, F]."""
        ...

    def extend(self, mel: Tensor, past: Tensor, num_new: int) -> Tensor:
        """Continues waves that have already been output.

        Args:
            mel: Mel [B, P + C + R, F] of P past, C new and R future frames; those may be provisional.
            past: The wave already output for the P past frames, [B, P * hop].
            num_new: Number C of new frames.

        Returns:
            The wave of the new frames, [B, C * hop].
        """
        ...
