"""Embeddings of flow time and tokens."""

import math

import torch
from torch import Tensor, nn


class TimeEmbedding(nn.Module):
    """Embeds flow time t [U] in [0, 1] as [U, D]: sinusoids of 1000 t, then two linear layers."""

    frequencies: Tensor

    def __init__(self, width: int, num_sinusoids: int = 256) -> None:
        super().__init__()
        half = num_sinusoids // 2
        frequencies = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half))
        self.register_buffer("frequencies", 1000 * frequencies, persistent=False)
        self.mlp = nn.Sequential(nn.Linear(num_sinusoids, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        """Returns the embedding [U, D] of flow times [U]."""
        angles = t.float()[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=-1).to(next(self.mlp.parameters()).dtype))


class TokenEmbedding(nn.Module):
    """Embeds tokens as one vector for every frame of the token.

    By default each frame has its own vector: rotary positions are relative, so a frame that shares its token's
    vector with its neighbors must infer from attention which part of the token it is. Vectors are scaled by
    sqrt(width) because each row is used rarely and AdamW moves a weight by little more than the learning rate
    (experiments/LOG.md has measurements of both).

    Args:
        vocabulary: Number of codes; tokens are 0 .. vocabulary - 1.
        width: Width of the embedding.
        frames_per_token: Frames of a token.
        repeat: Whether the frames of a token share one vector, as in Qwen2.5-Omni token2wav.
        null: Id of the null condition; `vocabulary` is an extra id that no code has.
    """

    def __init__(self, vocabulary: int, width: int, frames_per_token: int, repeat: bool, null: int) -> None:
        super().__init__()
        self.null = null
        self.frames_per_token, self.repeat = frames_per_token, repeat
        self.scale = math.sqrt(width)
        self.table = nn.Embedding(vocabulary + 1, width if repeat else frames_per_token * width)
        nn.init.normal_(self.table.weight, std=0.02)

    def forward(self, tokens: Tensor, drop: Tensor) -> Tensor:
        """Returns [M, K * frames_per_token, width] of tokens [M, K]; null in the blocks where `drop` [M]."""
        vectors = self.scale * self.table(torch.where(drop[:, None], self.null, tokens))
        if self.repeat:
            return vectors.repeat_interleave(self.frames_per_token, dim=1)
        return vectors.unflatten(-1, (self.frames_per_token, -1)).flatten(1, 2)
