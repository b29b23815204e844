"""Attention among the frames of a block and of its neighbours.

Two paths: bounded spans run on the list of blocks itself, [M, H, W, Dh] x [M, H, k W, Dh] with k neighbours
and no T x T mask; unbounded ones (the baselines) are laid out per utterance and run dense. The dense path
can run any span and is the reference that the tests hold the other against.

Letters: U utterances, M blocks, W frames of a block, H heads, D width, Dh head width, k blocks of a span.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sf_lightning.model.blocks import Blocks, shift
from sf_lightning.model.layout import Span
from sf_lightning.model.linear import Linear
from sf_lightning.model.rope import rotate, rotation


@dataclass
class Memory:
    """Keys and values of one layer in one evaluation at the edge of runs of blocks: what a stream carries on.

    A *run* is a row of blocks of one utterance that does not begin at its first one.

    Attributes:
        first: The first block of each run, int64 [R].
        last: The block of each run after which its next run will begin, int64 [R].
        edge: Keys, unrotated, and values of the block before each run, [R, 2, H, W, Dh]; replaced by those of
            the block `last` when the layer runs. None for a layer that does not look back.
        beyond: Those of the block after each run, where `last` is its last one; None if there is no such block
            or the layer does not look ahead.
    """

    first: Tensor
    last: Tensor
    edge: Tensor | None
    beyond: Tensor | None = None

    def neighbours(self, k: Tensor, v: Tensor, offset: int, there: Tensor) -> tuple[Tensor, Tensor]:
        """Returns keys and values [M, H, W, Dh] of every block's neighbour, and keeps those at the edge.

        Where no neighbour is `there`, bool [M, 1, 1, 1], they are zero: masked ones count as 0, but 0 x NaN is NaN,
        and a stream that fails must not take the next one with it.
        """
        known, place = (self.edge, self.first) if offset < 0 else (self.beyond, self.last)
        if offset < 0 and self.edge is not None:
            self.edge = torch.stack([k[self.last], v[self.last]], dim=1)
        pair = tuple(shift(x, offset).masked_fill(~there, 0) for x in (k, v))
        if known is not None:
            pair = tuple(x.index_copy(0, place, known[:, i].to(x)) for i, x in enumerate(pair))
        return pair[0], pair[1]


class Edges(NamedTuple):
    """Which blocks have neighbours that lie in a `Memory` and not in the list.

    Attributes:
        continued: Blocks whose previous block does, bool [M]; what is remembered there is always whole.
        followed: Valid frames of the next block that does, bool [M, W]; None if there are none.
    """

    continued: Tensor
    followed: Tensor | None = None


class AttentionMask(NamedTuple):
    """What the layers of one span see in one list of blocks; made once per forward call.

    Attributes:
        mask: Which keys count: bool [M, 1, 1, k W] on blocks, [rows, 1, T, T] dense.
        there: Which blocks have a neighbour in the list, by offset, bool [M, 1, 1, 1]; empty where dense.
        table: The rotation of the keys' positions, [2, k W, Dh / 2] or [2, T, Dh / 2].
        blocks: Where the blocks belong.
    """

    mask: Tensor
    there: dict[int, Tensor]
    table: Tensor
    blocks: Blocks

    def of(self, some: slice) -> "AttentionMask":
        """Returns that of some blocks, for a span that does not leave the own block."""
        return AttentionMask(self.mask[some], {}, self.table, self.blocks[some])


def block_mask(span: Span, blocks: Blocks, head_width: int, edges: Edges | None = None) -> AttentionMask:
    """Returns the sight of a bounded span on the list of blocks itself.

    Args:
        span: How far it looks.
        blocks: Where the blocks belong.
        head_width: Dh.
        edges: What lies around runs of blocks.
    """
    size, device = blocks.block_size, blocks.valid.device
    # A block without valid frames must attend to something or its softmax is 0 / 0.
    own = blocks.valid | (torch.arange(size, device=device) == 0)
    there = {offset: blocks.has_neighbor(offset) for offset in span.offsets if offset}
    keys = [shift(blocks.valid, offset) & there[offset][:, None] if offset else own for offset in span.offsets]
    if edges is not None and span.back:
        keys[0] = keys[0] | edges.continued[:, None]
    if edges is not None and edges.followed is not None and span.ahead:
        keys[-1] = keys[-1] | edges.followed
    positions = torch.arange(span.offsets[0] * size, (span.offsets[-1] + 1) * size, device=device)
    there = {offset: each[:, None, None, None] for offset, each in there.items()}
    return AttentionMask(torch.cat(keys, dim=1)[:, None, None], there, rotation(positions, head_width), blocks)


def dense_mask(span: Span, blocks: Blocks, head_width: int) -> AttentionMask:
    """Returns the sight of any span on rows of T = longest * W frames: packs, or else utterances."""

    def each_frame(x: Tensor) -> Tensor:
        return _spread(x, blocks).repeat_interleave(blocks.block_size, dim=1)

    valid = _spread(blocks.valid, blocks).flatten(1)
    number, utterance = each_frame(blocks.position), each_frame(blocks.utterance)
    apart = number[:, None, :] - number[:, :, None]
    seen = (apart >= -span.back) & (apart <= span.ahead)
    seen = seen & (utterance[:, None, :] == utterance[:, :, None]) & valid[:, None, :]
    # Frames beyond an utterance's end may see nothing; they are dropped, but must not be 0 / 0.
    alone = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    places = torch.arange(valid.shape[1], device=valid.device)
    return AttentionMask((seen | alone)[:, None], {}, rotation(places, head_width), blocks)


def sight(span: Span, blocks: Blocks, head_width: int, edges: Edges | None = None) -> AttentionMask:
    """Returns the sight of a span, on the path on which its layers run; see `block_mask`."""
    if span.bounded:
        return block_mask(span, blocks, head_width, edges)
    return dense_mask(span, blocks, head_width)


class BlockAttention(nn.Module):
    """Multi-head self-attention over the blocks of a span, x [M, W, D] to [M, W, D].

    Args:
        width: D.
        num_heads: H; D / H must be even, for the rotation works on pairs.
        rope_heads: The first heads, which are rotated.
        span: How far this layer looks.
    """

    def __init__(self, width: int, num_heads: int, rope_heads: int, span: Span) -> None:
        super().__init__()
        self.num_heads, self.rope_heads = num_heads, rope_heads
        self.span = span
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, sight: AttentionMask, memory: Memory | None = None) -> Tensor:
        """Attends within each block's span.

        Args:
            x: [M, W, D].
            sight: That of this span and this list of blocks.
            memory: What lies around runs of blocks, for a span that leaves the own block.
        """
        q, k, v = self.project(x)
        y = self._near(q, k, v, sight, memory) if self.span.bounded else self._dense(q, k, v, sight)
        return self.out(y.transpose(1, 2).flatten(2))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries, keys, unrotated both, and values [M, H, W, Dh] of x [M, W, D]."""
        # [M, W, 3, H, Dh] -> 3 x [M, H, W, Dh]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _near(self, q: Tensor, k: Tensor, v: Tensor, sight: AttentionMask, memory: Memory | None = None) -> Tensor:
        size, offsets = q.shape[2], self.span.offsets
        own = -offsets[0] * size
        if len(offsets) > 1:
            memory = memory or Memory(sight.blocks.position, sight.blocks.position, None)
            pairs = [memory.neighbours(k, v, at, sight.there[at]) if at else (k, v) for at in offsets]
            k, v = (torch.cat(each, dim=2) for each in zip(*pairs, strict=True))
        q = rotate(q, sight.table[:, own : own + size], self.rope_heads)
        return attend(q, rotate(k, sight.table, self.rope_heads), v, sight.mask)

    def _dense(self, q: Tensor, k: Tensor, v: Tensor, sight: AttentionMask) -> Tensor:
        blocks = sight.blocks
        # [M, H, W, Dh] -> [rows, longest, H, W, Dh] -> [rows, H, T, Dh]
        q, k, v = (_spread(x, blocks).transpose(1, 2).flatten(2, 3) for x in (q, k, v))
        q, k = (rotate(x, sight.table, self.rope_heads) for x in (q, k))
        y = attend(q, k, v, sight.mask).unflatten(2, (blocks.longest, blocks.block_size)).transpose(1, 2)
        return y.flatten(0, 1) if blocks.packed else y[blocks.utterance, blocks.position]


def _spread(x: Tensor, blocks: Blocks) -> Tensor:
    """Lays a list of blocks [M, ...] out by pack, or by utterance with zeros between, [rows, longest, ...]."""
    if blocks.packed:
        return x.unflatten(0, (-1, blocks.longest))
    out = x.new_zeros(blocks.num_utterances + 1, blocks.longest, *x.shape[1:])
    # Blocks that belong to nobody go to a row of their own, so that they overwrite none.
    row = torch.where(blocks.valid[:, 0], blocks.utterance, blocks.num_utterances)
    return out.index_put((row, blocks.position), x)[: blocks.num_utterances]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Scaled dot-product attention; `mask` says which keys count.

    PyTorch's own, but for training in bf16 on a CPU: there its backward takes 4 to 5 times as long as plain
    products do (torch 2.11, AVX-512; 5.6 against 1.5 ms for [32, 3, 24, 64], and no faster without a mask).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled():
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return scores.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype) @ v
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)
