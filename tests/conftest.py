"""Fixtures that many tests share."""

import json
import multiprocessing
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from bigvgan import BigVGAN
from bigvgan.env import AttrDict

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.build import build, fit_tokenizer
from sf_lightning.data.build_config import BuildConfig
from sf_lightning.data.corpus import find_parts
from sf_lightning.data.shards import ShardSet
from tests.toys.audio import write_corpus
from tests.toys.networks import SMALL_BIGVGAN

# Where tests are started in the background, shells have Ctrl-C ignored, and so would the programs under test.
signal.signal(signal.SIGINT, signal.default_int_handler)
# Whoever runs the tests may have a key: nothing is to be sent with it. W&B reads this once in a process.
os.environ["WANDB_MODE"] = "offline"


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """A shard set of 23 clips in 5 shards, with k-means tokens of 50 codes."""
    folder = tmp_path_factory.mktemp("shards")
    parts = find_parts(write_corpus(folder / "audio", clips=23), 5)
    tokenizer = fit_tokenizer(parts, 50, MelConfig())
    tokenizer.save(folder / "kmeans-50.npz")
    build(parts, folder / "set", BuildConfig(tokenizer, shard_samples=5))
    return ShardSet(folder / "set")


@pytest.fixture
def repository() -> Path:
    """The root of the repository."""
    return Path(__file__).parents[1]


@pytest.fixture
def bigvgan(tmp_path: Path) -> Path:
    """A small generator in the package's own format, with weights that say something."""
    torch.manual_seed(0)
    generator = BigVGAN(AttrDict(SMALL_BIGVGAN))
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.mul_(1.5)
    torch.save({"generator": generator.state_dict()}, tmp_path / "bigvgan_generator.pt")
    (tmp_path / "config.json").write_text(json.dumps(SMALL_BIGVGAN))
    return tmp_path


@pytest.fixture
def time_limit() -> Iterator[None]:
    """Kills ranks that wait for each other, so that a hang is a failure."""

    def end(*_: object) -> None:
        for rank in multiprocessing.active_children():
            rank.kill()

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(240)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
