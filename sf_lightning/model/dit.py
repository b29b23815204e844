"""The diffusion transformer: noisy mel, tokens and speaker in, velocity out, on a list of blocks.

A function of (x_t, t, condition), independent of flows and solvers. The condition depends on neither x_t nor t, so
`DiT.condition` computes it once.

Letters: U utterances, M blocks, W frames of a block, K tokens of a block, F mel bands, D width, S speaker.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu
from torch.utils.checkpoint import checkpoint

from sf_lightning.model.attention import AttentionMask, BlockAttention, CachedContext, KVCache, attention_mask
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.embeddings import TimeEmbedding, TokenEmbedding
from sf_lightning.model.layout import Layout, Span
from sf_lightning.model.linear import Linear


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the network; the defaults are the paper's, 333 M parameters at 22 layers.

    Args:
        width: D, channels of the residual stream.
        num_heads: Attention heads; width / num_heads must be even.
        rope_heads: Number of heads that are rotated by position; all by default. Qwen2.5-Omni token2wav rotates
            one.
        mlp_ratio: Width of the feed-forward layer over `width`.
        token_width: Width of the token embedding.
        token_repeat: Whether the frames of a token share one vector, as in Qwen2.5-Omni token2wav, instead of
            having one each.
        speaker_width: Width S of the speaker embedding, x-vectors included.
        null_condition: Null condition of guidance: "learned", a separate speaker vector and token id; or
            "zeros", token 0 and the speaker embedding of silence, as in Qwen2.5-Omni token2wav.
        num_bands: Mel bands F.
        vocabulary: Number of token codes.
        frames_per_token: Mel frames of a token; 4 for 25 Hz tokens and 100 Hz frames.

    >>> DiTConfig(width=192, num_heads=3, vocabulary=1024).frames_per_token
    4
    """

    width: int = 1024
    num_heads: int = 16
    rope_heads: int | None = None
    mlp_ratio: int = 2
    token_width: int = 512
    token_repeat: bool = False
    speaker_width: int = 192
    null_condition: Literal["learned", "zeros"] = "learned"
    num_bands: int = 80
    vocabulary: int = 6561
    frames_per_token: int = 4

    def __post_init__(self) -> None:
        if min(self.speaker_width, self.token_width, self.vocabulary) < 1:
            raise ValueError(
                f"dit: speaker_width {self.speaker_width}, token_width {self.token_width} and vocabulary "
                f"{self.vocabulary} must be at least 1"
            )
        if min(self.width, self.num_heads, self.mlp_ratio, self.num_bands, self.frames_per_token) < 1:
            raise ValueError(
                f"dit: width {self.width}, num_heads {self.num_heads}, mlp_ratio {self.mlp_ratio}, num_bands "
                f"{self.num_bands} and frames_per_token {self.frames_per_token} must be at least 1"
            )
        if self.width % (2 * self.num_heads):
            raise ValueError(f"dit.width {self.width} over dit.num_heads {self.num_heads} must be an even integer")
        if self.rope_heads is not None and not 0 <= self.rope_heads <= self.num_heads:
            raise ValueError(f"dit.rope_heads is {self.rope_heads}: expected 0 to dit.num_heads {self.num_heads}")

    @property
    def head_width(self) -> int:
        """Channels of a head."""
        return self.width // self.num_heads


