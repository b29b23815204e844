"""Clips cut into blocks and packed, so that every step does the same work on every rank.

A pack has a fixed number M of blocks and a fixed number of reference crops. A clip that does not fit whole
is cut, and its tail opens the next pack. Each block carries its wave with the context that a mel frame
needs, so mels are made on the device, block by block, equal to those of the whole clip.

Letters: U utterances (pieces of clips), M blocks, W frames of a block, K tokens of a block, N samples.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch import Tensor

from sf_lightning.audio.mel import MelConfig
from sf_lightning.audio.wave import Wave
from sf_lightning.data.lanes import DrawnClip, LaneState
from sf_lightning.model.blocks import Blocks


@dataclass
class Pack:
    """M blocks of one or more pieces.

    Attributes:
        wave: Each block's samples with their context, float32 [M, pad + W * hop + pad].
        tokens: int64 [M, K]; 0 under padding.
        blocks: Where the blocks belong.
        reference: A crop of each piece's speaker, float32 [U, N]; zeros where there is no piece.
        x_vector: Of each piece, float32 [U, X]; X is 0 where none is wanted.
        keys: The clip of each piece, in order.
        key: Of this pack's random draws: (lane, number of the pack in its lane).
        state: Where the lane stands after this pack.
        skipped: Broken samples met so far in this lane, by cause.
    """

    wave: Tensor
    tokens: Tensor
    blocks: Blocks
    reference: Tensor
    x_vector: Tensor
    keys: list[str]
    key: tuple[int, int] = (0, 0)
    state: LaneState = LaneState()
    skipped: dict[str, int] = field(default_factory=dict)


@dataclass
class Batch:
    """The packs of one step, one of each lane that a rank owns, laid one after the other.

    Attributes:
        wave: [M, pad + W * hop + pad], M over all packs.
        tokens: [M, K].
        blocks: Where the blocks belong.
        reference: [U, N].
        x_vector: [U, X].
        packs: Blocks and utterances of each pack, with its lane and number: what keys the random draws.
        keys: The clip of each utterance, [U]; empty where a pack has fewer pieces than it may.
        num_frames: Valid frames, known without asking the device.
        states: Where each lane stands after this batch.
        skipped: Broken samples met so far, by lane and cause.
        mels: Log-mels [M, W, F] to be taken for those of the waves, if there are any.
        starts: Frames, of all blocks laid one after the other, at which segments begin, int64 [B], if any are cut.
    """

    wave: Tensor
    tokens: Tensor
    blocks: Blocks
    reference: Tensor
    x_vector: Tensor
    packs: list["PackKey"]
    keys: list[str]
    num_frames: int
    states: dict[int, LaneState]
    skipped: dict[int, dict[str, int]]
    mels: Tensor | None = None
    starts: Tensor | None = None

    @classmethod
    def from_packs(cls, packs: Sequence[Pack]) -> "Batch":
        """Lays packs one after the other."""
        return cls(
            torch.cat([pack.wave for pack in packs]),
            torch.cat([pack.tokens for pack in packs]),
            Blocks.cat([pack.blocks for pack in packs]),
            torch.cat([pack.reference for pack in packs]),
            torch.cat([pack.x_vector for pack in packs]),
            [PackKey(len(pack.blocks), pack.blocks.num_utterances, *pack.key) for pack in packs],
            [key for pack in packs for key in pack.keys + [""] * (pack.blocks.num_utterances - len(pack.keys))],
            sum(int(pack.blocks.valid.sum()) for pack in packs),
            {pack.key[0]: pack.state for pack in packs},
            {pack.key[0]: pack.skipped for pack in packs},
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Returns the batch on a device."""
        return replace(
            self,
            wave=self.wave.to(device, non_blocking=non_blocking),
            tokens=self.tokens.to(device, non_blocking=non_blocking),
            blocks=self.blocks.to(device, non_blocking=non_blocking),
            reference=self.reference.to(device, non_blocking=non_blocking),
            x_vector=self.x_vector.to(device, non_blocking=non_blocking),
            starts=None if self.starts is None else self.starts.to(device, non_blocking=non_blocking),
        )

    def pin_memory(self) -> "Batch":
        """Returns the batch in pinned memory, for copies that do not wait."""
        return replace(
            self,
            wave=self.wave.pin_memory(),
            tokens=self.tokens.pin_memory(),
            blocks=self.blocks.pin_memory(),
            reference=self.reference.pin_memory(),
            x_vector=self.x_vector.pin_memory(),
        )


@dataclass(frozen=True)
class PackKey:
    """The size of a pack in its batch, and the key of its random draws."""

    num_blocks: int
    num_utterances: int
    lane: int
    pack: int


@dataclass(frozen=True)
class PackShape:
    """The fixed shape of a pack.

    Args:
        num_blocks: M.
        block_size: W, frames of a block.
        frames_per_token: Frames of a token.
        max_pieces: U, pieces of clips in a pack; blocks beyond the last piece are padding.
        mel: For hop and context.
    """

    num_blocks: int
    block_size: int
    frames_per_token: int
    max_pieces: int
    mel: MelConfig


