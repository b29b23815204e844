"""Clips cut into blocks and packed, so that every step does the same work on every rank.

A pack has a fixed number M of blocks and of reference crops. A clip that does not fit whole is cut, and its tail
opens the next pack. The wave of each block includes the context of its mel frames, so that the device can compute
mels block by block, equal to those of the whole clip.

Letters: U utterances (pieces of clips), M blocks, W frames of a block, K tokens of a block, N samples of a crop, X
width of an x-vector, F mel bands.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray
from torch import Tensor

from sf_lightning.audio.mel import MelConfig
from sf_lightning.audio.wave import Wave
from sf_lightning.data.lanes import DrawnClip, LaneState
from sf_lightning.model.blocks import Blocks


@dataclass(frozen=True)
class PackKey:
    """Size of a pack in its batch, and the key of its random draws: lane, and number of the pack in its lane."""

    num_blocks: int
    num_utterances: int
    lane: int
    pack: int


@dataclass
class Batch:
    """One pack, or the concatenated packs of a step, one of each lane of a rank.

    Attributes:
        wave: Samples of each block with their context, float32 [M, pad + W * hop + pad], M over all packs.
        tokens: Tokens, int64 [M, K]; 0 under padding.
        blocks: Utterance, position and valid frames of each block.
        reference: Reference crop of each utterance, float32 [U, N]; zeros for unused ones.
        x_vector: X-vector of each utterance, float32 [U, X]; X is 0 where none is read.
        packs: Size and key of each pack.
        keys: Key of the clip of each utterance, [U]; empty for unused ones.
        num_frames: Number of valid frames, known without waiting for the device.
        states: State of each lane after this batch.
        skipped: Number of broken samples met so far, by lane and cause.
        mels: Log-mels [M, W, F] that replace those of the waves; None where there are none.
        starts: First frame of each segment, counted over all blocks of the batch, int64 [B]; None without segments.
    """

    wave: Tensor
    tokens: Tensor
    blocks: Blocks
    reference: Tensor
    x_vector: Tensor
    packs: list[PackKey]
    keys: list[str]
    num_frames: int
    states: dict[int, LaneState]
    skipped: dict[int, dict[str, int]]
    mels: Tensor | None = None
    starts: Tensor | None = None

    @classmethod
    def from_packs(cls, packs: "Sequence[Batch]") -> "Batch":
        """Returns the concatenation of packs."""
        return cls(
            torch.cat([pack.wave for pack in packs]),
            torch.cat([pack.tokens for pack in packs]),
            Blocks.cat([pack.blocks for pack in packs]),
            torch.cat([pack.reference for pack in packs]),
            torch.cat([pack.x_vector for pack in packs]),
            [key for pack in packs for key in pack.packs],
            [key for pack in packs for key in pack.keys],
            sum(pack.num_frames for pack in packs),
            {lane: state for pack in packs for lane, state in pack.states.items()},
            {lane: causes for pack in packs for lane, causes in pack.skipped.items()},
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> "Batch":
        """Returns the batch on a device."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> "Batch":
        """Returns the batch in pinned memory, for asynchronous copies to the device."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Any], Any]) -> "Batch":
        names = ("wave", "tokens", "blocks", "reference", "x_vector", "starts")
        tensors = {name: getattr(self, name) for name in names}
        return replace(self, **{name: function(value) for name, value in tensors.items() if value is not None})


@dataclass(frozen=True)
class PackShape:
    """The fixed shape of packs.

    Args:
        num_blocks: Number of blocks M.
        block_size: Frames of a block W.
        frames_per_token: Frames per token.
        max_pieces: Largest number of pieces U in a pack; the blocks after the last piece are padding.
        mel: Mel settings, for hop length and context.
    """

    num_blocks: int
    block_size: int
    frames_per_token: int
    max_pieces: int
    mel: MelConfig


class _PackBuilder:
    """Fills a pack piece by piece, each copied while its clip is still in the CPU cache."""

    def __init__(self, shape: PackShape) -> None:
        self.shape = shape
        size, count = shape.block_size * shape.mel.hop_length + 2 * shape.mel.pad, shape.num_blocks
        self.wave = np.empty((count, size), np.float32)
        self.tokens = np.zeros((count, shape.block_size // shape.frames_per_token), np.int64)
        self.utterance, self.position = np.zeros((2, count), np.int64)
        self.valid = np.zeros((count, shape.block_size), np.bool_)
        self.pieces: list[DrawnClip] = []
        self.num_filled = 0

    @property
    def num_free(self) -> int:
        """Number of blocks that can still be added."""
        return self.shape.num_blocks - self.num_filled if len(self.pieces) < self.shape.max_pieces else 0

    def add(self, drawn: DrawnClip, first: int, end: int) -> None:
        """Adds blocks `first` to `end - 1` of a clip."""
        shape, target = self.shape, slice(self.num_filled, self.num_filled + end - first)
        start = self.num_filled
        for waves in _block_waves(drawn.clip.wave, first, end, shape):
            self.wave[start : start + len(waves)] = waves
            start += len(waves)
        per_block = shape.block_size // shape.frames_per_token
        tokens = drawn.clip.tokens[first * per_block : end * per_block]
        self.tokens[target].reshape(-1)[: len(tokens)] = tokens
        self.valid[target].reshape(-1)[: len(tokens) * shape.frames_per_token] = True
        self.utterance[target] = len(self.pieces)
        self.position[target] = np.arange(end - first)
        self.pieces.append(drawn)
        self.num_filled = target.stop

    def finish(self, lane: int, number: int, state: LaneState) -> Batch:
        """Returns the pack; blocks that are not filled are padding."""
        shape, count = self.shape, self.shape.max_pieces
        self.wave[self.num_filled :] = 0
        utterance, position, valid = map(torch.from_numpy, (self.utterance, self.position, self.valid))
        return Batch(
            wave=torch.from_numpy(self.wave),
            tokens=torch.from_numpy(self.tokens),
            blocks=Blocks(utterance, position, valid, count, shape.num_blocks, packed=True),
            reference=_stack_padded([piece.reference for piece in self.pieces], count),
            x_vector=_stack_padded([piece.clip.x_vector for piece in self.pieces], count),
            packs=[PackKey(shape.num_blocks, count, lane, number)],
            keys=[piece.clip.key for piece in self.pieces] + [""] * (count - len(self.pieces)),
            num_frames=int(self.valid.sum()),
            states={lane: state},
            skipped={lane: {}},
        )


def _stack_padded(rows: list[NDArray[np.float32]], count: int) -> Tensor:
    """Stacks rows, and zeros up to a count of them."""
    out = np.empty((count, *rows[0].shape), np.float32)
    np.stack(rows, out=out[: len(rows)])
    out[len(rows) :] = 0
    return torch.from_numpy(out)


def _block_waves(wave: Wave, first: int, end: int, shape: PackShape) -> Iterator[NDArray[np.float32]]:
    """Yields the waves of blocks with context, [., pad + W * hop + pad]; views of the wave except at its edges."""
    size, pad = shape.block_size * shape.mel.hop_length, shape.mel.pad
    inner_end = (len(wave) - pad) // size  # blocks 1 to inner_end - 1 are wholly within the wave
    for start, stop in (
        (first, min(end, 1)),
        (max(first, 1), min(end, inner_end)),
        (max(first, inner_end, 1), end),
    ):
        if start < stop:
            samples = _reflected_slice(wave, start * size - pad, stop * size + pad, pad)
            strides = (size * samples.itemsize, samples.itemsize)
            yield as_strided(samples, (stop - start, size + 2 * pad), strides, writeable=False)


def _reflected_slice(wave: Wave, start: int, stop: int, pad: int) -> Wave:
    """Returns samples of a wave extended by `pad` reflected samples, as in `MelSpectrogram`, and then by zeros."""
    if 0 <= start and stop <= len(wave):
        return wave[start:stop]
    out, before, after = np.zeros(stop - start, np.float32), max(0, -start), max(0, stop - len(wave))
    out[:before] = wave[before:0:-1]
    out[before : len(out) - after] = wave[max(0, start) : stop]
    mirrored = wave[-2 : -pad - 2 : -1][:after]
    out[len(out) - after :][: len(mirrored)] = mirrored
    return out


def pack_clips(
    clips: Iterable[DrawnClip], shape: PackShape, lane: int = 0, state: LaneState | None = None
) -> Iterator[Batch]:
    """Packs clips; the end of a finite stream makes a last pack with padding.

    Args:
        clips: Clips, each with the lane's state before it.
        shape: Shape of the packs.
        lane: Number of the lane, a key of the random draws.
        state: State in which the lane begins, for the number of the first pack; None for a fresh lane.
    """
    number = state.pack if state else 0
    builder = _PackBuilder(shape)
    for drawn in clips:
        count = -(-len(drawn.clip.tokens) * shape.frames_per_token // shape.block_size)
        first = drawn.state.block
        while first < count:
            end = min(count, first + builder.num_free)
            builder.add(drawn, first, end)
            first = end
            if not builder.num_free:
                number += 1
                is_complete = first == count
                reached = drawn.after if is_complete else drawn.state
                after = replace(reached, block=0 if is_complete else first, pack=number)
                yield builder.finish(lane, number - 1, after)
                builder = _PackBuilder(shape)
    if builder.pieces:
        yield builder.finish(lane, number, LaneState())
