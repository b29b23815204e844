"""The progress bar."""

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's own, made with rich; its numbers are read from the device as seldom as those of the loggers.

    As it comes it reads them after each batch, and the host waits for that.
    """

    def __init__(self, refresh_rate: int = 1, leave: bool = False) -> None:
        super().__init__(refresh_rate, leave)
        self._read: dict[str, int | str | float | dict[str, float]] = {}
        self._step = -1

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Returns the numbers beside the bar: in training those of each `--trainer.log_every_n_steps`."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = every and step % every == 0 and step != self._step
        if due or not trainer.training:
            self._read, self._step = super().get_metrics(trainer, pl_module), step
        return self._read
