"""Ranks that hear unequally many clips: the validation ends, and the scores of all clips are in one table."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from sf_lightning.data.shards import ShardSet
from tests.cli.test_cli import arguments


@pytest.mark.slow
def test_two_ranks_that_hear_three_and_two_clips_keep_the_scores_of_five(
    shards: ShardSet, tmp_path: Path, repository: Path
) -> None:
    more = ["--data.val_clips=5", "--data.lanes=2", "--trainer.devices=2", "--trainer.strategy=ddp"]
    script = tmp_path / "fit.py"  # Lightning starts the second rank by the name of the first's file
    script.write_text("from sf_lightning.cli.start import main; main()")
    command = [sys.executable, str(script), *arguments(shards, tmp_path / "run", *more, "--trainer.max_steps=2")]
    # The time limit is the claim: ranks that ask each other unequally often wait for ever.
    subprocess.run(command, cwd=repository, check=True, capture_output=True, timeout=600)
    with (tmp_path / "run" / "samples" / "step-000002" / "scores.csv").open() as file:
        rows = [*csv.DictReader(file)]
    for way in ("copy_synthesis", "look_up", "offline", "streamed"):
        assert len({row["key"] for row in rows if row["way"] == way}) == 5
    assert all(float(row["gap"]) >= 0 for row in rows if row["way"] == "streamed")
