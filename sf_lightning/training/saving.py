"""Checkpoints that are whole or not there: written under another name, synced, and then given theirs."""

import os
import shutil
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from sf_lightning.files.identify import SHARDED_META


def saves_sharded_folders(strategy: Strategy) -> bool:
    """Whether its checkpoints are folders, of the shards of all ranks."""
    return isinstance(strategy, ModelParallelStrategy)


def newest_checkpoint(folder: Path) -> Path | None:
    """Returns the last checkpoint in a folder, or None if there is none."""
    # A folder's own time is no good: taking a file out of it sets it.
    marks = {path: path / SHARDED_META if path.is_dir() else path for path in folder.glob("last*.ckpt")}
    whole = [path for path, mark in marks.items() if mark.is_file()]
    return max(whole, key=lambda path: marks[path].stat().st_mtime, default=None)


def remove_checkpoint(path: Path) -> None:
    """Takes a checkpoint away: of a folder first its mark, so that none that is half gone is taken for whole."""
    if path.is_dir():
        (path / SHARDED_META).unlink(missing_ok=True)
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def is_accumulating(trainer: L.Trainer) -> bool:
    """Whether a step is begun whose gradient is yet to come from more batches: no checkpoint holds such a sum."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def settled(fresh: Path, path: Path) -> None:
    """Gives a file or folder its name when it is on the disk; what had the name is gone then.

    A folder cannot take the place of another in one stroke: for a moment neither has the name, and both are whole.
    """
    for each in [*fresh.rglob("*"), fresh] if fresh.is_dir() else [fresh]:
        _sync(each)
    old = path.with_name(f".{path.name}.old.writing")
    if path.is_dir():
        remove_checkpoint(old)
        path.replace(old)
    fresh.replace(path)
    _sync(path.parent)
    remove_checkpoint(old)


def _sync(path: Path) -> None:
    """Waits until a file, or the list of a folder's files, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Lightning's way of writing a checkpoint to one file, but whole or not at all."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves.

        Raises:
            OSError: if it cannot be written; what was there is untouched.
        """
        path = Path(path)
        fresh = path.with_name(f".{path.name}.writing")
        fresh.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.save(checkpoint, fresh)
            settled(fresh, path)
        except (OSError, RuntimeError) as error:  # torch says RuntimeError where the disk is full
            fresh.unlink(missing_ok=True)
            raise OSError(f"{path} could not be saved, what was saved before is untouched: {error}") from error
