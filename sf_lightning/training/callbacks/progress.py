"""The progress bar."""

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar


class ProgressBar(RichProgressBar):
    """Lightning's rich progress bar, over the steps of the run, that reads metrics at the interval of the loggers.

    Lightning's reads them after each batch, which makes the host wait for its device; shows a version number that
    this project does not have; and counts epochs, of which an endless stream has none.
    """

    def __init__(self, refresh_rate: int = 1, leave: bool = False) -> None:
        super().__init__(refresh_rate, leave)
        self._metrics: dict[str, int | str | float | dict[str, float]] = {}
        self._step = -1

    def _get_train_description(self, current_epoch: int) -> str:
        return f"{'Training':{len(self.validation_description)}}"

    def get_metrics(
        self, trainer: L.Trainer, pl_module: L.LightningModule
    ) -> dict[str, int | str | float | dict[str, float]]:
        """Returns the values beside the bar: in training those of each `--trainer.log_every_n_steps`."""
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = every and step % every == 0 and step != self._step
        if due or not trainer.training:
            self._metrics, self._step = super().get_metrics(trainer, pl_module), step
            self._metrics.pop("v_num", None)
        return self._metrics
