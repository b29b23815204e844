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

# A shell that starts tests in the background ignores SIGINT, and the programs under test would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # likewise under nohup
# Nothing may be uploaded, even if an API key is configured. W&B reads this once per process.
os.environ["WANDB_MODE"] = "offline"
# Ranks of tests are forked from a process that has imported this, instead of each importing it for ten seconds.
multiprocessing.set_forkserver_preload(["lightning.pytorch", "sf_lightning.cli.fit", "tests.toys.decoder"])


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Returns a shard set of 23 clips in 5 shards, with k-means tokens of 50 codes."""
    folder = tmp_path_factory.mktemp("shards")
    parts = find_parts(write_corpus(folder / "audio", clips=23), 5)
    tokenizer = fit_tokenizer(parts, 50, MelConfig())
    tokenizer.save(folder / "kmeans-50.npz")
    build(parts, folder / "set", BuildConfig(tokenizer, shard_samples=5))
    return ShardSet(folder / "set")


@pytest.fixture
def repository() -> Path:
    """Returns the root of the repository."""
    return Path(__file__).parents[1]


@pytest.fixture
def bigvgan(tmp_path: Path) -> Path:
    """Returns the folder of a small BigVGAN in its package's own format, with weights far from silence."""
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
    """Kills child processes after 240 s, so that a deadlock of ranks is a failure."""

    def kill_children(*_: object) -> None:
        for rank in multiprocessing.active_children():
            rank.kill()

    before = signal.signal(signal.SIGALRM, kill_children)
    signal.alarm(240)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
