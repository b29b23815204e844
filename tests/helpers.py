"""Small models and speech-like waves for tests."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import nn

from sf_lightning.audio.mel import MelConfig, MelSpectrogram
from sf_lightning.audio.wave import Wave
from sf_lightning.data.packing import Batch
from sf_lightning.data.segments import SegmentConfig, Segments, cut, draw_starts
from sf_lightning.model.dit import DiT, DiTConfig
from sf_lightning.model.layout import Layout
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import MelScale, StreamFlow

SMALL = DiTConfig(width=32, num_heads=2, token_width=16, speaker_width=8, vocabulary=50)

BIGVGAN = {
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
"""Hyperparameters of a small generator, in the package's own words."""


QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
"""Of a Trainer that says and keeps nothing."""


def loud(module: nn.Module, seed: int = 0) -> nn.Module:
    """Re-draws every weight: a fresh network has zero gates and says 0 to everything, exactly."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.5 / max(1, parameter.shape[-1] if parameter.ndim > 1 else 1) ** 0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return module.eval()


def small_dit(layout: Layout, config: DiTConfig = SMALL) -> DiT:
    """A network that says something."""
    dit = loud(DiT(config, layout))
    assert isinstance(dit, DiT)
    return dit


def small_model(layout: Layout) -> StreamFlow:
    """A whole decoder that says something."""
    model = loud(StreamFlow(layout, SMALL, MelConfig(), MelScale(), SpeakerConfig(channels=8)))
    assert isinstance(model, StreamFlow)
    return model


def voice(seconds: float, pitch_hz: float = 120.0, seed: int = 0) -> Wave:
    """Something like speech at 16 kHz: syllables of a buzzing, gliding, slightly noisy voice."""
    random = np.random.default_rng(seed)
    time = np.arange(round(seconds * 16000)) / 16000
    phase = 2 * np.pi * np.cumsum(pitch_hz * (1 + 0.2 * np.sin(2 * np.pi * (0.5 + random.random()) * time))) / 16000
    tilt = 1 + 0.5 * np.sin(2 * np.pi * (1 + random.random()) * time)
    buzz = sum(np.sin(k * phase) / k**tilt for k in range(1, 30))
    syllables = np.clip(np.sin(2 * np.pi * (2 + random.random()) * time + random.random()), 0, None)
    wave = 0.2 * syllables * buzz + 0.002 * random.standard_normal(len(time))
    return (0.6 * wave / np.abs(wave).max()).astype(np.float32)


def write_corpus(folder: Path, clips: int, speakers: int = 2, seconds: float = 1.5) -> Path:
    """Writes wavs of `speakers` voices, each in a folder of its own."""
    for i in range(clips):
        speaker = i % speakers
        path = folder / f"voice{speaker}" / f"clip{i:03d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        wave = voice(seconds + 0.13 * (i % 5), 100 + 60 * speaker, seed=i)
        soundfile.write(path, wave, 16000, subtype="PCM_16")
    return folder


def wandb_records(path: Path) -> Iterator[bytes]:
    """What W&B has written for its server: a LevelDB log, 32 KiB blocks, 7 bytes of header before each piece."""
    content, at, joined = path.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if 32768 - at % 32768 < 7:
            at += 32768 - at % 32768
            continue
        length, kind = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        joined += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            yield joined
            joined = b""


def segments_of(batch: Batch, config: SegmentConfig, seed: int = 0) -> Segments:
    """The segments of a batch, of the mel of the paper."""
    return cut(replace(batch, starts=draw_starts(batch, config, seed)), config.frames, MelSpectrogram(MelConfig()))
