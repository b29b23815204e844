"""The newest state of a run, on disk: what `--ckpt_path=last` goes on from."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from sf_lightning.training.saving import is_accumulating, remove_checkpoint, saves_sharded_folders


class LastCheckpoint(Checkpoint):
    """Keeps one checkpoint: replaced after every validation, or every few steps, and at the end of training.

    It is `checkpoints/last.ckpt` in the run's folder; or, where weights are in shards, a folder `last-STEP.ckpt`,
    for no folder can take the place of another in one stroke. The old one goes when the new one is whole.

    Lightning's `ModelCheckpoint` with `save_last` replaces its file only when what it monitors is at its best, and
    never saves when training ends between two occasions.

    Args:
        every_n_train_steps: Save after so many steps instead of after validations.
    """

    def __init__(self, every_n_train_steps: int | None = None) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps is {every_n_train_steps}: wanted 1 or more")
        self.every_n_train_steps = every_n_train_steps
        self._saved = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """What was resumed from is saved already."""
        self._saved = trainer.global_step if trainer.ckpt_path else -1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Saves every few steps."""
        every = self.every_n_train_steps
        if every and trainer.global_step % every == 0 and not is_accumulating(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves after a validation; what was saved before it lacks what it found, should it be the last."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.every_n_train_steps:
            self._saved = -1
        elif not is_accumulating(trainer):
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the end."""
        self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Saves now, unless this step is saved already; all ranks must ask."""
        if trainer.global_step == self._saved:
            return
        folder = Path(trainer.default_root_dir) / "checkpoints"
        folders = saves_sharded_folders(trainer.strategy)
        path = folder / (f"last-{trainer.global_step:07d}.ckpt" if folders else "last.ckpt")
        trainer.save_checkpoint(path)
        self._saved = trainer.global_step
        if trainer.is_global_zero:
            # Also what a run that died has left half written, under a name that begins with a dot.
            for other in {*folder.glob("last*.ckpt"), *folder.glob(".last*.writing")} - {path}:
                remove_checkpoint(other)
