"""An exported decoder, and edits of its settings."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml

from sf_lightning.audio.mel import MelConfig
from sf_lightning.model.dit import DiTConfig
from sf_lightning.model.layout import Layout
from sf_lightning.model.pretrained import (
    Description,
    ModelConfig,
    Pretrained,
    TokenizerName,
    WeightsOrigin,
    save_export,
)
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import MelScale, StreamFlow
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.vocoder.config import VocoderConfig
from tests.toys.networks import randomize_weights


def small_decoder() -> Pretrained:
    """Returns a small decoder whose output depends on its inputs, with no setting at its default."""
    config = ModelConfig(
        Layout(3, 12, (0,), (1,), drawn_for=3),
        DiTConfig(width=16, num_heads=2, rope_heads=1, token_width=6, speaker_width=5, vocabulary=20),
        MelConfig(win_length=800, f_max=7600.0),
        MelScale(-4.5, 2.0),
        SpeakerConfig(channels=8, crop_seconds=0.5),
        "velocity",
    )
    model = randomize_weights(
        StreamFlow(config.layout, config.dit, config.mel, config.scale, config.speaker, config.predict)
    )
    assert isinstance(model, StreamFlow)
    decode = DecodeConfig(steps=3, method="midpoint", guidance=0.7, temperature=0.9, seed=5)
    description = Description(
        config,
        TokenizerName("kmeans", "abc"),
        WeightsOrigin(7, True),
        asdict(decode),
        asdict(VocoderConfig(None, 4)),
    )
    return Pretrained(model, description)


def write_export(folder: Path) -> Path:
    """Writes the folder of `small_decoder`, and returns it."""
    save_export(folder, small_decoder(), "A card.\n")
    return folder


def change(folder: Path, edit: Callable[[dict], Any]) -> None:
    """Edits `config.yaml`."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    edit(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def cut(path: Path) -> None:
    """Truncates a file to its first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