class DiT(nn.Module):
    """A stack of AdaLN-zero layers, one per span of the layout.

    Args:
        config: Sizes of the network.
        layout: Spans of the layers; its block size must be a multiple of the frames of a token.

    Attributes:
        recompute: Whether training stores only the input of each layer and computes the rest again in the
            backward pass (activation checkpointing): less memory, a third more work.
    """

    def __init__(self, config: DiTConfig, layout: Layout) -> None:
        super().__init__()
        if layout.block_size % config.frames_per_token:
            raise ValueError(
                f"layout.block_size is {layout.block_size}: expected a multiple of the {config.frames_per_token} "
                "frames of a token (dit.frames_per_token)"
            )
        self.config, self.layout, self.recompute = config, layout, False
        self.time = TimeEmbedding(config.width)
        self.tokens = TokenEmbedding(
            config.vocabulary,
            config.token_width,
            config.frames_per_token,
            config.token_repeat,
            null=config.vocabulary if config.null_condition == "learned" else 0,
        )
        # One linear layer on [mel | tokens | speaker] in two parts: only the first depends on x_t.
        self.from_mel = nn.Linear(config.num_bands, config.width)
        self.from_condition = nn.Linear(config.token_width + config.speaker_width, config.width, bias=False)
        self.layers = nn.ModuleList(Layer(config, span) for span in layout.spans)
        # Six vectors for each layer and two for the output.
        counts = [6] * layout.num_layers + [2]
        self.modulations = nn.ModuleList(Modulation(config.width, count) for count in counts)
        self.to_velocity = nn.Linear(config.width, config.num_bands)
        nn.init.zeros_(self.to_velocity.weight)
        nn.init.zeros_(self.to_velocity.bias)

    def condition(self, tokens: Tensor, speaker: Tensor, blocks: Blocks, drop_tokens: Tensor) -> Tensor:
        """Returns the condition [M, W, D] of tokens and speaker.

        Args:
            tokens: Tokens, int64 [M, K]; those under padded frames may be any valid code.
            speaker: One embedding per utterance, [U, S].
            blocks: Utterance, position and padding of the blocks.
            drop_tokens: Utterances whose tokens are null, bool [U].
        """
        embedded = self.tokens(tokens, drop_tokens[blocks.utterance])
        speaker = speaker[blocks.utterance, None].expand(-1, embedded.shape[1], -1).to(embedded.dtype)
        return self.from_condition(torch.cat([embedded, speaker], dim=-1))

    def modulate(self, t: Tensor) -> list[Tensor]:
        """Returns the modulations of flow times t [U]: [U, 6 D] for each layer, [U, 2 D] for the output."""
        time = silu(self.time(t))
        return [modulation(time) for modulation in self.modulations]

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, blocks: Blocks) -> Tensor:
        """Returns the velocity [M, W, F] at x [M, W, F], flow time t [U], condition [M, W, D]."""
        return self.evaluate(x, self.modulate(t), condition, blocks)

    def evaluate(
        self,
        x: Tensor,
        modulations: list[Tensor],
        condition: Tensor,
        blocks: Blocks,
        context: CachedContext | None = None,
        caches: Mapping[int, KVCache] | None = None,
    ) -> Tensor:
        """Returns the velocity [M, W, F] from precomputed modulations, also of block ranges with cached neighbors.

        Args:
            x: Point of the flow, [M, W, F].
            modulations: Result of `modulate`; of one row if all utterances are at the same flow time.
            condition: Condition, [M, W, D].
            blocks: Utterance, position and padding of the blocks.
            context: Blocks whose neighbors are cached.
            caches: Cache of each layer that looks beyond its own block, by layer number; they are updated.
        """
        h = self.embed(x, condition)
        h = self.run_layers(range(len(self.layers)), h, modulations, blocks, context, caches)
        return self.project_out(h, modulations, blocks)

    def embed(self, x: Tensor, condition: Tensor) -> Tensor:
        """Returns the input of the first layer, [M, W, D]."""
        return self.from_mel(x.to(self.from_mel.weight.dtype)) + condition

    def run_layers(
        self,
        numbers: range,
        h: Tensor,
        modulations: list[Tensor],
        blocks: Blocks,
        context: CachedContext | None = None,
        caches: Mapping[int, KVCache] | None = None,
    ) -> Tensor:
        """Returns the output [M, W, D] of layers `numbers` for the input h [M, W, D]; see `evaluate`."""
        spans, head_width = self.layout.spans, self.config.head_width
        masks = {span: attention_mask(span, blocks, head_width, context) for span in {spans[i] for i in numbers}}
        calls = [_LayerCall(self.layers[i], spans[i], modulations[i], (caches or {}).get(i)) for i in numbers]
        for own_block_only, group in groupby(calls, key=lambda call: call.span == Span(0, 0)):
            layers = list(group)
            # Between two layers that attend to neighbors blocks are independent of each other.
            if own_block_only and h.device.type == "cpu" and len(blocks) > BLOCKS_AT_ONCE:
                h = torch.cat([self._run_group(h[part], layers, masks, part) for part in _slices(len(blocks))])
            else:
                h = self._run_group(h, layers, masks)
        return h

    def project_out(self, h: Tensor, modulations: list[Tensor], blocks: Blocks) -> Tensor:
        """Returns the network's output [M, W, F] for the output h [M, W, D] of the last layer."""
        # Scale comes before shift here and after it in the layers: the order of Qwen2.5-Omni token2wav.
        scale, shift = _split_modulation(modulations[-1], blocks, 2)
        return self.to_velocity(_modulated(h, scale, shift))

    def keys_and_values(self, number: int, h: Tensor, modulations: list[Tensor], blocks: Blocks) -> Tensor:
        """Returns keys, not rotated, and values [M, 2, H, W, Dh] that layer `number` computes from h [M, W, D]."""
        return self.layers[number].keys_and_values(h, modulations[number], blocks)  # type: ignore[operator]

    def _run_group(
        self,
        h: Tensor,
        layers: "list[_LayerCall]",
        masks: dict[Span, AttentionMask],
        part: slice | None = None,
    ) -> Tensor:
        for call in layers:
            mask = masks[call.span] if part is None else masks[call.span].for_blocks(part)
            if self.recompute and torch.is_grad_enabled():
                h = checkpoint(call.layer, h, call.modulation, mask, use_reentrant=False)
            else:
                h = call.layer(h, call.modulation, mask, call.cache)
        return h


