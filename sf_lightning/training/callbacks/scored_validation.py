"""What validations that decode and score clips have in common: timing, scores by mode, and the report of a run."""

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from sf_lightning.evaluation.scores import ClipScorer
from sf_lightning.metrics.pool import shared_pool
from sf_lightning.metrics.speech import ScoreMeans
from sf_lightning.streaming.latency import LatencyReport
from sf_lightning.training.callbacks.run_report import report_run
from sf_lightning.training.datamodule import ShardDataModule


class ScoredValidation(L.Callback, ABC):
    """Decodes held-out clips at each validation, scores and logs them, and ends a fit with a table and a page.

    Args:
        copies: Whether clips are vocoded from their own mels; see `ClipScorer`.

    Attributes:
        rows: Mean scores of the last validation by mode of decoding ("copy_synthesis", "streamed" and so on).
        latency: Latency report of a stream, where one was measured.
        samples: Folder of the last sounds and pictures.
    """

    def __init__(self, copies: bool = False) -> None:
        self.copies = copies
        self.rows: dict[str, dict[str, float]] = {}
        self.latency: LatencyReport | None = None
        self.samples: Path | None = None

    def prepare_scoring(self, sample_rate: int) -> None:
        """Creates the scorer, which fails now and not after an hour if it cannot score; starts its processes.

        Raises:
            ValueError, RuntimeError: as `ClipScorer`.
        """
        self.scorer = ClipScorer(copies=self.copies, sample_rate=sample_rate)
        shared_pool().warm_up()

    @abstractmethod
    def evaluate(
        self, trainer: L.Trainer, pl_module: L.LightningModule, datamodule: ShardDataModule
    ) -> dict[str, float]:
        """Decodes and scores the clips of this rank, keeps some, and returns the values to log."""

    def mean_scores(
        self, scores: Sequence[dict[str, float]], num_frames: Sequence[int], device: torch.device
    ) -> dict[str, float]:
        """Returns the mean scores of the clips of all ranks; a collective operation on `device`.

        `scores` are those of each clip of this rank, `num_frames` its mel frames.
        """
        means = ScoreMeans(self.scorer.names, device)
        for values, frames in zip(scores, num_frames, strict=True):
            means.update(values, frames)
        return means.compute()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock of `val/seconds`."""
        self._start = time.perf_counter()

    @torch.inference_mode()
    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Evaluates the clips and logs the values."""
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(datamodule, ShardDataModule)
        values = self.evaluate(trainer, pl_module, datamodule)
        values["val/seconds"] = time.perf_counter() - self._start
        pl_module.log_dict(values, batch_size=1)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the table of the last validation and the paths of the run's files."""
        if trainer.is_global_zero and self.rows:
            report_run(trainer, self.rows, self.samples, self.latency)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints them after a validation alone."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self.on_fit_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """Returns the results of the last validation, so that a run resumed at its end still has its table."""
        samples = str(self.samples) if self.samples else None
        return {"rows": self.rows, "latency": asdict(self.latency) if self.latency else None, "samples": samples}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores the results of the last validation."""
        self.rows = state_dict["rows"]
        self.latency = LatencyReport(**state_dict["latency"]) if state_dict.get("latency") else None
        self.samples = Path(state_dict["samples"]) if state_dict["samples"] else None
