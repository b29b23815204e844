"""Stack traces of a rank that hangs, in its log."""

import faulthandler
import sys
from collections import deque
from statistics import median
from threading import Timer
from time import perf_counter
from typing import Any

import lightning as L

STEPS = 100
"""Number of steps over which the median is taken; a tenth of them must be done before the watchdog reports."""


class Watchdog(L.Callback):
    """Reports rank, step and the stacks of all threads when a step takes much longer than those before it.

    A step lasts from the end of the one before it, so it includes the wait for data; the first one after a
    validation or a save starts with its batch. With accumulated gradients each batch counts as a step. The report
    goes to standard error, once per step, and does not end the run: a user does, or the timeout of the collectives.
    When one rank hangs, all others wait for it: theirs are the stacks that end in a collective. Where native code
    holds Python's lock, the stacks come without the line of rank and step.

    Args:
        factor: Ratio to the median duration of the last steps above which a step is reported.
        seconds: Shortest duration that is reported.
    """

    def __init__(self, factor: float = 20.0, seconds: float = 60.0) -> None:
        if factor <= 1 or seconds <= 0:
            raise ValueError(
                f"watchdog: factor is {factor}, seconds is {seconds}: expected more than 1, and more than 0"
            )
        self.factor, self.seconds = factor, seconds
        self._durations: deque[float] = deque(maxlen=STEPS)
        self._started: float | None = None
        self._timer: Timer | None = None

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Starts the watch after a pause."""
        if self._started is None:
            self._watch(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Records how long the step took, and watches the next."""
        if self._started is not None:
            self._durations.append(perf_counter() - self._started)
        self._watch(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pauses the watch."""
        self._pause()

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        """Pauses the watch."""
        self._pause()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends the watch."""
        self._pause()

    def on_exception(self, *args: Any) -> None:
        """Ends the watch."""
        self._pause()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ends the watch."""
        self._pause()

    def _watch(self, trainer: L.Trainer) -> None:
        self._pause()
        self._started = perf_counter()
        if len(self._durations) >= STEPS // 10:
            limit = max(self.seconds, self.factor * median(self._durations))
            self._timer = Timer(limit, report, (trainer.global_rank, trainer.global_step + 1, limit))
            self._timer.daemon = True
            self._timer.start()
            faulthandler.dump_traceback_later(limit + 0.2, file=sys.__stderr__ or sys.stderr)  # after that line

    def _pause(self) -> None:
        self._started = None
        if self._timer:
            self._timer.cancel()
        faulthandler.cancel_dump_traceback_later()


def report(rank: int, step: int, seconds: float) -> None:
    """Writes the line above the stacks to standard error."""
    print(f"rank {rank}: step {step} takes longer than {seconds:.0f} s; stacks of its threads:", file=sys.stderr)
