"""Attention among the frames of a block and of its neighbors.

Two paths: bounded spans run on the list of blocks itself, [M, H, W, Dh] x [M, H, k W, Dh] with k blocks in the span
and no T x T mask; unbounded spans (the baselines) are laid out per utterance and run dense. The dense path can run
any span and is the reference that the tests compare the block path with.

Letters: U utterances, M blocks, R block ranges, W frames of a block, H heads, D width, Dh head width, k blocks of a
span.
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
class KVCache:
    """Keys and values of one layer in one network evaluation, on both sides of block ranges.

    Attributes:
        left: Keys, not rotated, and values of the block before each range, [R, 2, H, W, Dh]; `update` replaces
            them. None for a layer that does not look back.
        right: Keys and values of the block after each range; None if no range has one or the layer does not look
            ahead.
    """

    left: Tensor | None = None
    right: Tensor | None = None

    def update(self, k: Tensor, v: Tensor, last: Tensor) -> None:
        """Replaces `left` by the keys and values, of [M, H, W, Dh], of the blocks numbered `last` [R]."""
        if self.left is not None:
            self.left = torch.stack([k[last], v[last]], dim=1)


class CachedContext(NamedTuple):
    """Where a list of blocks has neighbors that are in a `KVCache` instead of in the list.

    The list then consists of *block ranges*: consecutive blocks of one utterance that need not start at its first
    one.

    Attributes:
        first: Index of the first block of each range, int64 [R].
        last: Index of the block of each range after which the next range will start, int64 [R].
        left: Blocks whose previous block is cached, bool [M]; a cached previous block has no padding.
        right: Valid frames of the cached next block, bool [M, W]; None if no next block is cached.
    """

    first: Tensor
    last: Tensor
    left: Tensor
    right: Tensor | None = None


class AttentionMask(NamedTuple):
    """What the layers of one span attend to in one list of blocks; computed once per forward call.

    Attributes:
        mask: Which keys count: bool [M, 1, 1, k W] on blocks, [rows, 1, T, T] dense.
        has_neighbor: Which blocks have a neighbor in the list, by its offset, bool [M, 1, 1, 1]; empty if dense.
        table: Rotation table of the keys' positions, [2, k W, Dh / 2] or [2, T, Dh / 2].
        blocks: Utterance, position and padding of the blocks.
        context: Neighbors that are cached; None if there are none.
    """

    mask: Tensor
    has_neighbor: dict[int, Tensor]
    table: Tensor
    blocks: Blocks
    context: CachedContext | None = None

    def for_blocks(self, part: slice) -> "AttentionMask":
        """Returns the mask of a slice of the list, for a span that consists of the own block."""
        return AttentionMask(self.mask[part], {}, self.table, self.blocks[part])


def block_mask(span: Span, blocks: Blocks, head_width: int, context: CachedContext | None = None) -> AttentionMask:
    """Returns the mask of a bounded span on the list of blocks, with cached neighbors in `context`."""
    size, device = blocks.block_size, blocks.valid.device
    # A block without valid frames must attend to something or its softmax is 0 / 0.
    own = blocks.valid | (torch.arange(size, device=device) == 0)
    neighbors = {offset: blocks.has_neighbor(offset) for offset in span.offsets if offset}
    keys = [shift(blocks.valid, offset) & neighbors[offset][:, None] if offset else own for offset in span.offsets]
    if context is not None and span.back:
        keys[0] = keys[0] | context.left[:, None]
    if context is not None and context.right is not None and span.ahead:
        keys[-1] = keys[-1] | context.right
    positions = torch.arange(span.offsets[0] * size, (span.offsets[-1] + 1) * size, device=device)
    has_neighbor = {offset: exists[:, None, None, None] for offset, exists in neighbors.items()}
    mask = torch.cat(keys, dim=1)[:, None, None]
    return AttentionMask(mask, has_neighbor, rotation(positions, head_width), blocks, context)


def dense_mask(span: Span, blocks: Blocks, head_width: int) -> AttentionMask:
    """Returns the mask of any span on rows of T = longest * W frames: packs, or else utterances."""

    def per_frame(x: Tensor) -> Tensor:
        return _to_rows(x, blocks).repeat_interleave(blocks.block_size, dim=1)

    valid = _to_rows(blocks.valid, blocks).flatten(1)
    position, utterance = per_frame(blocks.position), per_frame(blocks.utterance)
    offset = position[:, None, :] - position[:, :, None]
    visible = (offset >= -span.back) & (offset <= span.ahead)
    visible = visible & (utterance[:, None, :] == utterance[:, :, None]) & valid[:, None, :]
    # Frames after an utterance's end may attend to nothing; they are dropped, but must not be 0 / 0.
    itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    positions = torch.arange(valid.shape[1], device=valid.device)
    return AttentionMask((visible | itself)[:, None], {}, rotation(positions, head_width), blocks)


def attention_mask(
    span: Span, blocks: Blocks, head_width: int, context: CachedContext | None = None
) -> AttentionMask:
    """Returns the mask of a span, for the path on which its layers run; see `block_mask`."""
    if span.bounded:
        return block_mask(span, blocks, head_width, context)
    return dense_mask(span, blocks, head_width)


class BlockAttention(nn.Module):
    """Multi-head self-attention over the blocks of a span, x [M, W, D] to [M, W, D].

    Args:
        width: D.
        num_heads: H; D / H must be even, because the rotation works on pairs.
        rope_heads: Number of heads, counted from the first, that are rotated by position.
        span: Blocks that the layer attends to.
    """

    def __init__(self, width: int, num_heads: int, rope_heads: int, span: Span) -> None:
        super().__init__()
        self.num_heads, self.rope_heads = num_heads, rope_heads
        self.span = span
        self.qkv = Linear(width, 3 * width)
        self.out = Linear(width, width)

    def forward(self, x: Tensor, mask: AttentionMask, cache: KVCache | None = None) -> Tensor:
        """Attends within each block's span.

        Args:
            x: Input, [M, W, D].
            mask: Mask of this span and this list of blocks.
            cache: Neighbors of block ranges, which `mask.context` places; its left context is updated.
        """
        q, k, v = self.project(x)
        if self.span.bounded:
            y = self._attend_on_blocks(q, k, v, mask, cache)
        else:
            y = self._attend_dense(q, k, v, mask)
        return self.out(y.transpose(1, 2).flatten(2))

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns queries, keys, both not rotated, and values [M, H, W, Dh] of x [M, W, D]."""
        # [M, W, 3, H, Dh] -> 3 x [M, H, W, Dh]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return q, k, v

    def _attend_on_blocks(
        self, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, cache: KVCache | None = None
    ) -> Tensor:
        size, offsets = q.shape[2], self.span.offsets
        own = -offsets[0] * size
        if len(offsets) > 1:
            own_k, own_v = k, v
            k = torch.cat([_neighbor(own_k, 0, at, mask, cache) for at in offsets], dim=2)
            v = torch.cat([_neighbor(own_v, 1, at, mask, cache) for at in offsets], dim=2)
            if cache is not None and mask.context is not None:
                cache.update(own_k, own_v, mask.context.last)
        q = rotate(q, mask.table[:, own : own + size], self.rope_heads)
        return attend(q, rotate(k, mask.table, self.rope_heads), v, mask.mask)

    def _attend_dense(self, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask) -> Tensor:
        blocks = mask.blocks
        # [M, H, W, Dh] -> [rows, longest, H, W, Dh] -> [rows, H, T, Dh]
        q, k, v = (_to_rows(x, blocks).transpose(1, 2).flatten(2, 3) for x in (q, k, v))
        q, k = (rotate(x, mask.table, self.rope_heads) for x in (q, k))
        y = attend(q, k, v, mask.mask).unflatten(2, (blocks.longest, blocks.block_size)).transpose(1, 2)
        return y.flatten(0, 1) if blocks.packed else y[blocks.utterance, blocks.position]


