"""A run that is stopped at any moment and resumed logs the same table as an uninterrupted run."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import wandb
from wandb.proto.wandb_internal_pb2 import Record

from sf_lightning.data.shards import ShardSet
from sf_lightning.files.atomic import rename_synced
from sf_lightning.training import stop
from sf_lightning.training.callbacks.last_checkpoint import LastCheckpoint
from sf_lightning.training.callbacks.preemption import Preemption
from sf_lightning.training.callbacks.streaming_validation import StreamingValidation
from sf_lightning.training.loggers import ResumableCSVLogger, ResumableWandbLogger
from sf_lightning.training.saving import AtomicCheckpointIO, newest_checkpoint, remove_checkpoint
from tests.toys.decoder import decoder_data, decoder_module
from tests.toys.tracking import wandb_records

TIMES = ("latency/", "val/seconds")
"""Columns that are never the same twice."""


@pytest.fixture(autouse=True)
def no_stop_requested() -> Iterator[None]:
    """Clears the stop request and restores the signal handler of SIGTERM."""
    stop.REQUESTED.clear()
    before = signal.getsignal(signal.SIGTERM)
    yield
    stop.REQUESTED.clear()
    stop.EXITING.clear()
    signal.signal(signal.SIGTERM, before)


class StopAt(L.Callback):
    """Requests a stop when a hook is called for the n-th time."""

    def __init__(self, hook: str, times: int) -> None:
        self.left = times
        setattr(self, hook, self._called)

    def _called(self, *args: Any, **kwargs: Any) -> None:
        self.left -= 1
        if self.left == 0:
            stop.REQUESTED.set()


def run(
    folder: Path, shards: ShardSet, *more: L.Callback, every: int | None = None, steps: int = 8, batches: int = 1
) -> L.Trainer:
    """Trains `steps` steps with a validation after every third, resuming from the newest checkpoint in `folder`."""
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=steps,
        max_epochs=-1,
        accumulate_grad_batches=batches,
        val_check_interval=3 * batches,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        logger=[ResumableCSVLogger(str(folder))],
        callbacks=[*more, Preemption(), StreamingValidation(0), LastCheckpoint(every)],
        plugins=[AtomicCheckpointIO()],
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(decoder_module(), decoder_data(shards), ckpt_path=newest_checkpoint(folder / "checkpoints"))
    return trainer


def rows(folder: Path) -> list[dict[str, str]]:
    """Returns the rows of a run's table without times and empty values."""
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return [
            {name: value for name, value in row.items() if value and not name.startswith(TIMES)}
            for row in csv.DictReader(file)
        ]


