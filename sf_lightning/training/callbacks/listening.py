"""What validations that listen have in common: a clock, scores by way, and what a fit ends with."""

import time
from abc import ABC, abstractmethod
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from sf_lightning.metrics.pool import shared_pool
from sf_lightning.metrics.speech import SpeechScores
from sf_lightning.streaming.latency import LatencyReport, latency_summary
from sf_lightning.training.callbacks.keeping import conclude
from sf_lightning.training.datamodule import ShardDataModule


class Listening(L.Callback, ABC):
    """Makes held-out clips at each validation, and scores, logs and keeps them; ends a fit with a table and a page.

    Attributes:
        rows: Scores of the last validation, by way of making.
        latency: Of a stream, where one was measured.
        samples: Folder of the last sounds.
    """

    def __init__(self) -> None:
        self.rows: dict[str, dict[str, float]] = {}
        self.latency: LatencyReport | None = None
        self.samples: Path | None = None

    def ready(self, sample_rate: int, copies: bool = False) -> None:
        """Fails now, not after an hour, if a metric cannot run; lets the metric processes start meanwhile."""
        SpeechScores(sample_rate, copies=copies)
        shared_pool().warm_up()

    @abstractmethod
    def listen(
        self, trainer: L.Trainer, pl_module: L.LightningModule, datamodule: ShardDataModule
    ) -> dict[str, float]:
        """Makes, scores and keeps; returns what is logged."""

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock: what validation costs is logged as `val/seconds`."""
        self._started = time.perf_counter()

    @torch.inference_mode()
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Listens and logs."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(datamodule, ShardDataModule)
        values = self.listen(trainer, pl_module, datamodule)
        values["val/seconds"] = time.perf_counter() - self._started
        pl_module.log_dict(values, batch_size=1)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the table of the last validation and what to open."""
        if trainer.is_global_zero and self.rows:
            said = latency_summary(self.latency) if self.latency else ""
            conclude(trainer, self.rows, said, self.samples, self.latency)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Does the same at once where nothing is trained."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_fit_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """What the last validation found: a run that is resumed at its end still has its table."""
        samples = str(self.samples) if self.samples else None
        return {"rows": self.rows, "latency": asdict(self.latency) if self.latency else None, "samples": samples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes it back."""
        self.rows = state_dict["rows"]
        self.latency = LatencyReport(**state_dict["latency"]) if state_dict.get("latency") else None
        self.samples = Path(state_dict["samples"]) if state_dict["samples"] else None