class _Filling:
    """A pack that is being filled, each piece as soon as it is there: its clip then still lies in the cache."""

    def __init__(self, shape: PackShape) -> None:
        self.shape = shape
        size, count = shape.block_size * shape.mel.hop_length + 2 * shape.mel.pad, shape.num_blocks
        self.wave = np.empty((count, size), np.float32)
        self.tokens = np.zeros((count, shape.block_size // shape.frames_per_token), np.int64)
        self.utterance, self.position = np.zeros((2, count), np.int64)
        self.valid = np.zeros((count, shape.block_size), np.bool_)
        self.pieces: list[DrawnClip] = []
        self.used = 0

    @property
    def free(self) -> int:
        """Blocks that it can still take."""
        return self.shape.num_blocks - self.used if len(self.pieces) < self.shape.max_pieces else 0

    def add(self, drawn: DrawnClip, first: int, end: int) -> None:
        """Takes the blocks of a clip from `first` up to but without `end`."""
        shape, here = self.shape, slice(self.used, self.used + end - first)
        at = self.used
        for part in _waves(drawn.clip.wave, first, end, shape):
            self.wave[at : at + len(part)] = part
            at += len(part)
        per_block = shape.block_size // shape.frames_per_token
        held = drawn.clip.tokens[first * per_block : end * per_block]
        self.tokens[here].reshape(-1)[: len(held)] = held
        self.valid[here].reshape(-1)[: len(held) * shape.frames_per_token] = True
        self.utterance[here] = len(self.pieces)
        self.position[here] = np.arange(end - first)
        self.pieces.append(drawn)
        self.used = here.stop

    def finish(self, key: tuple[int, int], state: LaneState) -> Pack:
        """Returns the pack, its rest padding."""
        shape = self.shape
        self.wave[self.used :] = 0
        utterance, position, valid = map(torch.from_numpy, (self.utterance, self.position, self.valid))
        return Pack(
            wave=torch.from_numpy(self.wave),
            tokens=torch.from_numpy(self.tokens),
            blocks=Blocks(utterance, position, valid, shape.max_pieces, shape.num_blocks, packed=True),
            reference=_filled([each.reference for each in self.pieces], shape.max_pieces),
            x_vector=_filled([each.clip.x_vector for each in self.pieces], shape.max_pieces),
            keys=[each.clip.key for each in self.pieces],
            key=key,
            state=state,
        )


def _filled(rows: list[NDArray[np.float32]], count: int) -> Tensor:
    """Rows on top of each other, and zeros to a count of them."""
    out = np.empty((count, *rows[0].shape), np.float32)
    np.stack(rows, out=out[: len(rows)])
    out[len(rows) :] = 0
    return torch.from_numpy(out)


def _waves(wave: Wave, first: int, end: int, shape: PackShape) -> Iterator[NDArray[np.float32]]:
    """The wave of each block with its context, [., pad + W * hop + pad], in parts: views of it but at its edges."""
    size, pad = shape.block_size * shape.mel.hop_length, shape.mel.pad
    inside = (len(wave) - pad) // size  # blocks from 1 up to but without this one lie wholly within the wave
    for start, stop in ((first, min(end, 1)), (max(first, 1), min(end, inside)), (max(first, inside, 1), end)):
        if start < stop:
            stretch = _stretch(wave, start * size - pad, stop * size + pad, pad)
            strides = (size * stretch.itemsize, stretch.itemsize)
            yield as_strided(stretch, (stop - start, size + 2 * pad), strides, writeable=False)


def _stretch(wave: Wave, start: int, stop: int, pad: int) -> Wave:
    """Samples of a wave; beyond its edges lie `pad` of its reflection, as `MelSpectrogram` has it, and zeros."""
    if 0 <= start and stop <= len(wave):
        return wave[start:stop]
    out, before, after = np.zeros(stop - start, np.float32), max(0, -start), max(0, stop - len(wave))
    out[:before] = wave[before:0:-1]
    out[before : len(out) - after] = wave[max(0, start) : stop]
    mirrored = wave[-2 : -pad - 2 : -1][:after]
    out[len(out) - after :][: len(mirrored)] = mirrored
    return out


def pack_clips(
    draws: Iterable[DrawnClip], shape: PackShape, lane: int = 0, state: LaneState | None = None
) -> Iterator[Pack]:
    """Packs clips; what remains at the end of a finite stream makes a last pack with padding.

    Args:
        draws: Clips, each with the state that begins with it.
        shape: Of a pack.
        lane: Keys the random draws.
        state: Where the lane begins: its `pack` is counted on, its `block` is cut off the first clip.
    """
    number = state.pack if state else 0
    filling = _Filling(shape)
    for drawn in draws:
        count = -(-len(drawn.clip.tokens) * shape.frames_per_token // shape.block_size)
        first = drawn.state.block
        while first < count:
            end = min(count, first + filling.free)
            filling.add(drawn, first, end)
            first = end
            if not filling.free:
                number += 1
                used_up = first == count
                after = replace(drawn.after if used_up else drawn.state, block=0 if used_up else first, pack=number)
                yield filling.finish((lane, number - 1), after)
                filling = _Filling(shape)
    if filling.pieces:
        yield filling.finish((lane, number), LaneState())
