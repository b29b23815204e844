"""Attention among the frames of a block and of its neighbours.

Two paths: bounded spans run on the list of blocks itself, [M, H, W, Dh] x [M, H, k W, Dh] with k neighbours
and no T x T mask; unbounded ones (the baselines) are laid out per utterance and run dense. The dense path
can run any span and is the reference that the tests hold the other against.

Letters: U utterances, M blocks, W frames of a block, H heads, D width, Dh head width, k blocks of a span.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from sf_lightning.model.blocks import Blocks, shift
from sf_lightning.model.layout import Span
from sf_lightning.model.rope import rotate, rotation


class Neighbourhood:
    """Masks and rotations of one forward call, made once per kind of span and shared by its layers."""

    def __init__(self, blocks: Blocks, head_width: int) -> None:
        self.blocks = blocks
        self.head_width = head_width
        self._cache: dict[tuple[str, Span], tuple[Tensor, Tensor]] = {}

    def near(self, span: Span) -> tuple[Tensor, Tensor]:
        """Returns the mask of keys, bool [M, 1, 1, k W], and their rotation, for a bounded span."""
        if ("near", span) not in self._cache:
            blocks, size = self.blocks, self.blocks.block_size
            keys = []
            for offset in span.offsets:
                if offset == 0:
                    # A block without valid frames must attend to something or its softmax is 0 / 0.
                    first = torch.arange(size, device=blocks.valid.device) == 0
                    keys.append(blocks.valid | first)
                else:
                    keys.append(shift(blocks.valid, offset) & blocks.neighbour(offset)[:, None])
            start, end = span.offsets[0] * size, (span.offsets[-1] + 1) * size
            table = rotation(torch.arange(start, end, device=blocks.valid.device), self.head_width)
            self._cache["near", span] = torch.cat(keys, dim=1)[:, None, None], table
        return self._cache["near", span]

    def dense(self, span: Span) -> tuple[Tensor, Tensor]:
        """Returns the mask [U, 1, T, T] and the rotation of T = longest * W frames, for any span."""
        if ("dense", span) not in self._cache:
            blocks = self.blocks
            valid = self.spread(blocks.valid).flatten(1)
            valid[:, 0] = True
            number = torch.arange(blocks.longest, device=valid.device).repeat_interleave(blocks.block_size)
            apart = number[None, :] - number[:, None]
            seen = (apart >= -span.back) & (apart <= span.ahead)
            # Frames beyond an utterance's end may see nothing; they are dropped, but must not be 0 / 0.
            alone = torch.eye(len(number), dtype=torch.bool, device=valid.device)
            table = rotation(torch.arange(len(number), device=valid.device), self.head_width)
            self._cache["dense", span] = ((seen & valid[:, None, :]) | alone)[:, None], table
        return self._cache["dense", span]

    def spread(self, x: Tensor) -> Tensor:
        """Lays a list of blocks [M, ...] out by utterance [U, longest, ...], zeros between."""
        blocks = self.blocks
        out = x.new_zeros(blocks.num_utterances + 1, blocks.longest, *x.shape[1:])
        # Blocks that belong to nobody go to a row of their own, so that they overwrite none.
        row = torch.where(blocks.valid[:, 0], blocks.utterance, blocks.num_utterances)
        return out.index_put((row, blocks.position), x)[: blocks.num_utterances]

    def gather(self, x: Tensor) -> Tensor:
        """The inverse of `spread`: [U, longest, ...] to [M, ...]."""
        return x[self.blocks.utterance, self.blocks.position]


class BlockAttention(nn.Module):
    """Multi-head self-attention over the blocks of a span, x [M, W, D] to [M, W, D].

    Args:
        width: D.
        num_heads: H; D / H must be even, for the rotation works on pairs.
        span: How far this layer looks.
    """

    def __init__(self, width: int, num_heads: int, span: Span) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.span = span
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, near: Neighbourhood) -> Tensor:
        """Attends within each block's span; `near` holds the masks of this list of blocks."""
        # [M, W, 3, H, Dh] -> 3 x [M, H, W, Dh]
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        y = self._near(q, k, v, near) if self.span.bounded else self._dense(q, k, v, near)
        return self.out(y.transpose(1, 2).flatten(2))

    def _near(self, q: Tensor, k: Tensor, v: Tensor, near: Neighbourhood) -> Tensor:
        mask, table = near.near(self.span)
        size, offsets = q.shape[2], self.span.offsets
        own = -offsets[0] * size
        k = torch.cat([shift(k, offset) for offset in offsets], dim=2)
        v = torch.cat([shift(v, offset) for offset in offsets], dim=2)
        q, k = rotate(q, table[:, own : own + size]), rotate(k, table)
        return attend(q, k, v, mask)

    def _dense(self, q: Tensor, k: Tensor, v: Tensor, near: Neighbourhood) -> Tensor:
        mask, table = near.dense(self.span)
        # [M, H, W, Dh] -> [U, longest, H, W, Dh] -> [U, H, T, Dh]
        q, k, v = (near.spread(x).transpose(1, 2).flatten(2, 3) for x in (q, k, v))
        y = attend(rotate(q, table), rotate(k, table), v, mask)
        y = y.unflatten(2, (near.blocks.longest, near.blocks.block_size)).transpose(1, 2)
        return near.gather(y)


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Scaled dot-product attention; `mask` says which keys count.

    PyTorch's own, but for training in bf16 on a CPU: there its backward takes 4 to 5 times as long as plain
    products do (torch 2.11, AVX-512; 5.6 against 1.5 ms for [32, 3, 24, 64], and no faster without a mask).
    """
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and torch.is_grad_enabled():
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
        return scores.masked_fill(~mask, float("-inf")).softmax(-1).to(v.dtype) @ v
    return scaled_dot_product_attention(q, k, v, attn_mask=mask)
