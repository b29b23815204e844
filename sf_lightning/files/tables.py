"""Tables: Markdown and CSV to write, the metrics of a training run to read, and the Pareto front of points."""

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

from sf_lightning.files.atomic import write_atomically
from sf_lightning.files.text import csv_cell, markdown_text

Point = TypeVar("Point")

METRICS = Path("csv", "metrics.csv")
"""Where a training run keeps its metrics, relative to the run's folder."""


def markdown_table(header: Sequence[object] | None, rows: Iterable[Sequence[object]]) -> str:
    """Returns a table in Markdown, without a newline at its end.

    Args:
        header: Titles of the columns; None for a table of names and values, whose header is blank.
        rows: Cells of each row, written with `str` and shown as they are; see `markdown_text`.

    >>> print(markdown_table(["clip", "loss"], [["a|b", "0.42"]]))
    | clip | loss |
    | --- | --- |
    | a\\|b | 0.42 |
    """
    cells = [[markdown_text(cell) for cell in row] for row in rows]
    width = len(cells[0]) if header is None else len(header)
    first = "|" + " |" * width if header is None else _line([*map(markdown_text, header)])
    return "\n".join([first, _line(["---"] * width), *map(_line, cells)])


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_csv(path: Path, header: Sequence[object], rows: Iterable[Sequence[object]]) -> None:
    """Writes a table as CSV in UTF-8, whole or not at all.

    None becomes an empty cell, and text is no formula (see `csv_cell`).
    """
    text = io.StringIO(newline="")
    csv.writer(text).writerows([*map(csv_cell, row)] for row in [header, *rows])
    write_atomically(path, text.getvalue())


def read_metrics(run: Path) -> list[dict[str, float]]:
    """Reads the metrics of a training run; empty cells, cells without a number and incomplete rows are left out.

    The last row is incomplete while a running training writes it; without a newline its last number may be cut.

    Args:
        run: Folder of the run.

    Returns:
        The values of each row by the name of their column, NaN and infinities among them; nothing where there is
        no table.

    Raises:
        ValueError: if the table is no CSV.
    """
    try:
        text = (run / METRICS).read_bytes().decode("utf-8", errors="replace")
        table = csv.DictReader(io.StringIO(text[: text.rfind("\n") + 1], newline=""))
        rows = [row for row in table if None not in row and None not in row.values()]
    except FileNotFoundError:
        return []
    except csv.Error as error:
        raise ValueError(f"{run / METRICS} is damaged ({error}): move it away") from error
    return [{name: number for name, text in row.items() if (number := _number(text)) is not None} for row in rows]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def pareto_front(
    points: Iterable[Point], cost: Callable[[Point], float], gain: Callable[[Point], float]
) -> list[Point]:
    """Returns the points that gain more than every cheaper one, the cheapest first.

    >>> pareto_front([(500, 3.0), (300, 2.0), (600, 2.5)], cost=lambda p: p[0], gain=lambda p: p[1])
    [(300, 2.0), (500, 3.0)]
    """
    front: list[Point] = []
    best = -math.inf
    for point in sorted(points, key=lambda point: (cost(point), -gain(point))):
        if gain(point) > best:
            best = gain(point)
            front.append(point)
    return front
