"""Who speaks: SpeechBrain's ECAPA-TDNN (arXiv 2005.07143) on the mel of a reference crop, and x-vectors.

Trained together with the decoder the encoder needs no weights. Its BatchNorm is replaced by GroupNorm: with
BatchNorm an embedding changes with its batch-mates and a batch of one raises. An *x-vector* is an embedding
that another encoder made beforehand and that comes with the data.
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

SILENT_FRAMES = 16
"""Length of the zero mel behind the sibling's null condition; the embedding of zeros is that of any length."""


@dataclass(frozen=True)
class SpeakerConfig:
    """The speaker inputs: an encoder trained jointly on a crop of the same speaker, and stored x-vectors.

    Args:
        encoder: "joint", with GroupNorm, on a mel without its mean; or "qwen", as the public sibling's:
            without any normalisation, Res2Net scale 2, on the mel as it is.
        channels: Width of its convolutions; ECAPA-TDNN's own is 512 or 1024, the sibling's 256.
        crop_seconds: Length of every reference crop; one length, for padding would shift the embedding.
        x_vectors: Name of the encoder whose embeddings are stored in the shards and enter beside the joint
            one; empty for none. "qwen2.5-omni" keeps that input's weights in a warm start.
        x_vector_width: Their width X.
    """

    encoder: Literal["joint", "qwen"] = "joint"
    channels: int = 512
    crop_seconds: float = 2.0
    x_vectors: str = ""
    x_vector_width: int = 192

    def __post_init__(self) -> None:
        if self.channels % 8:
            raise ValueError(f"speaker.channels is {self.channels}: wanted a multiple of 8")
        if self.x_vector_width < 1:
            raise ValueError(f"speaker.x_vector_width is {self.x_vector_width}: wanted 1 or more")

    @property
    def stored_width(self) -> int:
        """X, or 0 where there are no x-vectors."""
        return self.x_vector_width if self.x_vectors else 0

    def crop_samples(self, sample_rate: int) -> int:
        """Samples of a reference crop."""
        return round(self.crop_seconds * sample_rate)


class SpeakerEncoder(nn.Module):
    """Turns reference crops, and x-vectors where the configuration names them, into embeddings [B, S].

    Always in float32.

    Args:
        config: Sizes.
        mel: The mel of the crops.
        width: S, channels of the embedding; X of them are the x-vector's, the last ones.
        null: What stands for nobody: "learned", a vector; or "zeros", the embedding of a mel of zeros and an
            x-vector of zeros, as the public sibling has it.

    Raises:
        ValueError: if S leaves nothing to the encoder.
    """

    def __init__(
        self, config: SpeakerConfig, mel: MelConfig, width: int, null: Literal["learned", "zeros"] = "learned"
    ) -> None:
        super().__init__()
        if width <= config.stored_width:
            raise ValueError(
                f"dit.speaker_width {width} leaves nothing for the encoder beside x-vectors of "
                f"{config.stored_width}: raise it, or set speaker.x_vectors to ''"
            )
        self.config = config
        self.num_bands = mel.num_bands
        channels, sibling = config.channels, config.encoder == "qwen"
        self.ecapa = ECAPA_TDNN(
            mel.num_bands,
            channels=[channels, channels, channels, channels, 3 * channels],
            attention_channels=channels // 4 if sibling else min(128, channels),
            se_channels=channels // 4 if sibling else min(128, channels),
            res2net_scale=2 if sibling else 8,
            lin_neurons=width - config.stored_width,
        )
        _replace_batch_norm(self.ecapa, nn.Identity if sibling else _group_norm)
        self.learned_null = nn.Parameter(torch.zeros(width)) if null == "learned" else None

    def forward(self, mel: Tensor, x_vector: Tensor | None = None) -> Tensor:
        """Returns one embedding [B, S] per crop.

        Args:
            mel: Of the crops, [B, T, F].
            x_vector: [B, X] where the configuration names x-vectors, else None.

        Raises:
            ValueError: if x-vectors are missing, of another width, or not wanted.
        """
        came = 0 if x_vector is None else x_vector.shape[-1]
        if came != self.config.stored_width:
            raise ValueError(
                f"x-vectors of width {came} came, the model has {self.config.stored_width} "
                f"(speaker.x_vectors is {self.config.x_vectors!r})"
            )
        with torch.autocast(mel.device.type, enabled=False):
            mel = mel.float()
            if self.config.encoder == "joint":
                mel = mel - mel.mean(dim=1, keepdim=True)
            embedding = self.ecapa(mel)[:, 0]
            return embedding if x_vector is None else torch.cat([embedding, x_vector.float()], dim=-1)

    def null(self) -> Tensor:
        """Returns the embedding of nobody, [S]."""
        return self.silence() if self.learned_null is None else self.learned_null

    def silence(self) -> Tensor:
        """Returns the embedding [S] of a mel of zeros and an x-vector of zeros."""
        weight = self.ecapa.fc.conv.weight
        stored = self.config.stored_width
        nothing = weight.new_zeros(1, stored) if stored else None
        return self(weight.new_zeros(1, SILENT_FRAMES, self.num_bands), nothing)[0]


def _group_norm(features: int) -> nn.Module:
    return nn.GroupNorm(math.gcd(8, features), features)


def _replace_batch_norm(module: nn.Module, replacement: Callable[[int], nn.Module]) -> None:
    for name, child in module.named_children():
        if isinstance(child, BatchNorm1d):
            setattr(module, name, replacement(child.norm.num_features))
        else:
            _replace_batch_norm(child, replacement)
