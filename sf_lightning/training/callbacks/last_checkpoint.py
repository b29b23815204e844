"""The newest state of a run, on disk: what `--ckpt_path=last` goes on from."""

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class LastCheckpoint(ModelCheckpoint):
    """Keeps `last.ckpt`: replaced after every validation, or every few steps, and at the end of training.

    `save_last` of a callback that monitors something replaces its file only when that is at its best, and no
    callback of Lightning saves when training ends between two occasions.

    Args:
        dirpath: Where; by default `checkpoints` in the run's folder.
        every_n_train_steps: Save after so many steps instead of after validations.
    """

    def __init__(self, dirpath: str | None = None, every_n_train_steps: int | None = None) -> None:
        super().__init__(
            dirpath=dirpath,
            filename="last",
            every_n_train_steps=every_n_train_steps,
            save_on_train_epoch_end=False,
            enable_version_counter=False,
        )

    def on_train_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Saves the end, if it is not saved yet."""
        super().on_train_end(trainer, pl_module)
        if trainer.global_step != self._last_global_step_saved:
            assert self.dirpath is not None
            path = str(Path(self.dirpath) / "last.ckpt")
            trainer.save_checkpoint(path)
            self.best_model_path, self._last_global_step_saved = path, trainer.global_step
