"""Loggers of a run that is stopped and goes on: one table and one W&B run, with no row missing and none twice."""

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class _Rows(ExperimentWriter):
    """Lightning's writer, which appends, but goes on with a table that is there."""

    def __init__(self, log_dir: str) -> None:
        super().__init__(log_dir)
        if Path(self.metrics_file_path).is_file():
            with open(self.metrics_file_path, newline="") as file:
                self.metrics_keys = list(csv.DictReader(file).fieldnames or [])

    def _check_log_dir_exists(self) -> None:
        """Deletes nothing."""


class ResumableCSVLogger(CSVLogger):
    """Writes `csv/metrics.csv` in the run's folder, a row at a time.

    Args:
        save_dir: The run's folder.
    """

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__(save_dir, "csv", version="", flush_logs_every_n_steps=1)

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """What writes."""
        if self._experiment is None:
            self._experiment = _Rows(self.log_dir)
        return self._experiment  # type: ignore[return-value]

    @rank_zero_only
    def forget(self, step: int, validated: bool) -> None:
        """Drops the rows that a run which goes on will write again.

        Args:
            step: Steps that are done; rows count them from 0.
            validated: Whether the validation after the last of them, if one is due there, is done too.
        """
        path = Path(self.log_dir, "metrics.csv")
        if not path.is_file():
            return
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            names, rows = reader.fieldnames or [], list(reader)
        done = step - (not validated)
        kept = [row for row in rows if int(row["step"]) < (done if row.get("val/loss") else step)]
        if len(kept) == len(rows):
            return
        fresh = path.with_suffix(".writing")
        with fresh.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(kept)
        fresh.replace(path)
        self._experiment = None


class ResumableWandbLogger(WandbLogger):
    """Logs to W&B under the step of the run.

    W&B's own count of calls would begin at 0 again whenever a run goes on without its server.

    Args:
        save_dir: The run's folder.
        project: Of W&B's.
        id: Of the run; `sf-fit` keeps it in the run's folder.
        **kwargs: As Lightning's `WandbLogger`.
    """

    def __init__(
        self, save_dir: str = ".", project: str = "sf-lightning", id: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(save_dir=save_dir, project=project, id=id, **kwargs)
        self._step = 0

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs under a step; by default the last one."""
        self._step = self._step if step is None else step
        self.experiment.log({**metrics, "trainer/global_step": self._step}, step=self._step)
