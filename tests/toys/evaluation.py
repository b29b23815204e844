"""Checkpoints, vocoders and clips to evaluate, without training."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.lanes import DrawnClip
from sf_lightning.data.sample import Clip
from sf_lightning.evaluation.systems import Candidate
from sf_lightning.model.layout import Layout
from sf_lightning.model.pretrained import Description, ModelConfig, TokenizerName, WeightsOrigin
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import MelScale
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.vocoder.config import VocoderConfig
from tests.toys.audio import synthetic_voice
from tests.toys.networks import SMALL_DIT


def make_candidate(
    path: str = "runs/a/checkpoints/last.ckpt",
    vocoder: VocoderConfig = VocoderConfig(),
    mel: MelConfig = MelConfig(),
    **decode: object,
) -> Candidate:
    """Returns a candidate without weights; loading it fails the test."""
    model = ModelConfig(Layout(4, 24, (0,), (2,)), SMALL_DIT, mel, MelScale(), SpeakerConfig(channels=8))
    decode_config = asdict(replace(DecodeConfig(steps=4), **decode))  # type: ignore[arg-type]
    tokenizer, weights = TokenizerName("kmeans", None), WeightsOrigin(1, True)
    description = Description(model, tokenizer, weights, decode_config, asdict(vocoder))
    return Candidate(path, description, "digest", lambda: pytest.fail("weights were loaded"))


def make_clip(key: str, seconds: float = 1.0, seed: int = 0) -> DrawnClip:
    """Returns a synthetic clip with random tokens and a reference crop of half a second."""
    wave = synthetic_voice(seconds, seed=seed)
    tokens = np.random.default_rng(seed).integers(0, SMALL_DIT.vocabulary, round(25 * seconds))
    return DrawnClip(Clip(key, wave, tokens, np.zeros(0, np.float32)), wave[:8000])
