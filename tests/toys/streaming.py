"""A small streaming decoder and its inputs."""

import torch
from torch import Tensor

from sf_lightning.audio.mel import MelConfig
from sf_lightning.model.layout import Layout
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.vocoder.base import Vocoder
from sf_lightning.vocoder.griffin_lim import GriffinLim
from tests.toys.networks import SMALL_DIT, small_model

SMALL_SR = Layout(4, 24, (0, 2), (1,))
"""The shape of `streamflow_sr` in four layers: a receptive field of two blocks back and one ahead."""


def small_decoder(
    layout: Layout = SMALL_SR, vocoder: Vocoder | None = None, steps: int = 4, **config: object
) -> StreamingDecoder:
    """Returns a small decoder of four evaluations, by default with two iterations of Griffin-Lim."""
    decode = DecodeConfig(steps=steps, **config)  # type: ignore[arg-type]
    return StreamingDecoder(small_model(layout), vocoder or GriffinLim(MelConfig(), iterations=2), decode)


def random_tokens(length: int, seed: int = 0) -> Tensor:
    """Returns tokens [L] of the vocabulary of `SMALL_DIT`."""
    return torch.randint(0, SMALL_DIT.vocabulary, (length,), generator=torch.Generator().manual_seed(seed))


def random_speaker(seed: int = 0) -> Tensor:
    """Returns a speaker embedding [S]."""
    return torch.randn(SMALL_DIT.speaker_width, generator=torch.Generator().manual_seed(seed))


def streamed_mel(decoder: StreamingDecoder, tokens: Tensor, speaker: Tensor | None = None) -> Tensor:
    """Returns the mel [T, F] of one utterance, decoded chunk by chunk."""
    return decoder.decode([tokens], [speaker])[0].mel
