"""A run that is stopped and goes on as if it had not been: when it leaves, and what it finds when it is back."""

import signal
import sys
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, Work, all_reduce, is_initialized, new_group

from sf_lightning.training import stop
from sf_lightning.training.callbacks.last_checkpoint import LastCheckpoint
from sf_lightning.training.loggers import ResumableCSVLogger
from sf_lightning.training.ranks import gather_over_ranks
from sf_lightning.training.saving import is_accumulating


class Preemption(L.Callback):
    """Leaves when the run is asked to stop, with everything saved; `stop.EXIT_CODE` says that it is to go on.

    Ranks agree, for the signal may reach them at different steps, or not all of them: they ask each other at every
    step, while the step is computed, and between the parts of a validation that all of them come by. A step whose
    gradient comes from several batches is finished. A validation that is interrupted is repeated, and so is one
    that was due when the last checkpoint was written. Rows that will be written again are dropped from the table.

    Lightning's own requeueing saves inside the signal's handler, and waits for ever if ranks hear it in different
    steps.
    """

    def __init__(self) -> None:
        self._group: ProcessGroup | None = None
        self._asking: tuple[Tensor, Work | None] | None = None
        self._leaving = self._validating = self._pending = False

    # -- leaving --------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Gives the ranks a way to ask each other that does not go over their devices."""
        if is_initialized() and trainer.world_size > 1:
            self._group = new_group(backend="gloo")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lets SIGTERM end the program: what can be kept was kept when SIGUSR1 came.

        Lightning would have the ranks talk to each other in the handler, and wait for ever; and at every step,
        where the host would wait for its device.
        """
        signal.signal(signal.SIGTERM, stop.exit_on_sigterm)
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drops rows that will come again; leaves if the signal came before there was anything to save.

        Raises:
            RuntimeError: if ranks have resumed from different checkpoints.
        """
        self._same_step(trainer)
        self._forget(trainer)
        if self._agreed():
            self._leave(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Repeats a validation that was to follow the last step: with no step to take, Lightning skipped it."""
        if self._pending:
            self._forget(trainer)
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True
            self._save(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Leaves after a step of whose end all is logged; begins to ask whether to leave after this one."""
        if self._leaving:
            self._leave(trainer)
        # What loggers call a step. Lightning's own count is one ahead where an ended run is given more steps.
        trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step
        self._asking = self._ask()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Saves if the ranks agree to leave."""
        if self._agreed(self._asking) and not is_accumulating(trainer):
            self._leaving = True
            self._save(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leaves before the validation that would follow."""
        if self._leaving:
            self._leave(trainer)
        self._validating = trainer.state.fn == "fit" and not trainer.sanity_checking

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The validation is done, and need not be repeated."""
        self._validating = False

    def stop_if_requested(self, trainer: L.Trainer) -> None:
        """Leaves a validation in its middle if the ranks agree to.

        All must ask the same number of times: not after each batch, of which a rank may have fewer than others.
        """
        if self._validating and self._agreed() and not is_accumulating(trainer):
            self._save(trainer)
            self._leave(trainer)

    def _ask(self) -> tuple[Tensor, Work | None]:
        flag = torch.tensor(int(stop.REQUESTED.is_set()))
        return flag, all_reduce(flag, ReduceOp.MAX, self._group, async_op=True) if self._group else None

    def _agreed(self, asked: tuple[Tensor, Work | None] | None = None) -> bool:
        flag, work = asked or self._ask()
        if work:
            work.wait()
        return bool(flag.item())

    def _save(self, trainer: L.Trainer) -> None:
        savers = [each for each in trainer.checkpoint_callbacks if isinstance(each, LastCheckpoint)]
        with torch.inference_mode(False):  # who validates may be in it, and shards cannot be gathered there
            for saver in savers or [LastCheckpoint()]:
                saver.save(trainer)

    def _leave(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            print(f"stopped as asked after step {trainer.global_step}, exit code {stop.EXIT_CODE}", flush=True)
        trainer.strategy.barrier()
        stop.EXITING.set()
        # One rank says so, the one whose loggers may still write: whoever sees a rank fail kills the others.
        sys.exit(stop.EXIT_CODE if trainer.is_global_zero else 0)

    def _same_step(self, trainer: L.Trainer) -> None:
        if self._group is None:
            return
        steps = gather_over_ranks(trainer.global_step, self._group)
        if len(set(steps)) > 1:
            raise RuntimeError(f"ranks have resumed at steps {steps}: do they all see the same run folder?")

    # -- coming back ----------------------------------------------------------------------------------

    def _forget(self, trainer: L.Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, ResumableCSVLogger):
                logger.forget(trainer.global_step, not self._pending)
        self._pending = False

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Says in the checkpoint whether a validation is to follow, in the way that Lightning's loops understand.

        They would skip it, as they would one that was interrupted.
        """
        if "loops" not in checkpoint or trainer.state.fn != "fit":
            return
        loops = checkpoint["loops"]["fit_loop"]
        progress, loop = loops["epoch_loop.batch_progress"], trainer.fit_loop.epoch_loop
        at_batch_end = progress["total"]["completed"] == progress["total"]["processed"] - 1
        due = at_batch_end and loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
        pending = self._validating or due
        if due:  # as it would be saved by the validation
            for counts in (progress["total"], progress["current"]):
                counts["completed"] = counts["processed"]
        none = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
        begun = none | {"ready": int(pending), "started": int(pending)}
        loops["epoch_loop.val_loop.batch_progress"].update(total=begun, current=none)
        checkpoint["validation_pending"] = pending

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Reads it."""
        self._pending = checkpoint.get("validation_pending", False)


def stop_if_requested(trainer: L.Trainer) -> None:
    """For callbacks that take long to validate: the place to leave; see `Preemption.stop_if_requested`."""
    for each in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(each, Preemption):
            each.stop_if_requested(trainer)
