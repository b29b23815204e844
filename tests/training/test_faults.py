"""Commands whose run is killed or has unreadable shards: it resumes bit-exactly, or stops with one error line."""

import csv
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from sf_lightning.cli import fit
from sf_lightning.data.shards import ShardSet
from tests.toys.cli import FIT, TOY_VOCODER, VOCODER_RECIPE, finish, logged_arguments, start_command


def logged_vocoder_arguments(shards: Path | str, run: Path, *more: str) -> list[str]:
    """Returns the same arguments for a vocoder whose discriminators are frozen in the first two steps."""
    shared = [
        argument
        for argument in logged_arguments(shards, run, *more)
        if not argument.startswith(("--config", "--model", "--trainer.precision"))
    ]
    return [
        f"--config={VOCODER_RECIPE}",
        *TOY_VOCODER,
        "--model.optimizer={freeze_steps: 2, decay: 0.99}",
        *shared,
    ]


def losses(run: Path) -> dict[int, str]:
    """Returns losses, norms and learning rates by step, as text; of several rows of a step, the last."""
    found = {}
    for path in sorted(run.rglob("metrics.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                if row.get("train/loss"):
                    found[int(row["step"])] = str({name: row[name] for name in row if name.startswith("train/")})
    return found


@pytest.mark.parametrize(
    "recipe", [logged_arguments, pytest.param(logged_vocoder_arguments, marks=pytest.mark.slow)]
)
def test_a_run_killed_within_an_epoch_resumes_with_the_losses_of_an_uninterrupted_run(
    shards: ShardSet, tmp_path: Path, recipe: Callable[..., list[str]]
) -> None:
    more = ["--trainer.max_steps=20", "--data.num_workers=1", "--trainer.accelerator=cpu"]
    finish(start_command(fit.main, recipe(shards.folder, tmp_path / "twin", *more)))
    process = start_command(fit.main, recipe(shards.folder, tmp_path / "run", *more))
    last, deadline = tmp_path / "run" / "checkpoints" / "last.ckpt", time.monotonic() + 120
    # Lightning writes a step's row after its callbacks save the step; a kill in between would lose that row.
    while time.monotonic() < deadline:
        time.sleep(0.005)
        if last.is_file():
            os.kill(process.pid, signal.SIGSTOP)
            if torch.load(last, weights_only=True)["global_step"] - 1 in losses(tmp_path / "run"):
                break
            os.kill(process.pid, signal.SIGCONT)
    process.kill()
    process.join()
    killed_at = max(losses(tmp_path / "run"), default=0)
    assert killed_at < 19, "it was too quick to be killed"
    finish(start_command(fit.main, recipe(shards.folder, tmp_path / "run", *more, "--ckpt_path=last")))
    twin, run = losses(tmp_path / "twin"), losses(tmp_path / "run")
    assert len(twin) == 20 and set(range(killed_at + 1, 20)) <= set(run)
    assert all(run[step] == twin[step] for step in run)


def test_a_rank_whose_shards_are_all_unreadable_stops_every_rank_with_one_error_line(
    shards: ShardSet, tmp_path: Path, repository: Path
) -> None:
    folder = tmp_path / "set"
    shutil.copytree(shards.folder, folder)
    for name in ("shard-000001.tar", "shard-000002.tar", "shard-000004.tar"):
        (folder / name).write_bytes(b"")
    more = [
        "--trainer.max_steps=1000",
        "--trainer.accelerator=cpu",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
    ]
    command = [*FIT, *logged_arguments(folder, tmp_path / "run", *more, f"--data.val={shards.folder}")]
    # The time limit is the test: a rank that blocks on the other would do so for half an hour.
    done = subprocess.run(command, cwd=repository, capture_output=True, text=True, timeout=150)
    assert done.returncode != 0
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert errors and "are broken" in errors[0] and "raise --data.max_bad_share" in errors[0]
    assert "Traceback" not in done.stderr
