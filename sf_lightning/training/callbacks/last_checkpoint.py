"""The newest state of a run on disk, from which `--ckpt_path=last` resumes."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from sf_lightning.files.atomic import remove_leftovers
from sf_lightning.training.lightning_internals import is_accumulating
from sf_lightning.training.saving import remove_checkpoint, saves_sharded_folders


class LastCheckpoint(Checkpoint):
    """Keeps one checkpoint, replaced after every validation or every few steps, and at the end of training.

    It is the file `checkpoints/last.ckpt` in the run's folder or, with sharded weights, a folder `last-STEP.ckpt`,
    because no folder can replace another atomically. The old one is deleted when the new one is complete.

    Lightning's `ModelCheckpoint` with `save_last` replaces its file only when the monitored value is at its best,
    and saves nothing when training ends between two occasions.

    Args:
        every_n_train_steps: Interval in steps at which to save; by default after each validation.
    """

    def __init__(self, every_n_train_steps: int | None = None) -> None:
        if every_n_train_steps is not None and every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps is {every_n_train_steps}: expected 1 or more")
        self.every_n_train_steps = every_n_train_steps
        self._saved_step = -1

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Marks the step of a resumed checkpoint as saved."""
        self._saved_step = trainer.global_step if trainer.ckpt_path else -1

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        """Saves every `every_n_train_steps` steps."""
        every = self.every_n_train_steps
        if every and trainer.global_step % every == 0 and not is_accumulating(trainer):
            self.save(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves after a validation; a checkpoint of this step from before lacks the validation's results."""
        if trainer.state.fn != "fit" or trainer.sanity_checking:
            return
        if self.every_n_train_steps:
            self._saved_step = -1
        elif not is_accumulating(trainer):
            self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the end of training."""
        self.save(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Saves now, unless this step is saved already; a collective operation, called on all ranks."""
        if trainer.global_step == self._saved_step:
            return
        folder = Path(trainer.default_root_dir) / "checkpoints"
        sharded = saves_sharded_folders(trainer.strategy)
        path = folder / (f"last-{trainer.global_step:07d}.ckpt" if sharded else "last.ckpt")
        trainer.save_checkpoint(path)
        self._saved_step = trainer.global_step
        if trainer.is_global_zero:
            for other in {*folder.glob("last*.ckpt")} - {path}:
                remove_checkpoint(other)
            remove_leftovers(folder, "last*.ckpt")
