"""What a sweep has found: a table of its trials, and the frontier of quality against latency as a picture."""

import csv
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from optuna.trial import TrialState

from sf_lightning.sweeps.study import open_study, trial_folder
from sf_lightning.sweeps.trial import last_values

WAIT = "latency/wait_ms"
COLUMNS = (
    "streamed/pesq_wb",
    "streamed/stoi",
    "streamed/visqol",
    "offline/stoi",
    "streamed/gap",
    WAIT,
    "latency/first_packet_ms",
    "latency/chunk_ms",
)
"""Of the tables, beside the parameters and what the sweep is judged by."""


@dataclass(frozen=True)
class Result:
    """A trial, as far as it has come.

    Attributes:
        number: Of the trial.
        state: "complete", "pruned", "failed", "running" or "waiting".
        parameters: What it tries.
        values: The last value of each metric in its log.
        folder: Of its run.
        why: What went wrong, if it failed.
    """

    number: int
    state: str
    parameters: dict[str, Any]
    values: dict[str, float]
    folder: Path
    why: str = ""

    @property
    def label(self) -> str:
        """Its parameters in a few words: of a file its name, of an option its last part."""
        said = {name.rsplit(".", 1)[-1]: str(value) for name, value in self.parameters.items()}
        if len(said) == 1:
            return _plain(next(iter(said.values())))
        return ", ".join(f"{name} {_plain(value)}" for name, value in said.items())


def _plain(value: str) -> str:
    return Path(value).stem if value.endswith(".yaml") else value.strip("{}")


@dataclass(frozen=True)
class Results:
    """A sweep and its trials.

    Attributes:
        name: Of the sweep.
        metric: What it is judged by.
        quality: What is drawn against latency: the metric, without the bound under which it is judged.
        maximize: Whether more of it is better.
        trials: In the order of their numbers.
    """

    name: str
    metric: str
    quality: str
    maximize: bool
    trials: tuple[Result, ...]

    @property
    def complete(self) -> list[Result]:
        """Trials that have come to their end, the best first."""
        done = [each for each in self.trials if each.state == "complete" and self.metric in each.values]
        return sorted(done, key=lambda each: each.values[self.metric], reverse=self.maximize)

    @property
    def frontier(self) -> list[Result]:
        """Trials than which no other is better at the same wait or a shorter one, the shortest wait first."""
        drawn = [each for each in self.complete if WAIT in each.values and self.quality in each.values]
        return pareto(
            drawn,
            cost=lambda each: each.values[WAIT],
            gain=lambda each: each.values[self.quality] * (1 if self.maximize else -1),
        )


def pareto(
    points: Iterable[Result], cost: Callable[[Result], float], gain: Callable[[Result], float]
) -> list[Result]:
    """Returns the points that gain more than every cheaper one, the cheapest first."""
    best, kept = -float("inf"), []
    for point in sorted(points, key=lambda each: (cost(each), -gain(each))):
        if gain(point) > best:
            best = gain(point)
            kept.append(point)
    return kept


def read_results(folder: Path) -> Results:
    """Reads a sweep, finished or not.

    Raises:
        FileNotFoundError: if there is none.
    """
    study = open_study(folder)
    metric = str(study.user_attrs["sweep"]["metric"]["name"])
    names = {TrialState.FAIL: "failed"}
    trials = tuple(
        Result(
            number=each.number,
            state=names.get(each.state, each.state.name.lower()),
            parameters=each.params or each.user_attrs.get("point", {}),
            values=last_values(trial_folder(folder, each.number)),
            folder=trial_folder(folder, each.number),
            why=each.user_attrs.get("why", ""),
        )
        for each in study.get_trials(deepcopy=False)
    )
    return Results(
        name=study.study_name,
        metric=metric,
        quality=re.sub(r"^streamed_within_\d+_ms/", "streamed/", metric),
        maximize=study.direction == optuna.study.StudyDirection.MAXIMIZE,
        trials=trials,
    )


def write_results(folder: Path) -> Results:
    """Writes `results.csv`, `results.md` and `frontier.png` in a sweep's folder, and returns what is in them."""
    results = read_results(folder)
    columns = [*dict.fromkeys((results.metric, *COLUMNS))]
    names = [*dict.fromkeys(name for each in results.trials for name in each.parameters)]
    header = ["trial", "state", *names, *columns]
    frontier = results.frontier
    order = [*results.complete, *(each for each in results.trials if each not in results.complete)]
    table = [
        [each.number, each.state, *(each.parameters.get(name, "") for name in names)]
        + [each.values.get(name, "") for name in columns]
        for each in order
    ]
    with _whole(folder / "results.csv") as path, path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *table])
    marked = [
        [*row[:2], "yes" if each in frontier else "", *row[2:]] for row, each in zip(table, order, strict=True)
    ]
    with _whole(folder / "results.md") as path:
        path.write_text(_markdown(["trial", "state", "on the frontier", *header[2:]], marked))
    with _whole(folder / "frontier.png") as path:
        draw_frontier(results, path)
    return results


class _whole:
    """Writes a file under another name first: workers may do so at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.fresh = path.with_name(f".{id(self)}.{path.name}")

    def __enter__(self) -> Path:
        return self.fresh

    def __exit__(self, *error: Any) -> None:
        if error[0] is None:
            self.fresh.replace(self.path)


def _markdown(header: Sequence[str], table: Sequence[Sequence[Any]]) -> str:
    cells = [[f"{cell:.4g}" if isinstance(cell, float) else str(cell) for cell in row] for row in table]
    lines = [list(header), ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def draw_frontier(results: Results, path: Path) -> None:
    """Draws quality against the wait for tokens, a point for each complete trial, and a line along the frontier.

    Args:
        results: Of a sweep.
        path: PNG to write.
    """
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    drawn = [each for each in results.complete if WAIT in each.values and results.quality in each.values]
    frontier = results.frontier
    for each in drawn:
        x, y = each.values[WAIT], each.values[results.quality]
        axis.plot(x, y, "o", color="C0" if each in frontier else "0.6")
        axis.annotate(each.label, (x, y), xytext=(6, 3), textcoords="offset points", fontsize=8)
    if frontier:
        places = [(each.values[WAIT], each.values[results.quality]) for each in frontier]
        axis.step(*zip(*places, strict=True), where="post", color="C0", linewidth=1)
    axis.margins(x=0.25, y=0.1)
    axis.set_xlabel("speech whose tokens the first chunk waits for, ms")
    axis.set_ylabel(results.quality)
    axis.set_title(f"{results.name}: {len(drawn)} of {len(results.trials)} trials", loc="left", fontsize=10)
    FigureCanvasAgg(figure).print_png(path)
