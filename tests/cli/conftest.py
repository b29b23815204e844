"""A finished toy run that many tests read."""

from pathlib import Path

import pytest
import wandb

from sf_lightning.cli import fit
from sf_lightning.data.shards import ShardSet
from tests.toys.cli import decoder_arguments
from tests.toys.tracking import wait_for_wandb


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