def _neighbor(x: Tensor, kind: int, offset: int, mask: AttentionMask, cache: KVCache | None) -> Tensor:
    """Returns the keys (`kind` 0) or values (1) [M, H, W, Dh] of the block `offset` blocks from each block.

    They are 0 where there is no such block: masked ones have weight 0, but 0 x NaN is NaN, and a stream with NaN
    must not affect the stream next to it in the list.
    """
    if offset == 0:
        return x
    x = shift(x, offset).masked_fill(~mask.has_neighbor[offset], 0)
    if cache is None or mask.context is None:
        return x
    cached, place = (cache.left, mask.context.first) if offset < 0 else (cache.right, mask.context.last)
    return x if cached is None else x.index_copy(0, place, cached[:, kind].to(x))


def _to_rows(x: Tensor, blocks: Blocks) -> Tensor:
    """Lays a list of blocks [M, ...] out by pack, or by utterance with zeros between, [rows, longest, ...]."""
    if blocks.packed:
        return x.unflatten(0, (-1, blocks.longest))
    out = x.new_zeros(blocks.num_utterances + 1, blocks.longest, *x.shape[1:])
    # Blocks without valid frames go to a separate row, so that they overwrite no block of an utterance.
    row = torch.where(blocks.valid[:, 0], blocks.utterance, blocks.num_utterances)
    return out.index_put((row, blocks.position), x)[: blocks.num_utterances]


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Returns scaled dot-product attention; `mask` is True where a key counts.

    Uses PyTorch's implementation except for training in bf16 on a CPU, where its backward pass takes 4 to 5 times
    as long as plain products (torch 2.11, AVX-512; 5.6 against 1.5 ms for [32, 3, 24, 64], and no faster without a
    mask).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled():
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return scores.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype) @ v
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)
