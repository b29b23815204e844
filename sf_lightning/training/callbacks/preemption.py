"""Stopping a run on SIGUSR1 with everything saved, and resuming it as if it had never been stopped."""

import signal
import sys
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.distributed import ProcessGroup, ReduceOp, Work, all_reduce, is_initialized, new_group

from sf_lightning.training import stop
from sf_lightning.training.callbacks.last_checkpoint import LastCheckpoint
from sf_lightning.training.lightning_internals import (
    disable_sigterm_broadcast,
    is_accumulating,
    run_validation,
    set_logged_step,
    store_pending_validation,
)
from sf_lightning.training.loggers import ResumableCSVLogger
from sf_lightning.training.ranks import gather_over_ranks


class Preemption(L.Callback):
    """Saves everything and exits with `stop.EXIT_CODE` when the run is asked to stop.

    Ranks agree on the step, because the signal may reach them in different steps, or only some of them: they
    exchange a flag in every step while the step is computed, and at those points of a validation that all ranks
    pass. A step whose gradient comes from several batches is finished first. A validation that is interrupted is
    repeated on resume, and so is one that was due when the last checkpoint was written. Rows that a resumed run
    writes again are dropped from the table.

    Lightning's own requeueing saves inside the signal handler, and deadlocks if ranks get the signal in different
    steps.
    """

    def __init__(self) -> None:
        self._group: ProcessGroup | None = None
        self._exchange: tuple[Tensor, Work | None] | None = None
        self._stopping = self._validating = self._pending = False

    # -- stopping -------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Creates a process group on the CPU, over which ranks agree without waiting for their devices."""
        if is_initialized() and trainer.world_size > 1:
            self._group = new_group(backend="gloo")

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lets SIGTERM end the program at once: SIGUSR1 is the signal to save.

        Lightning's handler makes the ranks communicate inside it, and deadlocks.
        """
        signal.signal(signal.SIGTERM, stop.exit_on_sigterm)
        disable_sigterm_broadcast(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drops rows that will be written again; exits if the signal came before there was anything to save.

        Raises:
            RuntimeError: if ranks have resumed from different checkpoints.
        """
        if self._group is not None:
            steps = gather_over_ranks(trainer.global_step, self._group)
            if len(set(steps)) > 1:
                raise RuntimeError(
                    f"ranks have resumed at steps {steps}: expected one step; check that all nodes see the same "
                    "--trainer.default_root_dir"
                )
        self._drop_rows(trainer)
        if self._ranks_agree():
            self._exit(trainer)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Runs a pending validation after the last step, which Lightning skips because no step is left."""
        if self._pending:
            self._drop_rows(trainer)
            run_validation(trainer)
            self._save(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Exits once the step before is logged; starts to ask the ranks whether to stop after this one."""
        if self._stopping:
            self._exit(trainer)
        set_logged_step(trainer, trainer.global_step)
        self._exchange = self._exchange_flags()

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Saves if the ranks agree to stop."""
        if self._ranks_agree(self._exchange) and not is_accumulating(trainer):
            self._stopping = True
            self._save(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Exits before the validation that would follow."""
        if self._stopping:
            self._exit(trainer)
        self._validating = trainer.state.fn == "fit" and not trainer.sanity_checking

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Marks the validation as complete, so that it is not repeated."""
        self._validating = False

    def stop_if_requested(self, trainer: L.Trainer) -> None:
        """Saves and exits in the middle of a validation if the ranks agree to stop.

        A collective operation: all ranks must call it equally often, so not after each batch, of which a rank may
        have fewer than others.
        """
        if self._validating and self._ranks_agree() and not is_accumulating(trainer):
            self._save(trainer)
            self._exit(trainer)

    def _exchange_flags(self) -> tuple[Tensor, Work | None]:
        flag = torch.tensor(int(stop.REQUESTED.is_set()))
        return flag, all_reduce(flag, ReduceOp.MAX, self._group, async_op=True) if self._group else None

    def _ranks_agree(self, exchange: tuple[Tensor, Work | None] | None = None) -> bool:
        flag, work = exchange or self._exchange_flags()
        if work:
            work.wait()
        return bool(flag.item())

    def _save(self, trainer: L.Trainer) -> None:
        savers = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint)]
        with torch.inference_mode(False):  # a validation may have set it, and shards cannot be gathered in it
            for saver in savers or [LastCheckpoint()]:
                saver.save(trainer)

    def _exit(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero:
            print(f"stopped as requested after step {trainer.global_step}, exit code {stop.EXIT_CODE}", flush=True)
        trainer.strategy.barrier()
        stop.EXITING.set()
        # Only the rank whose loggers may still write exits with the code: a launcher kills the others when one
        # fails.
        sys.exit(stop.EXIT_CODE if trainer.is_global_zero else 0)

    # -- resuming -------------------------------------------------------------------------------------

    def _drop_rows(self, trainer: L.Trainer) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, ResumableCSVLogger):
                logger.drop_rows(trainer.global_step, not self._pending)
        self._pending = False

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stores whether a validation is pending; the table is on the disk before the checkpoint."""
        for logger in trainer.loggers:
            if isinstance(logger, ResumableCSVLogger):
                logger.sync()
        if "loops" in checkpoint and trainer.state.fn == "fit":
            checkpoint["validation_pending"] = store_pending_validation(trainer, checkpoint, self._validating)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Reads whether a validation is pending."""
        self._pending = checkpoint.get("validation_pending", False)


def stop_if_requested(trainer: L.Trainer) -> None:
    """Calls `Preemption.stop_if_requested`, if the run has that callback; for callbacks with a long validation."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Preemption):
            callback.stop_if_requested(trainer)
