"""The progress bar."""

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's own, made with rich; its numbers are read from the device as seldom as those of the loggers.

    As it comes it reads them after each batch, and the host waits for that.
    """

    def __init__(self) -> None:
        super().__init__()
        self._read: dict[str, int | str | float | dict[str, float]] = {}

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Returns the numbers beside the bar: in training those of each `--trainer.log_every_n_steps`."""
        if not trainer.training or trainer.global_step % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            self._read = super().get_metrics(trainer, pl_module)
        return self._read
