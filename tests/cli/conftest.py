"""A finished toy run that many tests read."""

import time
from pathlib import Path

import pytest
import wandb

from sf_lightning.cli import fit
from sf_lightning.data.shards import ShardSet
from tests.toys.cli import decoder_arguments


@pytest.fixture
def fitted(shards: ShardSet) -> ShardSet:
    """Returns the shard set; test modules that import `sf_lightning.cli.shards` need this other name."""
    return shards


@pytest.fixture(scope="module")
def run(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns the folder of a finished toy run."""
    folder = tmp_path_factory.mktemp("run") / "toy"
    preset = folder.with_name("layout.yaml")
    preset.write_text("backward: 1\nforward: 1\n")
    fit.main(decoder_arguments(shards, folder, f"--model.layout={preset}"))
    wandb.finish()  # as at the end of the command
    wait_for_wandb(folder)
    return folder


def wait_for_wandb(run: Path) -> None:
    """Waits for W&B's service, which may close the file of a run after `finish` has returned."""
    before, deadline = None, time.monotonic() + 60
    while time.monotonic() < deadline:
        sizes = [path.stat().st_size for path in run.glob("wandb/offline-run-*/*.wandb")]
        if sizes == before and min(sizes) > 7:  # more than a header
            return
        before = sizes
        time.sleep(1)
    raise TimeoutError(f"W&B's service still writes to {run}: {before}")
