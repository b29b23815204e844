"""Segments of speech, cut out of packs at random: what a vocoder is trained on.

A pack holds the wave of its pieces in blocks, each with the context of its mel. Laid one after the other the
blocks of a piece are its wave again, and their mels are those of the whole clip; a segment is a window on both.

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
"""Of the blocks in which a pack comes; segments begin at any frame."""


@dataclass(frozen=True)
class SegmentConfig:
    """How segments are cut.

    Args:
        frames: S, frames of a segment.
        per_pack: Segments of a pack: a step trains on so many of each lane.
    """

    frames: int = 32
    per_pack: int = 8

    def __post_init__(self) -> None:
        if self.frames < 1 or self.per_pack < 1:
            raise ValueError(f"segments: frames {self.frames}, per_pack {self.per_pack}: wanted 1 or more of each")


class Segments(NamedTuple):
    """Segments of a batch.

    Attributes:
        wave: [B, S * hop].
        mel: Log-mels of the same frames, each as the whole clip has it, [B, S, F]; or those that the batch brings.
        utterance: Of the batch, int64 [B].
    """

    wave: Tensor
    mel: Tensor
    utterance: Tensor


def draw_starts(batch: Batch, config: SegmentConfig, seed: int) -> Tensor:
    """Draws where the segments of a batch begin, none across the edge of a piece; keyed by (seed, lane, pack).

    Args:
        batch: Of one pack or several, on the host: a device would have to be waited for.
        config: How.
        seed: Of where they begin.

    Returns:
        Frames of all blocks laid one after the other, int64 [B].

    Raises:
        ValueError: if a pack holds no piece that is long enough.
    """
    blocks, frames = batch.blocks, config.frames
    starts, offset, first = [], 0, 0
    for pack in batch.packs:
        here = slice(first, first + pack.num_blocks)
        begins = _begins(blocks.utterance[here], blocks.valid[here], frames)
        if not len(begins):
            keys = batch.keys[offset : offset + pack.num_utterances]
            longest = int(blocks.valid[here].sum())
            raise ValueError(
                f"no segment of {frames} frames fits into {', '.join(key for key in keys if key)}: the pack has "
                f"{longest} frames in all: lower --model.segments.frames or raise --data.pack_frames"
            )
        random = keyed_generator(seed, pack.lane, pack.pack, frames)
        drawn = torch.randint(len(begins), (config.per_pack,), generator=random)
        starts.append(begins[drawn] + first * blocks.block_size)
        first, offset = here.stop, offset + pack.num_utterances
    return torch.cat(starts)


def slice_segments(batch: Batch, frames: int, mel: MelSpectrogram) -> Segments:
    """Cuts segments of so many frames out of a batch, which knows where they begin; on its device."""
    assert batch.starts is not None, "draw_starts comes first"
    blocks, hop, pad = batch.blocks, mel.config.hop_length, mel.config.pad
    at = batch.starts[:, None] + torch.arange(frames, device=batch.wave.device)  # [B, S]
    inner = batch.wave[:, pad : batch.wave.shape[1] - pad].reshape(-1, hop)  # [M * W, hop]
    mels = (mel.frames(batch.wave) if batch.mels is None else batch.mels).flatten(0, 1)  # [M * W, F]
    return Segments(inner[at].flatten(1), mels[at], blocks.utterance[batch.starts // blocks.block_size])


def _begins(utterance: Tensor, valid: Tensor, frames: int) -> Tensor:
    """Frames of a pack at which a segment may begin: its first and its last are valid and of one utterance.

    Padding lies at the ends of utterances alone, so all between are so too.

    >>> _begins(torch.tensor([0, 0, 1]), torch.tensor([[1, 1], [1, 0], [1, 1]]).bool(), frames=2).tolist()
    [0, 1, 4]
    """
    owner = utterance[:, None].expand_as(valid).flatten()
    owner = owner.masked_fill(~valid.flatten(), -1)
    count = max(0, len(owner) - frames + 1)
    head, tail = owner[:count], owner[frames - 1 :][:count]
    return ((head >= 0) & (head == tail)).nonzero()[:, 0]
