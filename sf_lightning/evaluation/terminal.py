"""Tables on the terminal."""

from collections.abc import Iterable

from rich.box import SIMPLE
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from sf_lightning.evaluation.table import Table
from sf_lightning.files.text import printable


def print_tables(tables: Iterable[Table]) -> None:
    """Prints tables without the smaller text of their cells, never truncated to the width of the terminal."""
    for table in tables:
        rich = RichTable(title=escape(table.title), box=SIMPLE)
        for number, title in enumerate(table.header):
            rich.add_column(escape(title), justify="left" if number < table.text_columns else "right", no_wrap=True)
        for row in table.cells:
            rich.add_row(*(escape(printable(text)) for text, _ in row))
        console = Console()
        # In a narrow terminal, or a file, wrapped lines are readable and truncated cells are not.
        console.width = max(console.width, Console(width=1000).measure(rich).maximum)
        console.print(rich)