class _LayerCall(NamedTuple):
    """A layer and its inputs in one forward call."""

    layer: nn.Module
    span: Span
    modulation: Tensor
    cache: KVCache | None


class Layer(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by flow time (AdaLN-zero)."""

    def __init__(self, config: DiTConfig, span: Span) -> None:
        super().__init__()
        width, inner = config.width, config.mlp_ratio * config.width
        rope_heads = config.num_heads if config.rope_heads is None else config.rope_heads
        self.attention = BlockAttention(width, config.num_heads, rope_heads, span)
        self.mlp = nn.Sequential(Linear(width, inner), nn.GELU(approximate="tanh"), Linear(inner, width))

    def forward(self, h: Tensor, modulation: Tensor, mask: AttentionMask, cache: KVCache | None = None) -> Tensor:
        """Returns the layer's output [M, W, D] for h [M, W, D] and the modulation [U, 6 D] of each utterance."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = _split_modulation(modulation, mask.blocks, 6)
        h = torch.addcmul(h, gate, self.attention(_modulated(h, scale, shift), mask, cache))
        return torch.addcmul(h, gate_mlp, self.mlp(_modulated(h, scale_mlp, shift_mlp)))

    def keys_and_values(self, h: Tensor, modulation: Tensor, blocks: Blocks) -> Tensor:
        """Returns the keys and values [M, 2, H, W, Dh] to which a neighboring block attends."""
        shift, scale, *_ = _split_modulation(modulation, blocks, 6)
        return torch.stack(self.attention.project(_modulated(h, scale, shift))[1:], dim=1)


class Modulation(nn.Linear):
    """Maps embedded flow time, after SiLU, [U, D] to `parts` vectors [U, parts D]; zero in a fresh network."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__(width, parts * width)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def _split_modulation(modulation: Tensor, blocks: Blocks, parts: int) -> tuple[Tensor, ...]:
    """Returns `parts` vectors of each block's utterance, [M, 1, D], or [1, 1, D] if all utterances share them."""
    if len(modulation) == 1:
        return modulation[:, None].chunk(parts, dim=-1)
    return modulation[blocks.utterance, None].chunk(parts, dim=-1)


def _modulated(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, layer_norm(h, h.shape[-1:], eps=1e-6), 1 + scale)


BLOCKS_AT_ONCE = 48
"""Blocks that a CPU carries through a group of layers at once.

With this number no tensor of the paper's network is larger than 32 MiB, the size from which glibc requests each one
from the kernel, page by page: at a minute of speech that took a quarter of the time.
"""


def _slices(count: int) -> list[slice]:
    """Returns slices of about equal length, at most `BLOCKS_AT_ONCE`, that cover `count` blocks."""
    pieces = -(-count // BLOCKS_AT_ONCE)
    edges = [count * i // pieces for i in range(pieces + 1)]
    return [slice(*pair) for pair in pairwise(edges)]
