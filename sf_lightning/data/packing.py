"""Clips cut into blocks and packed, so that every step does the same work on every rank.

A pack has a fixed number M of blocks and a fixed number of reference crops. A clip that does not fit whole
is cut, and its tail opens the next pack. Each block carries its wave with the context that a mel frame
needs, so mels are made on the device, block by block, equal to those of the whole clip.

Letters: U utterances (pieces of clips), M blocks, W frames of a block, K tokens of a block, N samples.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.lanes import Drawn, LaneState
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

    @classmethod
    def of_packs(cls, packs: Sequence[Pack]) -> "Batch":
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


@dataclass(frozen=True)
class Piece:
    """A run of whole blocks of one clip, from `first` up to but without `end`."""

    drawn: Drawn
    first: int
    end: int

    def __len__(self) -> int:
        return self.end - self.first

    def waves(self, shape: PackShape) -> list[Tensor]:
        """The wave of each block with its context, [., pad + W * hop + pad], in parts: views but at the edges."""
        size, pad = shape.block_size * shape.mel.hop_length, shape.mel.pad
        wave, first, end = torch.from_numpy(self.drawn.clip.wave), self.first, self.end
        inside = (len(wave) - pad) // size  # blocks from 1 up to but without this one lie wholly within the wave
        parts = ((first, min(end, 1)), (max(first, 1), min(end, inside)), (max(first, inside, 1), end))
        return [
            _stretch(wave, start * size - pad, stop * size + pad, pad).unfold(0, size + 2 * pad, size)
            for start, stop in parts
            if start < stop
        ]

    def tokens(self, shape: PackShape) -> Tensor:
        """[., K]; 0 beyond the clip."""
        per_block = shape.block_size // shape.frames_per_token
        out = torch.zeros(len(self), per_block, dtype=torch.int64)
        held = torch.from_numpy(self.drawn.clip.tokens[self.first * per_block : self.end * per_block])
        out.view(-1)[: len(held)] = held
        return out

    def valid(self, shape: PackShape) -> Tensor:
        """Which frames the clip has, [., W]."""
        frames = torch.arange(self.first * shape.block_size, self.end * shape.block_size)
        return frames.view(len(self), -1) < len(self.drawn.clip.tokens) * shape.frames_per_token


def _stretch(wave: Tensor, start: int, stop: int, pad: int) -> Tensor:
    """Samples of a wave; beyond its edges lie `pad` of its reflection, as `MelSpectrogram` has it, and zeros."""
    if 0 <= start and stop <= len(wave):
        return wave[start:stop]
    left, right = wave[1 : 1 - min(start, 0)].flip(0), wave[-pad - 1 : -1].flip(0)[: max(0, stop - len(wave))]
    out = wave.new_zeros(stop - start)
    torch.cat([left, wave[max(0, start) : stop], right], out=out[: min(stop, len(wave) + pad) - start])
    return out


def pack(draws: Iterable[Drawn], shape: PackShape, lane: int = 0, state: LaneState | None = None) -> Iterator[Pack]:
    """Packs clips; what remains at the end of a finite stream makes a last pack with padding.

    Args:
        draws: Clips, each with the state that begins with it.
        shape: Of a pack.
        lane: Keys the random draws.
        state: Where the lane begins: its `pack` is counted on, its `block` is cut off the first clip.
    """
    number = state.pack if state else 0
    pieces: list[Piece] = []
    free = shape.num_blocks
    for drawn in draws:
        count = -(-len(drawn.clip.tokens) * shape.frames_per_token // shape.block_size)
        first = drawn.state.block
        while first < count:
            end = min(count, first + free)
            pieces.append(Piece(drawn, first, end))
            free -= end - first
            first = end
            if free == 0 or len(pieces) == shape.max_pieces:
                number += 1
                used_up = first == count
                after = replace(drawn.after if used_up else drawn.state, block=0 if used_up else first, pack=number)
                yield _assemble(pieces, shape, (lane, number - 1), after)
                pieces, free = [], shape.num_blocks
    if pieces:
        yield _assemble(pieces, shape, (lane, number), LaneState())


def _assemble(pieces: list[Piece], shape: PackShape, key: tuple[int, int], state: LaneState) -> Pack:
    def fill(tensors: list[Tensor], count: int) -> Tensor:
        out = tensors[0].new_empty(count, *tensors[0].shape[1:])
        length = sum(len(each) for each in tensors)
        torch.cat(tensors, out=out[:length])
        out[length:] = 0
        return out

    blocks = Blocks(
        fill([torch.full((len(piece),), i) for i, piece in enumerate(pieces)], shape.num_blocks),
        fill([torch.arange(len(piece)) for piece in pieces], shape.num_blocks),
        fill([piece.valid(shape) for piece in pieces], shape.num_blocks),
        shape.max_pieces,
        shape.num_blocks,
        packed=True,
    )
    return Pack(
        wave=fill([part for piece in pieces for part in piece.waves(shape)], shape.num_blocks),
        tokens=fill([piece.tokens(shape) for piece in pieces], shape.num_blocks),
        blocks=blocks,
        reference=fill([torch.from_numpy(piece.drawn.reference)[None] for piece in pieces], shape.max_pieces),
        x_vector=fill([torch.from_numpy(piece.drawn.clip.x_vector)[None] for piece in pieces], shape.max_pieces),
        keys=[piece.drawn.clip.key for piece in pieces],
        key=key,
        state=state,
    )
