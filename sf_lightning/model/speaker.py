"""Who speaks: SpeechBrain's ECAPA-TDNN (arXiv 2005.07143) on the mel of a reference crop.

Trained together with the decoder it needs no weights. Its BatchNorm is replaced by GroupNorm: with
BatchNorm an embedding changes with its batch-mates and a batch of one raises.
"""

import math
from dataclasses import dataclass

import torch
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.nnet.normalization import BatchNorm1d
from torch import Tensor, nn

from sf_lightning.audio.mel import MelConfig


@dataclass(frozen=True)
class SpeakerConfig:
    """The speaker encoder, trained jointly on a crop of the same speaker.

    Args:
        channels: Width of its convolutions; ECAPA-TDNN's own is 512 or 1024.
        crop_seconds: Length of every reference crop; one length, for padding would shift the embedding.
    """

    channels: int = 512
    crop_seconds: float = 2.0

    def __post_init__(self) -> None:
        if self.channels % 8:
            raise ValueError(f"speaker.channels is {self.channels}: wanted a multiple of 8")

    def crop_samples(self, sample_rate: int) -> int:
        """Samples of a reference crop."""
        return round(self.crop_seconds * sample_rate)


class SpeakerEncoder(nn.Module):
    """Turns the mels of reference crops [B, T, F] into embeddings [B, S], in float32 always.

    Args:
        config: Sizes.
        mel: The mel of the crops.
        width: S, channels of the embedding.
    """

    def __init__(self, config: SpeakerConfig, mel: MelConfig, width: int) -> None:
        super().__init__()
        channels = config.channels
        self.ecapa = ECAPA_TDNN(
            mel.num_bands,
            channels=[channels, channels, channels, channels, 3 * channels],
            attention_channels=min(128, channels),
            se_channels=min(128, channels),
            lin_neurons=width,
        )
        _replace_batch_norm(self.ecapa)

    def forward(self, mel: Tensor) -> Tensor:
        """Returns one embedding [B, S] per crop [B, T, F]; the crop's own mean is removed from each band."""
        with torch.autocast(mel.device.type, enabled=False):
            mel = mel.float()
            return self.ecapa(mel - mel.mean(dim=1, keepdim=True))[:, 0]


def _replace_batch_norm(module: nn.Module) -> None:
    for name, child in module.named_children():
        if isinstance(child, BatchNorm1d):
            features = child.norm.num_features
            setattr(module, name, nn.GroupNorm(math.gcd(8, features), features))
        else:
            _replace_batch_norm(child)
