"""Checkpoints that are complete or absent: written under a temporary name, synced to disk, then renamed."""

import re
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from sf_lightning.files.atomic import atomic_path, delete
from sf_lightning.files.identify import SHARDED_META
from sf_lightning.files.torch_files import read_torch


def saves_sharded_folders(strategy: Strategy) -> bool:
    """Returns whether the checkpoints of a strategy are folders that hold the shards of all ranks."""
    return isinstance(strategy, ModelParallelStrategy)


def newest_checkpoint(folder: Path) -> Path | None:
    """Returns the complete `last*.ckpt` of the highest step in a folder, or None if there is none."""
    # Not by time first: clocks of nodes differ, and jump.
    marks = {path: path / SHARDED_META if path.is_dir() else path for path in folder.glob("last*.ckpt")}
    complete = [path for path, mark in marks.items() if mark.is_file()]
    if len(complete) < 2:
        return next(iter(complete), None)
    return max(complete, key=lambda path: (_step(path), marks[path].stat().st_mtime))


def _step(path: Path) -> int:
    """Returns the step of a checkpoint, -1 if it is damaged."""
    if named := re.fullmatch(r"last-(\d+)\.ckpt", path.name):
        return int(named[1])
    try:
        return int(read_torch(path)["global_step"])
    except (KeyError, TypeError, ValueError):
        return -1


def remove_checkpoint(path: Path) -> None:
    """Deletes a checkpoint; of a folder the metadata first, so that a half deleted one counts as incomplete."""
    if path.is_dir() and not path.is_symlink():
        (path / SHARDED_META).unlink(missing_ok=True)
    delete(path)


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to one file as Lightning does, but atomically."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Saves a checkpoint.

        Raises:
            OSError: if it cannot be written; an existing file at `path` is then untouched.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with atomic_path(path, sync=True) as temporary:
                torch.save(checkpoint, temporary)
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError where the disk is full
            raise OSError(f"{path} cannot be saved; the checkpoint saved before is untouched: {error}") from error
