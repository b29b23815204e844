"""Plots: mels with chunk edges, computing time and gap of a stream, quality against latency."""

import math
import re
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import NamedTuple

from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from torch import Tensor

from sf_lightning.files.tables import pareto_front

DIFFERENCE = 2.0
"""Difference of log-mels at which the color scale ends: a factor of 7 in magnitude."""


def draw_mels(
    mels: Mapping[str, Tensor],
    edges: Tensor,
    frame_rate: float,
    path: Path,
    width: float = 10.0,
    differences: bool = False,
) -> None:
    """Draws log-mels below each other on one color scale.

    Args:
        mels: Log-mels by name, each [T, F].
        edges: Frames at which chunks begin, [E], drawn as white lines.
        frame_rate: Frames a second.
        path: PNG or WebP file to write.
        width: Width in inches of 100 dots.
        differences: Whether to draw below each log-mel but the first its difference from the first: red where it is
            louder, blue where it is softer.
    """
    rows = 2 * len(mels) - 1 if differences else len(mels)
    figure = Figure(figsize=(width, 0.22 * width * rows), layout="constrained")
    shown = [*figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]]
    panels = iter(shown)
    first = next(iter(mels.values())).cpu()
    low, high = float(first.min()), float(first.max())
    for number, (name, mel) in enumerate(mels.items()):
        axis, extent = next(panels), (0, len(mel) / frame_rate, 0, mel.shape[1])
        image = axis.imshow(mel.cpu().numpy().T, origin="lower", aspect="auto", extent=extent, vmin=low, vmax=high)
        for edge in edges.tolist():
            axis.axvline(edge / frame_rate, color="white", linewidth=0.4, alpha=0.6)
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_ylabel("mel band")
        if differences and number:
            axis, limits = next(panels), {"vmin": -DIFFERENCE, "vmax": DIFFERENCE}
            off = (mel.cpu() - first[: len(mel)]).numpy()
            other = axis.imshow(off.T, origin="lower", aspect="auto", extent=extent, cmap="seismic", **limits)
            axis.set_title(f"{name}, difference", loc="left", fontsize=10)
    axis.set_xlabel("seconds; white lines are chunk edges" if len(edges) else "seconds")
    figure.colorbar(image, ax=shown, label="log magnitude", pad=0.01)
    if differences:
        figure.colorbar(other, ax=shown, label="difference of log magnitude", pad=0.01)
    _save(figure, path)


def draw_streaming(chunk_ms: Sequence[float], gaps: Mapping[int, float], path: Path) -> None:
    """Draws the computing time of each chunk and, beside it, the gap to offline against the look-ahead.

    Args:
        chunk_ms: Computing time of each chunk in ms.
        gaps: Gap by look-ahead in blocks; may be empty.
        path: PNG file to write.
    """
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    cost_axis, gap_axis = figure.subplots(1, 2)
    cost_axis.plot(range(1, len(chunk_ms) + 1), chunk_ms, marker=".")
    cost_axis.set_ylim(bottom=0)
    cost_axis.set_xlabel("chunk")
    cost_axis.set_ylabel("computing time, ms")
    cost_axis.set_title("computing time of each chunk", loc="left", fontsize=10)
    if gaps:
        # A gap of 0 has no logarithm.
        gap_axis.semilogy(list(gaps), [max(gap, 1e-8) for gap in gaps.values()], marker="o")
    gap_axis.set_xlabel("look-ahead in blocks")
    gap_axis.set_ylabel("mean difference of log-mel")
    gap_axis.set_title("gap between streamed and offline", loc="left", fontsize=10)
    _save(figure, path)


class Point(NamedTuple):
    """A streaming system in the plot of quality against latency, with the ends of its confidence interval or NaN.

    `name` is short, such as the number of its row in a table. Points of one `series` differ in look-ahead alone and
    are joined by a line.
    """

    name: str
    series: str
    latency_ms: float
    mean: float
    low: float
    high: float


def draw_frontier(points: Sequence[Point], levels: Mapping[str, float], title: str) -> str:
    """Returns a plot of quality against latency as SVG in the color of the surrounding text.

    Args:
        points: Streaming systems; a dotted line joins the Pareto front.
        levels: Scores of systems without a latency, offline and copy-synthesis, by name: horizontal lines.
        title: Title of the score.
    """
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axis = figure.subplots()
    for i, series in enumerate(dict.fromkeys(point.series for point in points)):
        members = sorted((point for point in points if point.series == series), key=lambda point: point.latency_ms)
        x, y = [point.latency_ms for point in members], [point.mean for point in members]
        ends = [[abs(point.mean - end) for end in (point.low, point.high)] for point in members]
        low, high = ([0.0 if math.isnan(pair[side]) else pair[side] for pair in ends] for side in (0, 1))
        axis.errorbar(x, y, (low, high), color=f"C{i % 10}", marker="o", markersize=5, elinewidth=1)
        for point in members:
            axis.annotate(point.name, (point.latency_ms, point.mean), (5, 4), textcoords="offset points", color=INK)
    front = pareto_front(points, lambda point: point.latency_ms, lambda point: point.mean)
    axis.plot([p.latency_ms for p in front], [p.mean for p in front], color=INK, linewidth=0.6, linestyle=":")
    for style, (name, level) in zip(("--", "-."), levels.items(), strict=False):
        axis.axhline(level, color=INK, linewidth=0.8, linestyle=style, alpha=0.7)
        axis.annotate(name, (1, level), (-2, 2), ("axes fraction", "data"), "offset points", ha="right", color=INK)
    axis.set_xlabel("first packet, ms")
    axis.set_title(title, loc="left", fontsize=10)
    axis.margins(0.15)
    return _svg(figure)


def draw_costs(costs: Mapping[str, Sequence[float]]) -> str:
    """Returns a plot of the computing time of each chunk in ms, one line for each named stream, as SVG."""
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axis = figure.subplots()
    for i, (name, chunk_ms) in enumerate(costs.items()):
        axis.plot(range(1, len(chunk_ms) + 1), chunk_ms, color=f"C{i % 10}", linewidth=1, marker=".", markersize=3)
        axis.annotate(name, (len(chunk_ms), chunk_ms[-1]), (3, 0), textcoords="offset points", color=INK)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("chunk")
    axis.set_title("computing time, ms", loc="left", fontsize=10)
    return _svg(figure)


INK = "#010203"
"""Placeholder of the color of the surrounding text: pages have a dark mode."""


def _svg(figure: Figure) -> str:
    """Returns the figure as an SVG element that fills the available width, with text as text."""
    for axis in figure.axes:
        axis.tick_params(color=INK, labelcolor=INK)
        for part in (axis.title, axis.xaxis.label, axis.yaxis.label, axis._left_title):  # type: ignore[attr-defined]
            part.set_color(INK)
        for name, spine in axis.spines.items():
            spine.set_visible(name in ("left", "bottom"))
            spine.set_color(INK)
    written = StringIO()
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "sf-lightning"}):
        FigureCanvasSVG(figure).figure.savefig(written, format="svg", transparent=True, metadata={"Date": None})
    text = written.getvalue()
    tag, rest = text[text.index("<svg") :].split(">", 1)
    tag = re.sub(r' (width|height)="[^"]*"', "", tag)
    return f"{tag}>{rest}".replace(INK, "currentColor")


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).figure.savefig(path, pil_kwargs={"quality": 70} if path.suffix == ".webp" else None)
