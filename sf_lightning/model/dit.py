"""The diffusion transformer: noisy mel, tokens and speaker in, velocity out, on a list of blocks.

Knows nothing of flows and solvers: it is a function of (x_t, t, condition). What does not depend on x_t or
t, the condition, is computed once by `DiT.condition` and handed in.

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

from sf_lightning.model.attention import AttentionMask, BlockAttention, Edges, Memory, sight
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
        rope_heads: How many of the heads are rotated by position; all by default. The public sibling
            rotates one.
        mlp_ratio: Width of the feed-forward layer over `width`.
        token_width: Width of the token embedding.
        token_repeat: Whether the frames of a token share one vector, as in the public sibling, or each has
            one of its own.
        speaker_width: Width S of the speaker embedding, x-vectors included.
        null_condition: Of guidance: "learned", a vector and an id that are no code's; or "zeros", code 0 and
            the speaker of silence, which the public sibling was trained with.
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
        if self.width % (2 * self.num_heads):
            raise ValueError(
                f"dit.width {self.width} over dit.num_heads {self.num_heads} must be an even whole number"
            )
        if self.rope_heads is not None and not 0 <= self.rope_heads <= self.num_heads:
            raise ValueError(f"dit.rope_heads is {self.rope_heads}: wanted 0 to dit.num_heads {self.num_heads}")

    @property
    def head_width(self) -> int:
        """Channels of a head."""
        return self.width // self.num_heads


class DiT(nn.Module):
    """A stack of AdaLN-zero layers, one per span of the layout.

    Args:
        config: Sizes.
        layout: Spans; its block size must hold whole tokens.

    Attributes:
        recompute: Whether training keeps only the input of each layer and computes the rest again in the
            backward pass (activation checkpointing): less memory, a third more work.
    """

    def __init__(self, config: DiTConfig, layout: Layout) -> None:
        super().__init__()
        if layout.block_size % config.frames_per_token:
            raise ValueError(
                f"layout.block_size {layout.block_size} does not hold whole tokens of "
                f"{config.frames_per_token} frames: wanted a multiple"
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
        # One linear layer on [mel | tokens | speaker], kept in two parts: only the first changes with x_t.
        self.from_mel = nn.Linear(config.num_bands, config.width)
        self.from_condition = nn.Linear(config.token_width + config.speaker_width, config.width, bias=False)
        self.layers = nn.ModuleList(Layer(config, span) for span in layout.spans)
        # Of each layer, and of the output.
        parts = [6] * layout.num_layers + [2]
        self.modulations = nn.ModuleList(Modulation(config.width, each) for each in parts)
        self.to_velocity = nn.Linear(config.width, config.num_bands)
        nn.init.zeros_(self.to_velocity.weight)
        nn.init.zeros_(self.to_velocity.bias)

    def condition(self, tokens: Tensor, speaker: Tensor, blocks: Blocks, drop_tokens: Tensor) -> Tensor:
        """Returns the condition [M, W, D] of tokens and speaker.

        Args:
            tokens: int64 [M, K]; those under padded frames may be any valid code.
            speaker: One embedding per utterance, [U, S].
            blocks: Where the blocks belong.
            drop_tokens: Utterances whose tokens are null, bool [U].
        """
        embedded = self.tokens(tokens, drop_tokens[blocks.utterance])
        spoken = speaker[blocks.utterance, None].expand(-1, embedded.shape[1], -1).to(embedded.dtype)
        return self.from_condition(torch.cat([embedded, spoken], dim=-1))

    def modulate(self, t: Tensor) -> list[Tensor]:
        """Returns what depends on flow time [U] alone: [U, 6 D] for each layer, [U, 2 D] for the output."""
        time = silu(self.time(t))
        return [modulation(time) for modulation in self.modulations]

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, blocks: Blocks) -> Tensor:
        """Returns the velocity [M, W, F] at x [M, W, F], flow time t [U], condition [M, W, D]."""
        return self.run(x, self.modulate(t), condition, blocks)

    def run(
        self,
        x: Tensor,
        modulations: list[Tensor],
        condition: Tensor,
        blocks: Blocks,
        edges: Edges | None = None,
        memories: Mapping[int, Memory] | None = None,
    ) -> Tensor:
        """Returns the velocity [M, W, F], from modulations at hand, also of runs that continue others.

        Args:
            x: [M, W, F].
            modulations: As `modulate` gives them; of one row where all utterances are at the same time.
            condition: [M, W, D].
            blocks: Where the blocks belong.
            edges: Which blocks have neighbours that lie in memories.
            memories: Of the layers that look that way, by number; they go on to the end of the runs.
        """
        h = self.enter(x, condition)
        h = self.through(range(len(self.layers)), h, modulations, blocks, edges, memories)
        return self.leave(h, modulations, blocks)

    def enter(self, x: Tensor, condition: Tensor) -> Tensor:
        """Returns what the first layer is given, [M, W, D]."""
        return self.from_mel(x.to(self.from_mel.weight.dtype)) + condition

    def through(
        self,
        numbers: range,
        h: Tensor,
        modulations: list[Tensor],
        blocks: Blocks,
        edges: Edges | None = None,
        memories: Mapping[int, Memory] | None = None,
    ) -> Tensor:
        """Carries h [M, W, D] through some of the layers; see `run`."""
        spans, head_width = self.layout.spans, self.config.head_width
        sights = {span: sight(span, blocks, head_width, edges) for span in {spans[i] for i in numbers}}
        passes = [_Pass(self.layers[i], spans[i], modulations[i], (memories or {}).get(i)) for i in numbers]
        for alone, run in groupby(passes, key=lambda each: each.span == Span(0, 0)):
            layers = list(run)
            # Between two layers that see neighbours every block is for itself.
            if alone and h.device.type == "cpu" and len(blocks) > BLOCKS_AT_ONCE:
                h = torch.cat([self._run(h[some], layers, sights, some) for some in _slices(len(blocks))])
            else:
                h = self._run(h, layers, sights)
        return h

    def leave(self, h: Tensor, modulations: list[Tensor], blocks: Blocks) -> Tensor:
        """Returns the answer [M, W, F] of what the last layer gave."""
        # Scale comes before shift here and after it in the layers: the order of the public sibling.
        scale, shift = _of_blocks(modulations[-1], blocks, 2)
        return self.to_velocity(_modulated(h, scale, shift))

    def seen_by_neighbours(self, number: int, h: Tensor, modulations: list[Tensor], blocks: Blocks) -> Tensor:
        """Returns the keys, unrotated, and values [M, 2, H, W, Dh] that a layer makes of h [M, W, D]."""
        return self.layers[number].seen_by_neighbours(h, modulations[number], blocks)  # type: ignore[operator]

    def _run(
        self,
        h: Tensor,
        layers: "list[_Pass]",
        sights: dict[Span, AttentionMask],
        some: slice | None = None,
    ) -> Tensor:
        for each in layers:
            seen = sights[each.span] if some is None else sights[each.span].of(some)
            if self.recompute and torch.is_grad_enabled():
                h = checkpoint(each.layer, h, each.modulation, seen, use_reentrant=False)
            else:
                h = each.layer(h, each.modulation, seen, each.memory)
        return h


class _Pass(NamedTuple):
    """A layer and what it needs in one forward call."""

    layer: nn.Module
    span: Span
    modulation: Tensor
    memory: Memory | None


class Layer(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by flow time (AdaLN-zero)."""

    def __init__(self, config: DiTConfig, span: Span) -> None:
        super().__init__()
        width, inner = config.width, config.mlp_ratio * config.width
        rope_heads = config.num_heads if config.rope_heads is None else config.rope_heads
        self.attention = BlockAttention(width, config.num_heads, rope_heads, span)
        self.mlp = nn.Sequential(Linear(width, inner), nn.GELU(approximate="tanh"), Linear(inner, width))

    def forward(self, h: Tensor, modulation: Tensor, sight: AttentionMask, memory: Memory | None = None) -> Tensor:
        """Advances h [M, W, D]; the modulation [U, 6 D] is that of each utterance."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = _of_blocks(modulation, sight.blocks, 6)
        h = torch.addcmul(h, gate, self.attention(_modulated(h, scale, shift), sight, memory))
        return torch.addcmul(h, gate_mlp, self.mlp(_modulated(h, scale_mlp, shift_mlp)))

    def seen_by_neighbours(self, h: Tensor, modulation: Tensor, blocks: Blocks) -> Tensor:
        """Returns what a neighbouring block attends to, keys and values [M, 2, H, W, Dh]."""
        shift, scale, *_ = _of_blocks(modulation, blocks, 6)
        return torch.stack(self.attention.project(_modulated(h, scale, shift))[1:], dim=1)


class Modulation(nn.Linear):
    """Turns embedded flow time, after SiLU, [U, D] into `parts` vectors [U, parts D]; zero in a fresh network."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__(width, parts * width)
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


def _of_blocks(modulation: Tensor, blocks: Blocks, parts: int) -> tuple[Tensor, ...]:
    """The vectors of each block's utterance, `parts` of [M, 1, D], or of [1, 1, D] where all have the same."""
    if len(modulation) == 1:
        return modulation[:, None].chunk(parts, dim=-1)
    return modulation[blocks.utterance, None].chunk(parts, dim=-1)


def _modulated(h: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return torch.addcmul(shift, layer_norm(h, h.shape[-1:], eps=1e-6), 1 + scale)


BLOCKS_AT_ONCE = 48
"""Blocks that a CPU takes through a run of layers at once.

Then no tensor of the paper's network is larger than 32 MiB, from where on glibc takes every one from the kernel
anew, page by page: at a minute of speech that cost a quarter of the time.
"""


def _slices(count: int) -> list[slice]:
    """Cuts so many blocks into runs of about the same length."""
    pieces = -(-count // BLOCKS_AT_ONCE)
    edges = [count * i // pieces for i in range(pieces + 1)]
    return [slice(*pair) for pair in pairwise(edges)]
