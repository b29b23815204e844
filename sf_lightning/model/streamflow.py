"""A decoder's weights, and what is needed to use them: mel, its scale, the speaker encoder, the DiT.

This is what is trained, averaged, saved and streamed. Knows nothing of losses, solvers and Lightning.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from sf_lightning.audio.mel import MelConfig, MelSpectrogram
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.dit import DiT, DiTConfig
from sf_lightning.model.layout import Layout
from sf_lightning.model.speaker import SpeakerConfig, SpeakerEncoder

MIN_TIME_LEFT = 0.2
"""Least divisor of a predicted mel's distance: beyond t = 0.8 the error of the mel weighs no more."""


@dataclass(frozen=True)
class MelScale:
    """Carries log-mel to about zero mean and unit variance, the scale of the noise it is mixed with.

    Args:
        mean: Mean of log-mel over speech.
        std: Its standard deviation.
    """

    mean: float = -5.0
    std: float = 2.4


class StreamFlow(nn.Module):
    """Everything of a decoder that has weights or must agree with them.

    Args:
        layout: Spans of the network's layers.
        dit: Sizes of the network.
        mel: The mel that it produces.
        scale: The scale in which the flow runs.
        speaker: The speaker inputs.
        predict: What the network answers with; see `velocity`. Weights of the public sibling say "velocity".
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
            raise ValueError(f"dit.num_bands is {dit.num_bands}, mel.num_bands is {mel.num_bands}: want the same")
        self.layout, self.scale, self.speaker = layout, scale, speaker
        self.predict = predict
        self.mel = MelSpectrogram(mel)
        self.dit = DiT(dit, layout)
        self.encoder = SpeakerEncoder(speaker, mel, dit.speaker_width, dit.null_condition)

    @staticmethod
    def from_pretrained(name: str | Path) -> "StreamFlow":
        """Returns a trained model in eval mode, on the CPU.

        Args:
            name: A folder that `sf-export` wrote; or the id, such as "owner/name", of one on the Hugging Face hub.

        Raises:
            FileNotFoundError: if there is nothing of that name, or a file is missing in it.
            ValueError: with the file's name, if one is damaged or of a newer format, or if they do not fit.
        """
        from sf_lightning.model.pretrained import load_pretrained, locate  # which build on this module

        return load_pretrained(locate(str(name))).model

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
        """Returns the velocity [M, W, F] with everything it depends on: what training runs.

        Args:
            x: Between noise and mel, [M, W, F].
            t: Flow time of each utterance, [U].
            tokens: As `condition`.
            speaker: Reference crops [U, N] and x-vectors [U, X].
            blocks: Where the blocks belong.
            drop_speaker: As `condition`.
            drop_tokens: As `condition`.
        """
        embedded = self.encode_speaker(*speaker)
        return self.velocity(x, t, self.condition(tokens, embedded, blocks, drop_speaker, drop_tokens), blocks)

    def encode_speaker(self, reference: Tensor, x_vector: Tensor | None = None) -> Tensor:
        """Returns embeddings [B, S] of reference crops [B, N] and, where the model has them, x-vectors [B, X]."""
        return self.encoder(self.mel(reference), x_vector)

    def to_flow(self, mel: Tensor) -> Tensor:
        """Log-mel to the scale of the flow."""
        return (mel - self.scale.mean) / self.scale.std

    def to_mel(self, x: Tensor) -> Tensor:
        """The scale of the flow back to log-mel."""
        return x * self.scale.std + self.scale.mean

    def velocity(self, x: Tensor, t: Tensor, condition: Tensor, blocks: Blocks) -> Tensor:
        """Returns the velocity [M, W, F] at x [M, W, F], flow time t [U], condition [M, W, D].

        On the straight path the velocity at x is (x_1 - x) / (1 - t), so a network that answers with the mel
        x_1 need not carry 80 channels of noise through itself to give it back, which a small one learns late
        (arXiv 2511.13720). The divisor is kept above `MIN_TIME_LEFT`, which bounds the weight of late times.
        """
        return self.to_velocity(self.dit(x, t, condition, blocks), x, t[blocks.utterance, None, None])

    def to_velocity(self, answer: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Returns the velocity that the network's answer at x, [M, W, F], means; t broadcasts to x."""
        answer = answer.to(x.dtype)
        if self.predict == "velocity":
            return answer
        return (answer - x) / (1 - t).clamp(min=MIN_TIME_LEFT)

    def condition(
        self, tokens: Tensor, speaker: Tensor, blocks: Blocks, drop_speaker: Tensor, drop_tokens: Tensor
    ) -> Tensor:
        """Returns the condition [M, W, D], with the null condition where something is dropped.

        Args:
            tokens: int64 [M, K]; those under padded frames may be any valid code.
            speaker: One embedding per utterance, [U, S].
            blocks: Where the blocks belong.
            drop_speaker: Utterances whose speaker is null, bool [U].
            drop_tokens: Utterances whose tokens are null, bool [U].
        """
        speaker = torch.where(drop_speaker[:, None], self.encoder.null(), speaker)
        return self.dit.condition(tokens, speaker, blocks, drop_tokens)

    def null_condition(self, blocks: Blocks) -> Tensor:
        """Returns the condition [M, W, D] of nothing said by nobody."""
        config, device = self.dit.config, blocks.valid.device
        tokens = torch.zeros(
            len(blocks), blocks.block_size // config.frames_per_token, dtype=torch.long, device=device
        )
        speaker = self.encoder.null().expand(blocks.num_utterances, -1)
        drop = torch.ones(blocks.num_utterances, dtype=torch.bool, device=device)
        return self.dit.condition(tokens, speaker, blocks, drop)
