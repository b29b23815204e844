"""Small networks with random weights."""

import torch
from torch import nn

from sf_lightning.audio.mel import MelConfig
from sf_lightning.model.dit import DiT, DiTConfig
from sf_lightning.model.layout import Layout
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import MelScale, StreamFlow

SMALL_DIT = DiTConfig(width=32, num_heads=2, token_width=16, speaker_width=8, vocabulary=50)


SMALL_BIGVGAN = {
    "resblock": "1",
    "upsample_rates": [5, 4, 4, 2],
    "upsample_kernel_sizes": [11, 8, 8, 4],
    "upsample_initial_channel": 32,
    "resblock_kernel_sizes": [3, 7],
    "resblock_dilation_sizes": [[1, 3, 5], [1, 3, 5]],
    "activation": "snakebeta",
    "snake_logscale": True,
    "sampling_rate": 16000,
    "n_fft": 1024,
    "num_mels": 80,
    "hop_size": 160,
    "win_size": 640,
    "fmin": 0,
    "fmax": None,
}
"""Hyperparameters of a small generator, named as in the `bigvgan` package."""


def randomize_weights(module: nn.Module, seed: int = 0) -> nn.Module:
    """Redraws every weight, because a freshly initialized network has zero gates and outputs exactly 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.5 / max(1, parameter.shape[-1] if parameter.ndim > 1 else 1) ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return module.eval()


def small_dit(layout: Layout, config: DiTConfig = SMALL_DIT) -> DiT:
    """Returns a small network with a non-zero output."""
    dit = randomize_weights(DiT(config, layout))
    assert isinstance(dit, DiT)
    return dit


def small_model(layout: Layout) -> StreamFlow:
    """Returns a small decoder with a non-zero output."""
    model = randomize_weights(StreamFlow(layout, SMALL_DIT, MelConfig(), MelScale(), SpeakerConfig(channels=8)))
    assert isinstance(model, StreamFlow)
    return model
