"""Segments of speech, cut out of packs at random: the training examples of a vocoder.

A pack holds the wave of its pieces in blocks, each with the context of its mel. Concatenated, the blocks of a piece
are its wave again, and their mels are those of the whole clip; a segment is a window on both.

Letters: B segments, S frames of a segment, M blocks, W frames of a block, F mel bands, N samples.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sf_lightning.audio.mel import MelSpectrogram
from sf_lightning.data.packing import Batch
from sf_lightning.flow.noise import keyed_generator

BLOCK_FRAMES = 24
"""Frames of the blocks of a vocoder's packs; segments may begin at any frame."""


@dataclass(frozen=True)
class SegmentConfig:
    """How segments are cut.

    Args:
        frames: Frames of a segment S.
        per_pack: Segments per pack, and so per lane in a step.

    Raises:
        ValueError: if one of them is below 1.
    """

    frames: int = 32
    per_pack: int = 8

    def __post_init__(self) -> None:
        if self.frames < 1 or self.per_pack < 1:
            raise ValueError(
                f"segments.frames is {self.frames} and segments.per_pack is {self.per_pack}: expected 1 or more"
            )


class Segments(NamedTuple):
    """Segments of a batch.

    Attributes:
        wave: Samples [B, S * hop].
        mel: Log-mels of the same frames, as in the mel of the whole clip or in `Batch.mels`, [B, S, F].
        utterance: Number of the utterance of each segment in the batch, int64 [B].
    """

    wave: Tensor
    mel: Tensor
    utterance: Tensor


def draw_starts(batch: Batch, config: SegmentConfig, seed: int) -> Tensor:
    """Draws the starts of the segments of a batch, each within one piece; keyed by (seed, lane, pack).

    Args:
        batch: Batch of one pack or several, on the host: reading from a device would block until it is idle.
        config: Length and number of the segments.
        seed: Seed of the starts.

    Returns:
        First frame of each segment, counted over all blocks of the batch, int64 [B].

    Raises:
        ValueError: if a pack has no piece that is long enough.
    """
    blocks, frames = batch.blocks, config.frames
    starts, num_utterances, first = [], 0, 0
    for pack in batch.packs:
        rows = slice(first, first + pack.num_blocks)
        possible = _possible_starts(blocks.utterance[rows], blocks.valid[rows], frames)
        if not len(possible):
            keys = batch.keys[num_utterances : num_utterances + pack.num_utterances]
            total = int(blocks.valid[rows].sum())
            raise ValueError(
                f"the pack of {', '.join(key for key in keys if key)} has {total} frames in all, and no segment of "
                f"{frames} frames fits into one clip: lower --model.segments.frames or raise --data.pack_frames"
            )
        random = keyed_generator("segments", seed, pack.lane, pack.pack)
        drawn = torch.randint(len(possible), (config.per_pack,), generator=random)
        starts.append(possible[drawn] + first * blocks.block_size)
        first, num_utterances = rows.stop, num_utterances + pack.num_utterances
    return torch.cat(starts)


def slice_segments(batch: Batch, frames: int, mel: MelSpectrogram) -> Segments:
    """Returns the segments of S frames that begin at `Batch.starts`; `mel` is used where `Batch.mels` is None."""
    assert batch.starts is not None, "draw_starts comes first"
    blocks, hop, pad = batch.blocks, mel.config.hop_length, mel.config.pad
    at = batch.starts[:, None] + torch.arange(frames, device=batch.wave.device)  # [B, S]
    inner = batch.wave[:, pad : batch.wave.shape[1] - pad].reshape(-1, hop)  # [M * W, hop]
    mels = (mel.frames(batch.wave) if batch.mels is None else batch.mels).flatten(0, 1)  # [M * W, F]
    return Segments(inner[at].flatten(1), mels[at], blocks.utterance[batch.starts // blocks.block_size])


def _possible_starts(utterance: Tensor, valid: Tensor, frames: int) -> Tensor:
    """Returns the frames of a pack at which a segment may begin: first and last frame valid and of one utterance.

    Padding is only at the ends of utterances, so that all frames between are valid too.

    >>> _possible_starts(torch.tensor([0, 0, 1]), torch.tensor([[1, 1], [1, 0], [1, 1]]).bool(), frames=2).tolist()
    [0, 1, 4]
    """
    owner = utterance[:, None].expand_as(valid).flatten()
    owner = owner.masked_fill(~valid.flatten(), -1)
    count = max(0, len(owner) - frames + 1)
    head, tail = owner[:count], owner[frames - 1 :][:count]
    return ((head >= 0) & (head == tail)).nonzero()[:, 0]