@pytest.fixture(scope="module")
def twin(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Returns the rows of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("twin")
    run(folder, shards)
    return rows(folder)


@pytest.mark.parametrize(
    ("hook", "times", "step", "every"),
    [
        pytest.param("on_fit_start", 1, 0, None, marks=pytest.mark.slow),
        ("on_train_batch_start", 2, 2, None),
        pytest.param("on_train_batch_end", 2, 3, None, marks=pytest.mark.slow),  # in the step before a validation
        ("on_train_batch_end", 3, 3, 3),  # before a validation, when the step is already saved
        pytest.param("on_validation_start", 1, 3, None, marks=pytest.mark.slow),
        ("on_validation_batch_end", 1, 3, 2),  # handled before clips are decoded
        ("on_validation_epoch_end", 1, 3, None),  # before clips are decoded
        pytest.param("on_validation_epoch_end", 2, 6, 3, marks=pytest.mark.slow),
        ("on_validation_end", 2, 7, None),
    ],
)
def test_a_stopped_run_resumes_with_the_rows_of_an_uninterrupted_one(
    shards: ShardSet, tmp_path: Path, twin: list, hook: str, times: int, step: int, every: int | None
) -> None:
    with pytest.raises(SystemExit) as left:
        run(tmp_path, shards, StopAt(hook, times), every=every)
    assert left.value.code == 75 and (newest_checkpoint(tmp_path / "checkpoints") is None) == (step == 0)
    if step:
        saved = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
        assert saved["global_step"] == step
    stop.REQUESTED.clear()
    assert run(tmp_path, shards, every=every).global_step == 8
    assert rows(tmp_path) == twin


@pytest.mark.parametrize(("hook", "times"), [("on_train_batch_start", 3), ("on_validation_epoch_end", 1)])
def test_a_step_of_several_batches_is_finished_before_the_run_stops(
    shards: ShardSet, tmp_path: Path, hook: str, times: int
) -> None:
    run(tmp_path / "twin", shards, batches=2, steps=5)
    folder = tmp_path / "run"
    with pytest.raises(SystemExit):
        run(folder, shards, StopAt(hook, times), batches=2, steps=5, every=10)
    stop.REQUESTED.clear()
    run(folder, shards, batches=2, steps=5, every=10)
    assert rows(folder) == rows(tmp_path / "twin")


def test_no_checkpoint_is_saved_within_a_step_of_several_batches(shards: ShardSet, tmp_path: Path) -> None:
    class CheckpointRecorder(L.Callback):
        """Records before every batch whether a checkpoint exists."""

        def __init__(self) -> None:
            self.exists: list[bool] = []

        def on_train_batch_start(self, *args: Any) -> None:
            self.exists.append(newest_checkpoint(tmp_path / "checkpoints") is not None)

    recorder = CheckpointRecorder()
    run(tmp_path, shards, recorder, batches=3, steps=2, every=1)
    assert recorder.exists == [False, False, False, True, True, True]


@pytest.mark.parametrize("every", [None, pytest.param(3, marks=pytest.mark.slow)])
def test_the_validation_after_the_last_step_is_not_lost(
    shards: ShardSet, tmp_path: Path, every: int | None
) -> None:
    run(tmp_path / "twin", shards, steps=6)
    folder = tmp_path / "run"
    with pytest.raises(SystemExit):
        run(folder, shards, StopAt("on_validation_epoch_end", 2), steps=6, every=every)
    stop.REQUESTED.clear()
    run(folder, shards, steps=6, every=every)
    assert rows(folder) == rows(tmp_path / "twin")
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert not saved["validation_pending"] and saved["callbacks"]["StreamingValidation"]["rows"]


def test_a_run_without_checkpoint_callback_is_saved_when_it_is_stopped(shards: ShardSet, tmp_path: Path) -> None:
    trainer = L.Trainer(
        accelerator="cpu",
        max_steps=4,
        limit_val_batches=0,
        logger=False,
        callbacks=[StopAt("on_train_batch_start", 2), Preemption()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    with pytest.raises(SystemExit):
        trainer.fit(decoder_module(), decoder_data(shards))
    assert newest_checkpoint(tmp_path / "checkpoints") == tmp_path / "checkpoints" / "last.ckpt"


def test_a_run_that_failed_drops_the_rows_after_its_checkpoint_and_repeats_the_interrupted_validation(
    shards: ShardSet, tmp_path: Path, twin: list
) -> None:
    class Fail(L.Callback):
        def on_validation_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 6:
                raise RuntimeError("died")

    # The last checkpoint has step 6, before its validation, or step 5.
    for every in (3, 5):
        folder = tmp_path / str(every)
        with pytest.raises(RuntimeError, match="died"):
            run(folder, shards, Fail(), every=every)
        assert run(folder, shards, every=every).global_step == 8
        assert rows(folder) == twin


def test_a_completed_run_is_unchanged_when_it_is_started_again(
    shards: ShardSet, tmp_path: Path, twin: list
) -> None:
    run(tmp_path, shards)
    run(tmp_path, shards)
    assert rows(tmp_path) == twin


def test_an_offline_wandb_run_keeps_its_id_and_its_steps_on_resume(tmp_path: Path) -> None:
    for steps in ((0, 1, 2), (3, 4)):
        logger = ResumableWandbLogger(str(tmp_path), id="same")
        for step in steps:
            logger.log_metrics({"train/loss": float(step)}, step)
            logger.log_metrics({"beside": float(step)})  # as pictures are logged
        wandb.finish()
        time.sleep(1)  # W&B names its folder after the time in seconds
    found = {}
    for path in sorted(tmp_path.glob("wandb/offline-run-*/run-same.wandb")):
        for content in wandb_records(path):
            record = Record()
            record.ParseFromString(content)
            if record.WhichOneof("record_type") == "history":
                row = {
                    "/".join(item.nested_key) or item.key: json.loads(item.value_json)
                    for item in record.history.item
                }
                found[row["_step"]] = row["train/loss"], row["beside"]
    assert found == {step: (step, step) for step in range(5)}


def test_sigusr1_requests_a_stop_and_kills_neither_the_program_nor_its_children() -> None:
    program = """
import os, signal, subprocess, sys, time
from sf_lightning.files.atomic import rename_synced
from sf_lightning.training import stop
assert "torch" not in sys.modules
stop.watch_signals()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(0.5)"])
for process in (child.pid, os.getpid()):
    os.kill(process, signal.SIGUSR1)
assert stop.REQUESTED.wait(5) and child.wait() == 0
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_a_failed_save_keeps_the_previous_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    saver = AtomicCheckpointIO()
    saver.save_checkpoint({"step": 1}, path)

    class FullDisk:
        """An object that raises while it is saved."""

        def __reduce__(self) -> Any:
            raise OSError(28, os.strerror(28))

    with pytest.raises(OSError, match=r"last.ckpt cannot be saved; .* untouched: .*No space left"):
        saver.save_checkpoint({"weights": torch.zeros(1000), "full": FullDisk()}, path)
    assert torch.load(path) == {"step": 1} and [*tmp_path.iterdir()] == [path]


def test_only_a_complete_folder_is_a_checkpoint(tmp_path: Path) -> None:
    for name in ("last-0000002.ckpt", ".0123456789abcdef.last-0000004.ckpt", "last-0000003.ckpt"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__0_0.distcp").touch()
    assert newest_checkpoint(tmp_path) is None
    (tmp_path / "last-0000002.ckpt" / "meta.pt").touch()
    assert newest_checkpoint(tmp_path) == tmp_path / "last-0000002.ckpt"


def test_a_partly_deleted_older_folder_is_not_the_newest_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for age, name in enumerate(("last-0000004.ckpt", "last-0000002.ckpt")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__0_0.distcp").touch()
        (tmp_path / name / "meta.pt").touch()
        os.utime(tmp_path / name / "meta.pt", (1e9 - age, 1e9 - age))
    old, new = tmp_path / "last-0000002.ckpt", tmp_path / "last-0000004.ckpt"
    (old / "__0_0.distcp").unlink()  # updates the modification time of the folder
    assert newest_checkpoint(tmp_path) == new

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_checkpoint(new)
    assert newest_checkpoint(tmp_path) == old
    monkeypatch.undo()


def test_a_folder_replaces_another_atomically(tmp_path: Path) -> None:
    path, fresh = tmp_path / "last-0000002.ckpt", tmp_path / ".0123456789abcdef.last-0000002.ckpt"
    for content in ("first", "second"):
        fresh.mkdir()
        (fresh / "meta.pt").write_text(content)
        rename_synced(fresh, path)
        assert (path / "meta.pt").read_text() == content and [*tmp_path.iterdir()] == [path]


def test_an_unfinished_checkpoint_of_a_killed_run_is_removed(shards: ShardSet, tmp_path: Path) -> None:
    unfinished = tmp_path / "checkpoints" / ".0123456789abcdef.last-0000002.ckpt"
    unfinished.mkdir(parents=True)
    (unfinished / "__0_0.distcp").touch()
    run(tmp_path, shards, steps=1)
    assert [path.name for path in unfinished.parent.iterdir()] == ["last.ckpt"]
