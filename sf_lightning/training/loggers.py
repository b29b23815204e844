"""Loggers of a run that may be stopped and resumed: one table and one W&B run, no row missing and none twice."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from sf_lightning.files.atomic import atomic_path
from sf_lightning.files.text import redacted_arguments
from sf_lightning.training.lightning_internals import drop_anonymous_setting


class ResumableCSVLogger(Logger):
    """Writes `csv/metrics.csv` in the run's folder, a row at a time, and `csv/hparams.yaml`.

    Lightning's `CSVLogger` starts a new table where one exists, and rewrites it in place when a column is added.

    Args:
        save_dir: Folder of the run.
    """

    def __init__(self, save_dir: str = ".") -> None:
        super().__init__()
        self._save_dir = save_dir
        self._hyperparameters: dict[str, Any] = {}
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """Name of the folder of the table."""
        return "csv"

    @property
    def version(self) -> str:
        """Empty: a resumed run has no other version."""
        return ""

    @property
    def save_dir(self) -> str:
        """Folder of the run."""
        return self._save_dir

    @property
    def _path(self) -> Path:
        return Path(self._save_dir, self.name, "metrics.csv")

    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Adds hyperparameters to `hparams.yaml`."""
        self._hyperparameters.update(params if isinstance(params, Mapping) else vars(params))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        save_hparams_to_yaml(self._path.with_name("hparams.yaml"), self._hyperparameters)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Appends a row; where it has a new column, the table is rewritten with it."""
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        row["step"] = step or 0
        if self._columns is None:
            self._columns = self._read()[0]
        if added := row.keys() - set(self._columns):
            rows = self._read()[1]
            self._columns = sorted({*self._columns, *added})
            self._write(rows)
        with self._path.open("a", newline="") as file:
            csv.DictWriter(file, self._columns).writerow(row)

    @rank_zero_only
    def drop_rows(self, step: int, validated: bool) -> None:
        """Drops the rows that a resumed run writes again.

        Args:
            step: Number of steps done; rows count them from 0.
            validated: Whether the validation after the last of them, if one is due there, is done too.
        """
        self._columns, rows = self._read()
        done = step - (not validated)
        kept = [row for row in rows if int(row["step"]) < (done if row.get("val/loss") else step)]
        if len(kept) < len(rows):
            self._write(kept)

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Returns the columns and rows of the table; nothing where there is none."""
        if not self._path.is_file():
            return [], []
        with self._path.open(newline="") as file:
            reader = csv.DictReader(file)
            return list(reader.fieldnames or []), list(reader)

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(self._path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, self._columns or [])
            writer.writeheader()
            writer.writerows(rows)


class ResumableWandbLogger(WandbLogger):
    """Logs to W&B under the step of the run.

    W&B's own step counts calls, from 0 again whenever a run is resumed without its server.

    Args:
        save_dir: Folder of the run.
        project: Name of the W&B project.
        id: Id of the W&B run; `sf-fit` keeps it in the run's folder.
        **kwargs: As for Lightning's `WandbLogger`.
    """

    def __init__(
        self, save_dir: str = ".", project: str = "sf-lightning", id: str | None = None, **kwargs: Any
    ) -> None:
        super().__init__(save_dir=save_dir, project=project, id=id, **kwargs)
        drop_anonymous_setting(self)
        self._step = 0

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started at the first access."""
        with redacted_arguments():
            return WandbLogger.experiment.fget(self)  # type: ignore[attr-defined]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs values under a step; by default the last one."""
        self._step = self._step if step is None else step
        self.experiment.log({**metrics, "trainer/global_step": self._step}, step=self._step)
