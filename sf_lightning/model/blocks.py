"""The list of blocks that the network processes instead of a padded [B, T] batch.

Utterances are cut into blocks and concatenated along M. A layer of a block-wise layout attends to the next block at
most, so a neighbor is a shift along M, masked where it belongs to another utterance or does not exist.

Letters: U utterances, M blocks, W frames of a block.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Blocks:
    """Utterance, position and padding of each block of a list.

    Attributes:
        utterance: Utterance of each block, int64 [M], smaller than `num_utterances`.
        position: Number of each block in its utterance, int64 [M].
        valid: Frames that are speech instead of padding, bool [M, W]. Padding fills the end of an utterance's last
            block; a block without any valid frame belongs to no utterance.
        num_utterances: U, known without a device synchronization.
        longest: Upper bound on the blocks of an utterance, likewise.
        packed: Whether the list consists of packs of `longest` blocks, each of which contains whole utterances.
    """

    utterance: Tensor
    position: Tensor
    valid: Tensor
    num_utterances: int
    longest: int
    packed: bool = False

    @classmethod
    def from_lengths(cls, frames: Sequence[int], block_size: int, device: torch.device | None = None) -> "Blocks":
        """Returns the blocks of utterances with these numbers of frames, one after the other.

        >>> Blocks.from_lengths([3, 2], block_size=2).valid.int().tolist()
        [[1, 1], [1, 0], [1, 1]]
        """
        counts = [-(-length // block_size) for length in frames]
        position = torch.cat([torch.arange(count) for count in counts])
        utterance = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        left = torch.tensor(list(frames))[utterance] - position * block_size
        valid = torch.arange(block_size) < left[:, None]
        return cls(utterance, position, valid, len(counts), max(counts)).to(device)

    @classmethod
    def cat(cls, lists: "Sequence[Blocks]") -> "Blocks":
        """Returns lists of blocks joined into one; their utterances stay separate."""
        starts = [0]
        for blocks in lists:
            starts.append(starts[-1] + blocks.num_utterances)
        return cls(
            torch.cat([blocks.utterance + start for blocks, start in zip(lists, starts, strict=False)]),
            torch.cat([blocks.position for blocks in lists]),
            torch.cat([blocks.valid for blocks in lists]),
            starts[-1],
            max(blocks.longest for blocks in lists),
            packed=all(blocks.packed for blocks in lists) and len({blocks.longest for blocks in lists}) == 1,
        )

    def to(self, device: torch.device | str | None, non_blocking: bool = False) -> "Blocks":
        """Returns the list on a device."""
        return replace(
            self,
            utterance=self.utterance.to(device, non_blocking=non_blocking),
            position=self.position.to(device, non_blocking=non_blocking),
            valid=self.valid.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "Blocks":
        """Returns the list in pinned memory."""
        return replace(
            self,
            utterance=self.utterance.pin_memory(),
            position=self.position.pin_memory(),
            valid=self.valid.pin_memory(),
        )

    def __getitem__(self, part: slice) -> "Blocks":
        """Returns a slice of the list; its blocks keep their utterances and positions."""
        return replace(self, utterance=self.utterance[part], position=self.position[part], valid=self.valid[part])

    def __len__(self) -> int:
        return len(self.utterance)

    @property
    def block_size(self) -> int:
        """Frames of a block."""
        return self.valid.shape[1]

    def has_neighbor(self, offset: int) -> Tensor:
        """Returns which blocks have a neighbor `offset` blocks away in the same utterance, bool [M]."""
        used = self.valid[:, 0]
        same_utterance = shift(self.utterance, offset) == self.utterance
        adjacent = shift(self.position, offset) - self.position == offset
        return same_utterance & adjacent & used & shift(used, offset)


def shift(x: Tensor, offset: int) -> Tensor:
    """Returns y with y[m] = x[m + offset] along the first axis, zero where m + offset is outside.

    >>> shift(torch.tensor([1, 2, 3]), -1).tolist()
    [0, 1, 2]
    """
    if offset == 0:
        return x
    if abs(offset) >= len(x):
        return torch.zeros_like(x)
    outside = x.new_zeros(abs(offset), *x.shape[1:])
    return torch.cat([x[offset:], outside] if offset > 0 else [outside, x[:offset]])
