"""What an evaluation shows while it runs and when it is done: a bar, tables on the terminal, a table in W&B."""

from pathlib import Path

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table as Drawn

from sf_lightning.cli.tracking import offline_without_key
from sf_lightning.evaluation.table import Findings, Table, flat


class Bar:
    """Says how far it is: a bar on a terminal, nothing elsewhere."""

    def __enter__(self) -> "Bar":
        columns = (TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeRemainingColumn())
        console = Console(stderr=True)
        self.progress = Progress(*columns, console=console, transient=True, disable=not console.is_interactive)
        self.task = self.progress.add_task("", total=None)
        self.progress.start()
        return self

    def move(self, what: str, done: int, total: int) -> None:
        """Moves the bar."""
        self.progress.update(self.task, description=escape(what), completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self.progress.stop()


def show(some: list[Table]) -> None:
    """Prints tables: means alone, their intervals are in the files."""
    for table in some:
        drawn = Drawn(title=table.title, box=SIMPLE)
        for number, title in enumerate(table.header):
            drawn.add_column(title, justify="left" if number < table.words else "right")
        for row in table.cells:
            drawn.add_row(*(escape(big) for big, _ in row))
        console = Console()
        # A table that is cut to a narrow terminal, or a file, says nothing: its lines may be wrapped instead.
        console.width = max(console.width, Console(width=1000).measure(drawn).maximum)
        console.print(drawn)


def log_table(folder: Path, found: Findings) -> None:
    """Logs the table to W&B."""
    import wandb

    offline_without_key()
    header, table = flat(found)
    columns: list[str | int] = [*header]
    name = folder.resolve().name
    settings = wandb.Settings(silent=True, reinit="create_new")  # whatever run is open here already
    with wandb.init(
        project="sf-lightning",
        job_type="eval",
        name=name,
        dir=folder,
        config=found.results.said,
        settings=settings,
    ) as run:
        run.log({"evaluation": wandb.Table(columns, table)})
