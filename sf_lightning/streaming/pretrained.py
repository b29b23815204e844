"""From a trained decoder's folder to one that streams, with the settings that it was validated with."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from sf_lightning.files.records import from_plain
from sf_lightning.model.pretrained import Pretrained, load_pretrained, locate
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.vocoder.config import VocoderConfig


def load_decoder(name: str | Path) -> StreamingDecoder:
    """Returns the decoder in a folder that `sf-export` wrote, or of such an id of the Hugging Face hub.

    Raises:
        FileNotFoundError, ValueError: as `StreamFlow.from_pretrained` and `make_decoder`.
    """
    return make_decoder(load_pretrained(locate(str(name))))


def make_decoder(trained: Pretrained, vocoder: VocoderConfig | None = None, **change: Any) -> StreamingDecoder:
    """Returns a decoder of a trained model, where that is.

    Args:
        trained: The model and its settings.
        vocoder: To be used instead of the one of training.
        change: Fields of `DecodeConfig` that are to be other than in training.

    Raises:
        FileNotFoundError: if the vocoder's checkpoint is not there.
        ValueError: if a setting is unknown or out of range, or the vocoder was made for another mel.
    """
    description = trained.description
    decode = replace(from_plain(DecodeConfig, description.decode, "decode"), **change)
    vocoder = vocoder or from_plain(VocoderConfig, description.vocoder, "vocoder")
    made = vocoder.make(trained.model.mel.config)
    if isinstance(made, nn.Module):
        made = made.to(trained.model.dit.from_mel.weight.device)
    return StreamingDecoder(trained.model, made, decode)
