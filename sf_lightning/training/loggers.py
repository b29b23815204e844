"""Loggers of a run that may be stopped and resumed: one table and one W&B run, no row missing and none twice."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loggers.logger import Logger, rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from torch import Tensor

from sf_lightning.files.atomic import append_text, atomic_path, open_no_link
from sf_lightning.files.text import get_logger, redacted_arguments
from sf_lightning.training.lightning_internals import drop_anonymous_setting

log = get_logger(__name__)


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
        with atomic_path(self._path.with_name("hparams.yaml")) as temporary:
            save_hparams_to_yaml(temporary, self._hyperparameters)

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Appends a row; where it has a new column, the table is rewritten with it."""
        row = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        row["step"] = step or 0
        if self._columns is None or row.keys() - set(self._columns):
            columns, rows = self._read()
            self._columns = sorted({*columns, *row})
            self._write(rows)
        text = io.StringIO()
        csv.DictWriter(text, self._columns).writerow(row)
        append_text(self._path, text.getvalue())

    @rank_zero_only
    def sync(self) -> None:
        """Waits until all rows are on the disk: a run that resumes from a checkpoint repeats none before it."""
        if self._path.is_file():
            with open(self._path, "ab", opener=open_no_link) as file:
                os.fsync(file.fileno())

    @rank_zero_only
    def drop_rows(self, step: int, validated: bool) -> None:
        """Drops damaged rows, and those that a resumed run writes again.

        Args:
            step: Number of steps done; rows count them from 0.
            validated: Whether the validation after the last of them, if one is due there, is done too.
        """
        self._columns, rows = self._read()
        done = step - (not validated)
        if self._path.is_file():
            self._write([row for row in rows if int(row["step"]) < (done if row.get("val/loss") else step)])

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """Returns the columns and the undamaged rows of the table; nothing where there is none.

        A full disk, or a machine that loses power, may leave part of a row, or zero bytes.
        """
        try:
            content = self._path.read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return [], []
        lines = [_cells(line) for line in content.replace("\r\n", "\n").replace("\r", "\n").split("\n")[:-1]]
        columns = lines[0] if lines and "step" in lines[0] and "\0" not in "".join(lines[0]) else []
        rows = [dict(zip(columns, cells, strict=True)) for cells in lines[1:] if len(cells) == len(columns)]
        kept = [row for row in rows if row.get("step", "").isdecimal() and all(map(_is_value, row.values()))]
        damaged = len(lines) + (content[-1:] not in ("", "\r", "\n")) - 1 - len(kept)
        if damaged > 0:
            log.warning(f"{self._path}: {damaged} damaged rows are dropped")
        return columns, kept

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with (
            atomic_path(self._path, sync=True) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self._columns or [])
            writer.writeheader()
            writer.writerows(rows)


def _cells(line: str) -> list[str]:
    """Returns the cells of a line of a table; nothing where it is damaged."""
    try:
        return next(csv.reader([line]), [])
    except csv.Error:  # as for a cell of a megabyte
        return []


def _is_value(cell: str) -> bool:
    """Returns whether a cell is empty or a number."""
    try:
        return cell == "" or float(cell) is not None
    except ValueError:
        return False


class ResumableWandbLogger(WandbLogger):
    """Logs to W&B under the step of the run.

    W&B's own step counts calls, from 0 again whenever a run is resumed without its server.

    Args:
        save_dir: Folder of the run.
        project: Name of the W&B project; by default that of the variable WANDB_PROJECT, or else sf-lightning.
        id: Id of the W&B run; `sf-fit` keeps it in the run's folder.
        **kwargs: As for Lightning's `WandbLogger`.
    """

    def __init__(
        self, save_dir: str = ".", project: str | None = None, id: str | None = None, **kwargs: Any
    ) -> None:
        project = project or os.environ.get("WANDB_PROJECT") or "sf-lightning"
        super().__init__(save_dir=save_dir, project=project, id=id, **kwargs)
        drop_anonymous_setting(self)
        self._step = 0

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The W&B run, started at the first access."""
        Path(self._save_dir or ".").mkdir(parents=True, exist_ok=True)  # W&B warns of one that does not exist
        with redacted_arguments():
            return WandbLogger.experiment.fget(self)  # type: ignore[attr-defined]

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Logs values under a step; by default the last one."""
        self._step = self._step if step is None else step
        self.experiment.log({**metrics, "trainer/global_step": self._step}, step=self._step)
