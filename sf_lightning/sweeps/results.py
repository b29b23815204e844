"""Results of a sweep: a table of its trials, and quality against latency as a picture."""

import math
import re
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sf_lightning.files.atomic import atomic_path, write_atomically
from sf_lightning.files.tables import markdown_table, pareto_front, write_csv
from sf_lightning.sweeps.trials import Trial, read_definition, read_trials

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
"""Metrics in the tables, beside the parameters and the sweep's own metric."""


class Results:
    """A sweep and its trials, read when this is made.

    Args:
        folder: Folder of the sweep.

    Attributes:
        name: Name of the sweep.
        metric: Metric by which its trials are compared.
        quality: Metric of the vertical axis of the frontier: `metric`, without its bound on latency if it has one.
        maximize: Whether larger values of the metric are better.
        trials: All trials, by number.

    Raises:
        FileNotFoundError: if the folder has no sweep.
    """

    def __init__(self, folder: Path) -> None:
        definition = read_definition(folder)
        self.name, self.metric = definition["name"], definition["metric"]["name"]
        self.quality = re.sub(r"^streamed_within_\d+_ms/", "streamed/", self.metric)
        self.maximize = definition["metric"].get("goal") == "maximize"
        self.trials = read_trials(folder)

    @property
    def complete(self) -> list[Trial]:
        """Complete trials, the best first."""
        trials = [trial for trial in self.trials if trial.state == "complete" and self.metric in trial.metrics]
        return sorted(trials, key=lambda trial: trial.metrics[self.metric], reverse=self.maximize)

    @property
    def drawn(self) -> list[Trial]:
        """Complete trials that have a quality and a latency."""
        return [
            trial
            for trial in self.complete
            if all(math.isfinite(trial.metrics.get(name, math.nan)) for name in (WAIT, self.quality))
        ]

    @property
    def frontier(self) -> list[Trial]:
        """Trials that are better than all with the same or a shorter wait for tokens, the shortest wait first."""
        sign = 1 if self.maximize else -1
        return pareto_front(
            self.drawn, lambda trial: trial.metrics[WAIT], lambda trial: sign * trial.metrics[self.quality]
        )


def write_results(folder: Path) -> Results:
    """Writes `results.csv`, `results.md` and `frontier.png` to a sweep's folder and returns the results."""
    results = Results(folder)
    frontier, complete = results.frontier, results.complete
    columns = [*dict.fromkeys((results.metric, *COLUMNS))]
    names = [*dict.fromkeys(name for trial in results.trials for name in trial.parameters)]
    rows = []
    for trial in [*complete, *(trial for trial in results.trials if trial not in complete)]:
        mark = "yes" if trial in frontier else ""
        cells = [trial.parameters.get(name, "") for name in names]
        rows.append([trial.number, trial.state, mark, *cells, *(trial.metrics.get(name, "") for name in columns)])
    header = ["trial", "state", "on the frontier", *names, *columns]
    write_csv(folder / "results.csv", header[:2] + header[3:], [row[:2] + row[3:] for row in rows])
    short = [[f"{cell:.4g}" if isinstance(cell, float) else cell for cell in row] for row in rows]
    write_atomically(folder / "results.md", markdown_table(header, short) + "\n")
    with atomic_path(folder / "frontier.png") as path:
        draw_frontier(results, path)
    return results


def draw_frontier(results: Results, path: Path) -> None:
    """Draws quality against the wait for tokens as PNG: a point for each complete trial, a line at the frontier."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axis = figure.subplots()
    frontier = results.frontier
    for trial in results.drawn:
        x, y = trial.metrics[WAIT], trial.metrics[results.quality]
        axis.plot(x, y, "o", color="C0" if trial in frontier else "0.6")
        axis.annotate(trial.label, (x, y), xytext=(6, 3), textcoords="offset points", fontsize=8)
    if frontier:
        line = [(trial.metrics[WAIT], trial.metrics[results.quality]) for trial in frontier]
        axis.step(*zip(*line, strict=True), where="post", color="C0", linewidth=1)
    axis.margins(x=0.25, y=0.1)
    axis.set_xlabel("wait for tokens of the first chunk, ms of speech")
    axis.set_ylabel(results.quality)
    count = f"{len(results.drawn)} of {len(results.trials)} trials"
    axis.set_title(f"{results.name}: {count}", loc="left", fontsize=10)
    FigureCanvasAgg(figure).print_png(path)
