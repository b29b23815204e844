"""What a vocoder is to the rest of the house."""

from typing import Protocol

from torch import Tensor

from sf_lightning.audio.mel import MelConfig


class Vocoder(Protocol):
    """Turns log-mels into waves, whole or piece by piece.

    Attributes:
        mel: The mel it was made for.
        sample_rate: The rate of its waves in Hz; it may be another than the mel's.
        left: Frames of past mel that it wants when it extends a wave.
        right: Frames of future mel that it can use.
        digest: Of the weights that it was given; empty if it needs none.
    """

    mel: MelConfig
    sample_rate: int
    left: int
    right: int
    digest: str

    @property
    def hop(self) -> int:
        """Samples of wave, at its own rate, for a frame of mel."""
        ...

    def decode(self, mel: Tensor) -> Tensor:
        """Returns the whole waves [B, T * hop] of whole mels [B, T, F]."""
        ...

    def extend(self, mel: Tensor, past: Tensor, num_new: int) -> Tensor:
        """Continues waves that have already been heard.

        Args:
            mel: [B, P + C + R, F]: P past frames, C new ones, R of what may come next.
            past: The wave already heard for the P frames, [B, P * hop].
            num_new: C.

        Returns:
            The wave of the new frames, [B, C * hop].
        """
        ...
