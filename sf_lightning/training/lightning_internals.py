"""The private parts of Lightning that the package uses, one function each, with the reason why.

`setup.cfg` pins Lightning below 2.7. `tests/training/test_lightning_internals.py` fails if a version changes one.
"""

from typing import Any

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy


def is_accumulating(trainer: L.Trainer) -> bool:
    """Returns whether the current step still lacks batches of its gradient, a sum that no checkpoint holds."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def disable_sigterm_broadcast(trainer: L.Trainer) -> None:
    """Stops the ranks from asking each other at every step whether SIGTERM came.

    The broadcast makes the host wait for its device in every step, and deadlocks if ranks get the signal in
    different steps. `Preemption` replaces it.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def set_logged_step(trainer: L.Trainer, step: int) -> None:
    """Sets the step that loggers write.

    Lightning's own counter is one ahead of `global_step` where a finished run is resumed with more steps, and
    counts from 0 in a validation of a checkpoint.
    """
    trainer.fit_loop.epoch_loop._batches_that_stepped = step


def run_validation(trainer: L.Trainer) -> None:
    """Runs the validation loop of a fit outside of the training loop, which skips it when no step is left."""
    trainer.validating = True
    trainer.fit_loop.epoch_loop.val_loop.run()
    trainer.training = True


def store_pending_validation(trainer: L.Trainer, checkpoint: dict[str, Any], interrupted: bool) -> bool:
    """Edits the loop state in a checkpoint such that a resumed run first runs the validation that is pending.

    Lightning would skip a validation that was due or interrupted when the checkpoint was written.

    Args:
        trainer: The trainer that saves.
        checkpoint: Its checkpoint, edited in place.
        interrupted: Whether a validation is running.

    Returns:
        Whether a validation is pending: one that is running, or due after the step just done.
    """
    loops, loop = checkpoint["loops"]["fit_loop"], trainer.fit_loop.epoch_loop
    progress = loops["epoch_loop.batch_progress"]
    at_batch_end = progress["total"]["completed"] == progress["total"]["processed"] - 1
    due = at_batch_end and loop._should_check_val_fx(trainer.fit_loop._data_fetcher)  # type: ignore[arg-type]
    pending = interrupted or due
    if due:  # as the validation itself would store it
        for counts in (progress["total"], progress["current"]):
            counts["completed"] = counts["processed"]
    none = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
    started = none | {"ready": int(pending), "started": int(pending)}
    loops["epoch_loop.val_loop.batch_progress"].update(total=started, current=none)
    return pending


def set_mesh_sizes(strategy: ModelParallelStrategy, replicas: int, shards: int) -> None:
    """Sets the two dimensions of the device mesh; the constructor cannot take them before the ranks are known."""
    strategy._data_parallel_size, strategy._tensor_parallel_size = replicas, shards


def finds_unused_parameters(strategy: Strategy) -> bool:
    """Returns whether a strategy is DDP that accepts parameters without a gradient."""
    return bool(getattr(strategy, "_ddp_kwargs", {}).get("find_unused_parameters"))


def drop_anonymous_setting(logger: WandbLogger) -> None:
    """Removes a setting that Lightning passes to W&B unset, about which W&B warns in every run."""
    logger._wandb_init.pop("anonymous", None)
