"""The model of a decoder: mel, its scale, the speaker encoder and the DiT.

This module is trained, averaged, saved and streamed. Independent of losses, solvers and Lightning.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from sf_lightning.audio.mel import MelConfig, MelSpectrogram
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.dit import DiT, DiTConfig
from sf_lightning.model.layout import Layout
from sf_lightning.model.speaker import SpeakerConfig, SpeakerEncoder

MIN_TIME_LEFT = 0.2
"""Lower bound of the divisor 1 - t: beyond t = 0.8 the weight of the mel's error stays constant."""


@dataclass(frozen=True)
class MelScale:
    """Normalizes log-mel to about zero mean and unit variance, the scale of the noise it is mixed with.

    Args:
        mean: Mean of log-mel over speech.
        std: Standard deviation of log-mel over speech.
    """

    mean: float = -5.0
    std: float = 2.4

    def __post_init__(self) -> None:
        if self.std <= 0:
            raise ValueError(f"scale.std is {self.std}: expected more than 0")


class StreamFlow(nn.Module):
    """All parts of a decoder that have weights, or settings that the weights depend on.

    Args:
        layout: Spans of the network's layers.
        dit: Sizes of the network.
        mel: The mel that it generates.
        scale: Normalization of the mel in the flow.
        speaker: The speaker inputs.
        predict: What the network predicts, the mel or the velocity; see `velocity`. Weights of Qwen2.5-Omni
            token2wav predict the velocity.

    Raises:
        ValueError: if the numbers of mel bands differ.

    >>> from sf_lightning import DiTConfig, Layout, MelConfig
    >>> from sf_lightning.model.speaker import SpeakerConfig
    >>> dit, speaker = DiTConfig(width=64, num_heads=2), SpeakerConfig(channels=8)
    >>> model = StreamFlow(Layout(), dit, MelConfig(), MelScale(), speaker)
    >>> model.encode_speaker(torch.zeros(1, 24000)).shape
    torch.Size([1, 192])
    """

    def __init__(
        self,
        layout: Layout,
        dit: DiTConfig,
        mel: MelConfig,
        scale: MelScale,
        speaker: SpeakerConfig,
        predict: Literal["mel", "velocity"] = "mel",
    ) -> None:
        super().__init__()
        if dit.num_bands != mel.num_bands:
            raise ValueError(f"dit.num_bands is {dit.num_bands}, mel.num_bands is {mel.num_bands}: expected equal")
        self.layout, self.scale, self.speaker = layout, scale, speaker
        self.predict = predict
        self.mel = MelSpectrogram(mel)
        self.dit = DiT(dit, layout)
        self.encoder = SpeakerEncoder(speaker, mel, dit.speaker_width, dit.null_condition)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        tokens: Tensor,
        speaker: tuple[Tensor, Tensor],
        blocks: Blocks,
        drop_speaker: Tensor,
        drop_tokens: Tensor,
    ) -> Tensor:
        """Returns the velocity [M, W, F], with the speaker encoded and the condition computed, for training.

        Args:
            x: Point between noise and mel, [M, W, F].
            t: Flow time of each utterance, [U].
            tokens: As in `condition`.
            speaker: Reference crops [U, N] and x-vectors [U, X].
            blocks: Utterance and position of each block.
            drop_speaker: As in `condition`.
            drop_tokens: As in `condition`.
        """
        embedded = self.encode_speaker(*speaker)
        return self.velocity(x, t, self.condition(tokens, embedded, blocks, drop_speaker, drop_tokens), blocks)

    def encode_speaker(self, reference: Tensor, x_vector: Tensor | None = None) -> Tensor:
        """Returns embeddings [B, S] of reference crops [B, N] and, if the model uses them, x-vectors [B, X]."""
        return self.encoder(self.mel(reference), x_vector)

    def to_flow(self, mel: Tensor) -> Tensor:
        """Returns log-mel normalized for the flow."""
        return (mel - self.scale.mean) / self.scale.std

    def to_mel(self, x: Tensor) -> Tensor:
        """Returns the log-mel of a normalized mel: the inverse of `to_flow`."""
        return x * self.scale.std + self.scale.mean

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor, blocks: Blocks) -> Tensor:
        """Returns the velocity [M, W, F] at x [M, W, F], flow time t [U], condition [M, W, D].

        On the straight path the velocity at x is (x_1 - x) / (1 - t), so a network that predicts the mel x_1 need
        not pass 80 channels of noise through its layers, which a small network learns late (arXiv 2511.13720). The
        divisor is at least `MIN_TIME_LEFT`, which bounds the weight of late times.
        """
        return self.to_velocity(self.dit(x, t, condition, blocks), x, t[blocks.utterance, None, None])

    def to_velocity(self, prediction: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Returns the velocity [M, W, F] for the network's prediction at x, [M, W, F]; t broadcasts to x."""
        prediction = prediction.to(x.dtype)
        if self.predict == "velocity":
            return prediction
        return (prediction - x) / (1 - t).clamp(min=MIN_TIME_LEFT)

    def condition(
        self, tokens: Tensor, speaker: Tensor, blocks: Blocks, drop_speaker: Tensor, drop_tokens: Tensor
    ) -> Tensor:
        """Returns the condition [M, W, D], with null tokens and the null speaker where they are dropped.

        Args:
            tokens: Tokens of each block, int64 [M, K]; those of padded frames may be any valid code.
            speaker: One embedding per utterance, [U, S].
            blocks: Utterance and position of each block.
            drop_speaker: Which utterances have the null speaker, bool [U].
            drop_tokens: Which utterances have null tokens, bool [U].
        """
        speaker = torch.where(drop_speaker[:, None], self.encoder.null(), speaker)
        return self.dit.condition(tokens, speaker, blocks, drop_tokens)

    def null_condition(self, blocks: Blocks) -> Tensor:
        """Returns the condition [M, W, D] of null tokens and the null speaker."""
        config, device = self.dit.config, blocks.valid.device
        tokens = torch.zeros(
            len(blocks), blocks.block_size // config.frames_per_token, dtype=torch.long, device=device
        )
        speaker = self.encoder.null().expand(blocks.num_utterances, -1)
        drop = torch.ones(blocks.num_utterances, dtype=torch.bool, device=device)
        return self.dit.condition(tokens, speaker, blocks, drop)
