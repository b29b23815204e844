"""A small vocoder in a folder, as `sf-export` writes it."""

import shutil
from pathlib import Path

import torch

from sf_lightning.audio.mel import MelConfig
from sf_lightning.model.pretrained import WeightsOrigin
from sf_lightning.vocoder.bigvgan import BigVGANVocoder
from sf_lightning.vocoder.files import TrainedVocoder, save_vocoder
from sf_lightning.vocoder.generator import GeneratorConfig

SMALL_GENERATOR = GeneratorConfig((10, 16), (20, 32), channels=16, kernel_sizes=(3,), dilations=(1,))


def write_vocoder(folder: Path, seed: int = 0, mel: MelConfig = MelConfig()) -> Path:
    """Writes a vocoder with random weights to a folder, replaces what is there, and returns the folder."""
    torch.manual_seed(seed)
    weights = BigVGANVocoder(SMALL_GENERATOR.hyperparameters(mel), mel).generator.state_dict()
    shutil.rmtree(folder, ignore_errors=True)
    save_vocoder(folder, TrainedVocoder(weights, SMALL_GENERATOR, mel, WeightsOrigin(7, True)), "a card\n")
    return folder
