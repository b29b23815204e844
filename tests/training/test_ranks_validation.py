"""Ranks with different numbers of validation clips: no deadlock, and one table has the scores of all clips."""

import csv
import subprocess
import sys
from pathlib import Path

import pytest

from sf_lightning.data.shards import ShardSet
from tests.toys.cli import decoder_arguments, vocoder_arguments


def fit(folder: Path, repository: Path, args: list[str]) -> None:
    """Runs `sf-fit` until it ends."""
    script = folder / "fit.py"  # Lightning starts the second rank with the file of the first
    script.write_text("from sf_lightning.cli.start import main; main()")
    # Ranks that call collective operations a different number of times would deadlock until this time limit.
    subprocess.run(
        [sys.executable, str(script), *args], cwd=repository, check=True, capture_output=True, timeout=600
    )


@pytest.mark.slow
def test_two_ranks_with_three_and_two_clips_write_the_scores_of_five(
    shards: ShardSet, tmp_path: Path, repository: Path
) -> None:
    more = ["--data.val_clips=5", "--data.lanes=2", "--trainer.devices=2", "--trainer.strategy=ddp"]
    fit(tmp_path, repository, decoder_arguments(shards, tmp_path / "run", *more, "--trainer.max_steps=2"))
    with (tmp_path / "run" / "samples" / "step-000002" / "scores.csv").open() as file:
        rows = [*csv.DictReader(file)]
    for mode in ("copy_synthesis", "look_up", "offline", "streamed"):
        assert len({row["key"] for row in rows if row["way"] == mode}) == 5
    assert all(float(row["gap"]) >= 0 for row in rows if row["way"] == "streamed")


@pytest.mark.slow
def test_a_vocoder_has_the_same_scores_on_two_ranks_as_on_one(
    shards: ShardSet, tmp_path: Path, repository: Path
) -> None:
    scores = []
    for ranks in (1, 2):
        run, more = tmp_path / str(ranks), ["--data.val_clips=5", f"--trainer.devices={ranks}"]
        more += ["--trainer.strategy=ddp_find_unused_parameters_true", "--trainer.max_steps=2"]
        fit(tmp_path, repository, vocoder_arguments(shards, run, *more))
        with (run / "csv" / "metrics.csv").open() as file:
            (row,) = [row for row in csv.DictReader(file) if row.get("val/loss")]
        scores.append({name: float(row[name]) for name in row if name.startswith("griffin_lim/")})
    for name in ("griffin_lim/pesq_wb", "griffin_lim/stoi", "griffin_lim/mr_stft", "griffin_lim/mel_l1"):
        assert scores[1][name] == pytest.approx(scores[0][name], rel=1e-4), name
