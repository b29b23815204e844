"""What a rank that hangs was doing: the stacks of its threads, in its log."""

import faulthandler
import sys
from collections import deque
from statistics import median
from threading import Timer
from time import perf_counter
from typing import Any

import lightning as L

STEPS = 100
"""Of so many steps the median is taken; before the first tenth of them nothing is said."""


class Watchdog(L.Callback):
    """Tells rank, step and the stacks of all threads when a step takes much longer than those before it.

    A step lasts from the end of the one before it, so waiting for data counts, but for the first after a validation
    or a save, which begins with its batch. With accumulated gradients each batch is a step here. It is told, on
    standard error and once a step: whether to kill the run is for who reads it, or for the time limit of the
    collectives. Where one rank hangs all others wait for it: theirs are the stacks that end in a collective. A rank
    that is stuck in native code which holds Python's lock says nothing.

    Args:
        factor: By how much longer than the median of the last steps.
        seconds: And longer than this.
    """

    def __init__(self, factor: float = 20.0, seconds: float = 60.0) -> None:
        if factor <= 1 or seconds <= 0:
            raise ValueError(f"watchdog: factor {factor}, seconds {seconds}: wanted more than 1, and more than 0")
        self.factor, self.seconds = factor, seconds
        self._took: deque[float] = deque(maxlen=STEPS)
        self._since: float | None = None
        self._timer: Timer | None = None

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Begins to watch, if it does not yet."""
        if self._since is None:
            self._watch(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Notes what the step took, and watches the next."""
        if self._since is not None:
            self._took.append(perf_counter() - self._since)
        self._watch(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Looks away."""
        self._rest()

    def on_save_checkpoint(self, trainer: L.Trainer, *args: Any) -> None:
        """Looks away."""
        self._rest()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends."""
        self._rest()

    def on_exception(self, *args: Any) -> None:
        """Ends."""
        self._rest()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Ends."""
        self._rest()

    def _watch(self, trainer: L.Trainer) -> None:
        self._rest()
        self._since = perf_counter()
        if len(self._took) >= STEPS // 10:
            limit = max(self.seconds, self.factor * median(self._took))
            self._timer = Timer(limit, tell, (trainer.global_rank, trainer.global_step + 1, limit))
            self._timer.daemon = True
            self._timer.start()

    def _rest(self) -> None:
        self._since = None
        if self._timer:
            self._timer.cancel()


def tell(rank: int, step: int, seconds: float) -> None:
    """Writes the stacks of all threads of this process to standard error."""
    print(f"rank {rank}: step {step} takes longer than {seconds:.0f} s; its threads are here:", file=sys.stderr)
    faulthandler.dump_traceback(sys.__stderr__ or sys.stderr, all_threads=True)
