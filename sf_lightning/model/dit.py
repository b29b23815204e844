"""The diffusion transformer: noisy mel, tokens and speaker in, velocity out, on a list of blocks.

Knows nothing of flows and solvers: it is a function of (x_t, t, condition). What does not depend on x_t or
t, the condition, is computed once by `DiT.condition` and handed in.

Letters: U utterances, M blocks, W frames of a block, K tokens of a block, F mel bands, D width, S speaker.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, silu

from sf_lightning.model.attention import BlockAttention, Neighbourhood
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.embeddings import TimeEmbedding, TokenEmbedding
from sf_lightning.model.layout import Layout, Span


@dataclass(frozen=True)
class DiTConfig:
    """Sizes of the network; the defaults are the paper's, 333 M parameters at 22 layers.

    Args:
        width: D, channels of the residual stream.
        num_heads: Attention heads; width / num_heads must be even.
        mlp_ratio: Width of the feed-forward layer over `width`.
        token_width: Width of the token embedding.
        speaker_width: Width S of the speaker embedding.
        num_bands: Mel bands F.
        vocabulary: Number of token codes.
        frames_per_token: Mel frames of a token; 4 for 25 Hz tokens and 100 Hz frames.
    """

    width: int = 1024
    num_heads: int = 16
    mlp_ratio: int = 2
    token_width: int = 512
    speaker_width: int = 192
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


class DiT(nn.Module):
    """A stack of AdaLN-zero layers, one per span of the layout.

    Args:
        config: Sizes.
        layout: Spans; its block size must hold whole tokens.
    """

    def __init__(self, config: DiTConfig, layout: Layout) -> None:
        super().__init__()
        if layout.block_size % config.frames_per_token:
            raise ValueError(
                f"layout.block_size {layout.block_size} does not hold whole tokens of "
                f"{config.frames_per_token} frames: wanted a multiple"
            )
        self.config, self.layout = config, layout
        self.time = TimeEmbedding(config.width)
        self.tokens = TokenEmbedding(config.vocabulary, config.token_width, config.frames_per_token)
        self.null_speaker = nn.Parameter(torch.zeros(config.speaker_width))
        # One linear layer on [mel | tokens | speaker], kept in two parts: only the first changes with x_t.
        self.from_mel = nn.Linear(config.num_bands, config.width)
        self.from_condition = nn.Linear(config.token_width + config.speaker_width, config.width, bias=False)
        self.layers = nn.ModuleList(Layer(config, span) for span in layout.spans)
        self.modulation = Modulation(config.width, 2)
        self.to_velocity = nn.Linear(config.width, config.num_bands)
        nn.init.zeros_(self.to_velocity.weight)
        nn.init.zeros_(self.to_velocity.bias)

    def condition(
        self, tokens: Tensor, speaker: Tensor, blocks: Blocks, drop_speaker: Tensor, drop_tokens: Tensor
    ) -> Tensor:
        """Returns the condition [M, W, D] of tokens and speaker, with the null condition where dropped.

        Args:
            tokens: int64 [M, K]; those under padded frames may be any valid code.
            speaker: One embedding per utterance, [U, S].
            blocks: Where the blocks belong.
            drop_speaker: Utterances whose speaker is null, bool [U].
            drop_tokens: Utterances whose tokens are null, bool [U].
        """
        speaker = torch.where(drop_speaker[:, None], self.null_speaker, speaker)[blocks.utterance]
        embedded = self.tokens(tokens, drop_tokens[blocks.utterance])
        spoken = speaker[:, None].expand(-1, embedded.shape[1], -1).to(embedded.dtype)
        return self.from_condition(torch.cat([embedded, spoken], dim=-1))

    def forward(self, x: Tensor, t: Tensor, condition: Tensor, blocks: Blocks) -> Tensor:
        """Returns the velocity [M, W, F] at x [M, W, F], flow time t [U], condition [M, W, D]."""
        near = Neighbourhood(blocks, self.config.width // self.config.num_heads)
        time = self.time(t)
        h = self.from_mel(x) + condition
        for layer in self.layers:
            h = layer(h, time, near)
        # Scale comes before shift here and after it in the layers: the order of the public sibling.
        scale, shift = self.modulation(time, blocks)
        return self.to_velocity(_norm(h) * (1 + scale) + shift)


class Layer(nn.Module):
    """Attention and feed-forward, each scaled, shifted and gated by flow time (AdaLN-zero)."""

    def __init__(self, config: DiTConfig, span: Span) -> None:
        super().__init__()
        width, inner = config.width, config.mlp_ratio * config.width
        self.modulation = Modulation(width, 6)
        self.attention = BlockAttention(width, config.num_heads, span)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(approximate="tanh"), nn.Linear(inner, width))

    def forward(self, h: Tensor, time: Tensor, near: Neighbourhood) -> Tensor:
        """Advances h [M, W, D]; `time` [U, D] is the embedded flow time of each utterance."""
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.modulation(time, near.blocks)
        h = h + gate * self.attention(_norm(h) * (1 + scale) + shift, near)
        return h + gate_mlp * self.mlp(_norm(h) * (1 + scale_mlp) + shift_mlp)


class Modulation(nn.Module):
    """Turns embedded flow time [U, D] into `parts` vectors [M, 1, D] for each block; zero in a fresh network."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, time: Tensor, blocks: Blocks) -> tuple[Tensor, ...]:
        """Returns the vectors of each block's utterance."""
        return self.linear(silu(time))[blocks.utterance, None].chunk(self.parts, dim=-1)


def _norm(h: Tensor) -> Tensor:
    return layer_norm(h, h.shape[-1:], eps=1e-6)
