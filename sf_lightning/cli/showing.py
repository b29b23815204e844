"""Progress of an evaluation on the terminal, and its table in W&B."""

import os
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from sf_lightning.cli.tracking import offline_without_key
from sf_lightning.evaluation.table import Findings, flat_table
from sf_lightning.files.text import redacted_arguments


class ProgressBar:
    """Shows progress on a terminal; silent elsewhere."""

    def __enter__(self) -> "ProgressBar":
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_interactive)
        self.task = self.progress.add_task("", total=None)
        self.progress.start()
        return self

    def update(self, description: str, done: int, total: int) -> None:
        """Shows the current group, and how many of all pairs of clip and system are done."""
        self.progress.update(self.task, description=escape(description), completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


def log_table(folder: Path, findings: Findings) -> None:
    """Logs the table to W&B in a separate run; another run may be open."""
    import wandb

    offline_without_key()
    header, rows = flat_table(findings)
    with (
        redacted_arguments(),
        wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "sf-lightning",
            job_type="eval",
            name=folder.resolve().name,
            dir=folder,
            config=findings.results.numbered_facts,
            settings=wandb.Settings(silent=True, reinit="create_new"),
        ) as run,
    ):
        run.log({"evaluation": wandb.Table(list[str | int](header), rows)})
