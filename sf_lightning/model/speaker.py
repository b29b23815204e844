"""Speaker embeddings: SpeechBrain's ECAPA-TDNN (arXiv 2005.07143) on the mel of a reference crop, and x-vectors.

The encoder is trained together with the decoder, so it needs no pretrained weights. Its BatchNorm is replaced by
GroupNorm: with BatchNorm an embedding depends on the rest of the batch, and a batch of one raises. An *x-vector* is
an embedding that another encoder computed beforehand; it is stored with the data.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.nnet.normalization import BatchNorm1d
from torch import Tensor, nn

from sf_lightning.audio.mel import MelConfig

MAX_CROP_SECONDS = 60
"""Largest accepted length of a reference crop."""

SILENT_FRAMES = 16
"""Frames of the zero mel of token2wav's null condition; the embedding of zeros is the same at any length."""


@dataclass(frozen=True)
class SpeakerConfig:
    """The speaker inputs: an encoder trained jointly on a crop of the same speaker, and stored x-vectors.

    Args:
        encoder: "joint": GroupNorm, on a mel minus its mean over time; or "qwen", as in Qwen2.5-Omni token2wav:
            no normalization, Res2Net scale 2, on the mel itself.
        channels: Width of its convolutions; 512 or 1024 in the ECAPA-TDNN paper, 256 in token2wav.
        crop_seconds: Length of every reference crop in seconds; all have one length, because padding would
            change the embedding.
        x_vectors: Name of the encoder whose embeddings are stored in the shards and used beside the joint one;
            empty for none. With "qwen2.5-omni" a warm start loads the weights of that input too.
        x_vector_width: Width X of the x-vectors.
    """

    encoder: Literal["joint", "qwen"] = "joint"
    channels: int = 512
    crop_seconds: float = 2.0
    x_vectors: str = ""
    x_vector_width: int = 192

    def __post_init__(self) -> None:
        if self.channels < 8 or self.channels % 8:
            raise ValueError(f"speaker.channels is {self.channels}: expected a multiple of 8")
        if not 0 < self.crop_seconds <= MAX_CROP_SECONDS:
            raise ValueError(
                f"speaker.crop_seconds is {self.crop_seconds}: expected more than 0, and at most {MAX_CROP_SECONDS}"
            )
        if self.x_vector_width < 1:
            raise ValueError(f"speaker.x_vector_width is {self.x_vector_width}: expected 1 or more")

    @property
    def stored_width(self) -> int:
        """X; 0 if there are no x-vectors."""
        return self.x_vector_width if self.x_vectors else 0

    def crop_samples(self, sample_rate: int) -> int:
        """Returns the length of a reference crop in samples, at a sample rate in Hz."""
        return round(self.crop_seconds * sample_rate)


class SpeakerEncoder(nn.Module):
    """Encodes reference crops, and x-vectors if the configuration names them, to embeddings [B, S].

    Computes in float32 even under autocast.

    Args:
        config: Settings of the encoder.
        mel: The mel of the crops.
        width: Width S of the embedding; the last X channels are the x-vector.
        null: Embedding of no speaker: "learned", a parameter; or "zeros", the embedding of a mel of zeros and an
            x-vector of zeros, as in Qwen2.5-Omni token2wav.

    Raises:
        ValueError: if S is not larger than X.
    """

    def __init__(
        self, config: SpeakerConfig, mel: MelConfig, width: int, null: Literal["learned", "zeros"] = "learned"
    ) -> None:
        super().__init__()
        if width <= config.stored_width:
            raise ValueError(
                f"dit.speaker_width is {width}: expected more than the {config.stored_width} of the x-vectors, for "
                "the encoder needs channels too; raise it, or set speaker.x_vectors to ''"
            )
        self.config = config
        self.num_bands = mel.num_bands
        channels, is_qwen = config.channels, config.encoder == "qwen"
        self.ecapa = ECAPA_TDNN(
            mel.num_bands,
            channels=[channels, channels, channels, channels, 3 * channels],
            attention_channels=channels // 4 if is_qwen else min(128, channels),
            se_channels=channels // 4 if is_qwen else min(128, channels),
            res2net_scale=2 if is_qwen else 8,
            lin_neurons=width - config.stored_width,
        )
        _replace_batch_norm(self.ecapa, nn.Identity if is_qwen else _group_norm)
        self.learned_null = nn.Parameter(torch.zeros(width)) if null == "learned" else None

    def forward(self, mel: Tensor, x_vector: Tensor | None = None) -> Tensor:
        """Returns one embedding [B, S] per crop.

        Args:
            mel: Mel of the crops, [B, T, F].
            x_vector: X-vectors [B, X] if the configuration names them, else None.

        Raises:
            ValueError: if x-vectors are missing, unexpected or of another width.
        """
        width = 0 if x_vector is None else x_vector.shape[-1]
        if width != self.config.stored_width:
            raise ValueError(
                f"the x-vectors have width {width}, the model expects {self.config.stored_width} "
                f"(speaker.x_vectors is {self.config.x_vectors!r})"
            )
        with torch.autocast(mel.device.type, enabled=False):
            mel = mel.float()
            if self.config.encoder == "joint":
                mel = mel - mel.mean(dim=1, keepdim=True)
            embedding = self.ecapa(mel)[:, 0]
            return embedding if x_vector is None else torch.cat([embedding, x_vector.float()], dim=-1)

    def null(self) -> Tensor:
        """Returns the embedding of no speaker, [S]."""
        return self.silence() if self.learned_null is None else self.learned_null

    def silence(self) -> Tensor:
        """Returns the embedding [S] of a mel of zeros and an x-vector of zeros."""
        weight = self.ecapa.fc.conv.weight
        stored = self.config.stored_width
        x_vector = weight.new_zeros(1, stored) if stored else None
        return self(weight.new_zeros(1, SILENT_FRAMES, self.num_bands), x_vector)[0]


def _group_norm(features: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(8, features), features)


def _replace_batch_norm(module: nn.Module, replacement: Callable[[int], nn.Module]) -> None:
    for name, child in module.named_children():
        if isinstance(child, BatchNorm1d):
            setattr(module, name, replacement(child.norm.num_features))
        else:
            _replace_batch_norm(child, replacement)
