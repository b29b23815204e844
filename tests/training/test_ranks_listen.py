"""Ranks that hear unequally many clips: the validation ends, and the scores of all clips are in one table."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from sf_lightning.data.shards import ShardSet
from tests.toys.cli import decoder_arguments, vocoder_arguments


def start(folder: Path, repository: Path, args: list[str]) -> None:
    """Runs `sf-fit` to its end."""
    script = folder / "fit.py"  # Lightning starts the second rank by the name of the first's file
    script.write_text("from sf_lightning.cli.start import main; main()")
    # The time limit is the claim: ranks that ask each other unequally often wait for ever.
    subprocess.run(
        [sys.executable, str(script), *args], cwd=repository, check=True, capture_output=True, timeout=600
    )


@pytest.mark.slow
def test_two_ranks_that_hear_three_and_two_clips_keep_the_scores_of_five(
    shards: ShardSet, tmp_path: Path, repository: Path
) -> None:
    more = ["--data.val_clips=5", "--data.lanes=2", "--trainer.devices=2", "--trainer.strategy=ddp"]
    start(tmp_path, repository, decoder_arguments(shards, tmp_path / "run", *more, "--trainer.max_steps=2"))
    with (tmp_path / "run" / "samples" / "step-000002" / "scores.csv").open() as file:
        rows = [*csv.DictReader(file)]
    for way in ("copy_synthesis", "look_up", "offline", "streamed"):
        assert len({row["key"] for row in rows if row["way"] == way}) == 5
    assert all(float(row["gap"]) >= 0 for row in rows if row["way"] == "streamed")


@pytest.mark.slow
def test_a_vocoder_of_two_ranks_that_hear_three_and_two_clips_has_the_scores_of_one_that_hears_five(
    shards: ShardSet, tmp_path: Path, repository: Path
) -> None:
    found = []
    for ranks in (1, 2):
        run, more = tmp_path / str(ranks), ["--data.val_clips=5", f"--trainer.devices={ranks}"]
        more += ["--trainer.strategy=ddp_find_unused_parameters_true", "--trainer.max_steps=2"]
        start(tmp_path, repository, vocoder_arguments(shards, run, *more))
        with (run / "csv" / "metrics.csv").open() as file:
            (row,) = [row for row in csv.DictReader(file) if row.get("val/loss")]
        found.append({name: float(row[name]) for name in row if name.startswith("griffin_lim/")})
    for name in ("griffin_lim/pesq_wb", "griffin_lim/stoi", "griffin_lim/mr_stft", "griffin_lim/mel_l1"):
        assert found[1][name] == pytest.approx(found[0][name], rel=1e-4), name
