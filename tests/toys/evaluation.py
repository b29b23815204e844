"""Checkpoints and vocoders to evaluate, without training."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from sf_lightning.audio.mel import MelConfig
from sf_lightning.evaluation.systems import Candidate
from sf_lightning.model.layout import Layout
from sf_lightning.model.pretrained import Description, ModelConfig, TokenizerName, WeightsOf
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import MelScale
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.vocoder.bigvgan import BigVGANVocoder
from sf_lightning.vocoder.config import VocoderConfig
from sf_lightning.vocoder.files import TrainedVocoder, save_vocoder
from sf_lightning.vocoder.generator import GeneratorConfig
from tests.toys.networks import SMALL_DIT

SMALL_GENERATOR = GeneratorConfig((10, 16), (20, 32), channels=16, kernel_sizes=(3,), dilations=(1,))


def write_small_vocoder(folder: Path, seed: int) -> None:
    """Writes a small vocoder with random weights, replacing the folder."""
    torch.manual_seed(seed)
    vocoder = BigVGANVocoder(SMALL_GENERATOR.hyperparameters(MelConfig()), MelConfig())
    shutil.rmtree(folder, ignore_errors=True)
    weights = vocoder.generator.state_dict()
    save_vocoder(folder, TrainedVocoder(weights, SMALL_GENERATOR, MelConfig(), WeightsOf(7, True)), "a card\n")


def make_candidate(
    path: str = "runs/a/checkpoints/last.ckpt",
    vocoder: VocoderConfig = VocoderConfig(),
    mel: MelConfig = MelConfig(),
    **decode: object,
) -> Candidate:
    """Returns a candidate without weights; loading it fails the test."""
    model = ModelConfig(Layout(4, 24, (0,), (2,)), SMALL_DIT, mel, MelScale(), SpeakerConfig(channels=8))
    decode_config = asdict(replace(DecodeConfig(steps=4), **decode))  # type: ignore[arg-type]
    tokenizer, weights = TokenizerName("kmeans", None), WeightsOf(1, True)
    description = Description(model, tokenizer, weights, decode_config, asdict(vocoder))
    return Candidate(path, description, "digest", lambda: pytest.fail("weights were loaded"))
