"""A toy run that many tests look at."""

import time
from pathlib import Path

import pytest
import wandb

from sf_lightning.cli import fit
from sf_lightning.data.shards import ShardSet
from tests.toys.cli import decoder_arguments


@pytest.fixture
def fitted(shards: ShardSet) -> ShardSet:
    """The shard set under a name that the module of the same name does not hide."""
    return shards


@pytest.fixture(scope="module")
def run(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished toy run."""
    folder = tmp_path_factory.mktemp("run") / "toy"
    preset = folder.with_name("layout.yaml")
    preset.write_text("backward: 1\nforward: 1\n")
    fit.main(decoder_arguments(shards, folder, f"--model.layout={preset}"))
    wandb.finish()  # as the end of the command does
    settled(folder)
    return folder


def settled(run: Path) -> None:
    """Waits for W&B's service: on a busy machine it closes a run's file after `finish` has returned."""
    before, deadline = None, time.monotonic() + 60
    while time.monotonic() < deadline:
        sizes = [path.stat().st_size for path in run.glob("wandb/offline-run-*/*.wandb")]
        if sizes == before and min(sizes) > 7:  # a header alone
            return
        before = sizes
        time.sleep(1)
    raise TimeoutError(f"W&B's service still writes to {run}: {before}")
