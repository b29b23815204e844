"""Pictures: mels with the edges of the chunks drawn, what streaming costs and loses, quality against latency."""

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

DIFFERENCE = 2.0
"""Of log-mels, where its colour is full: a factor of 7 in magnitude."""


def draw_mels(
    mels: Mapping[str, Tensor],
    edges: Tensor,
    frame_rate: float,
    path: Path,
    width: float = 10.0,
    differences: bool = False,
) -> None:
    """Draws log-mels one above the other, on one scale.

    Args:
        mels: By name, each [T, F].
        edges: Of chunks, in frames, [E]: drawn as white lines.
        frame_rate: Frames a second.
        path: PNG or WebP to write.
        width: In inches, of 100 dots.
        differences: Whether to draw, below each but the first, how it differs from the first: red where it is
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
    """Draws what each chunk cost, in order, and beside it the gap to offline against look-ahead in blocks.

    Args:
        chunk_ms: Computing of each chunk.
        gaps: By look-ahead; may be empty.
        path: PNG to write.
    """
    figure = Figure(figsize=(10, 3.2), layout="constrained")
    cost, loss = figure.subplots(1, 2)
    cost.plot(range(1, len(chunk_ms) + 1), chunk_ms, marker=".")
    cost.set_ylim(bottom=0)
    cost.set_xlabel("chunk")
    cost.set_ylabel("ms of computing")
    cost.set_title("cost against position", loc="left", fontsize=10)
    if gaps:
        # A gap of nothing has no logarithm.
        loss.semilogy(list(gaps), [max(gap, 1e-8) for gap in gaps.values()], marker="o")
    loss.set_xlabel("look-ahead in blocks")
    loss.set_ylabel("mean difference of log-mel")
    loss.set_title("gap of streamed to offline", loc="left", fontsize=10)
    _save(figure, path)


class Point(NamedTuple):
    """A way of streaming in the plane of latency and quality.

    Attributes:
        name: Short, such as the number of its row in a table.
        series: Points of one series differ in look-ahead alone, and are joined.
        latency_ms: First packet.
        mean: Of the score.
        low: End of its interval, NaN where there is none, as `high`.
        high: See `low`.
    """

    name: str
    series: str
    latency_ms: float
    mean: float
    low: float
    high: float


def draw_frontier(points: Sequence[Point], levels: Mapping[str, float], title: str) -> str:
    """Draws quality against latency, as SVG that takes the colour of the text around it.

    Args:
        points: Those that no other beats in both are joined by a thin line.
        levels: What has no latency to speak of, offline and copy-synthesis, by name: a line across.
        title: Of the score.
    """
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axis = figure.subplots()
    for i, series in enumerate(dict.fromkeys(point.series for point in points)):
        mine = sorted((point for point in points if point.series == series), key=lambda point: point.latency_ms)
        x, y = [point.latency_ms for point in mine], [point.mean for point in mine]
        ends = [[abs(point.mean - end) for end in (point.low, point.high)] for point in mine]
        low, high = ([0.0 if math.isnan(pair[side]) else pair[side] for pair in ends] for side in (0, 1))
        axis.errorbar(x, y, (low, high), color=f"C{i % 10}", marker="o", markersize=5, elinewidth=1)
        for point in mine:
            axis.annotate(point.name, (point.latency_ms, point.mean), (5, 4), textcoords="offset points", color=INK)
    best = frontier(points)
    axis.plot([p.latency_ms for p in best], [p.mean for p in best], color=INK, linewidth=0.6, linestyle=":")
    for style, (name, level) in zip(("--", "-."), levels.items(), strict=False):
        axis.axhline(level, color=INK, linewidth=0.8, linestyle=style, alpha=0.7)
        axis.annotate(name, (1, level), (-2, 2), ("axes fraction", "data"), "offset points", ha="right", color=INK)
    axis.set_xlabel("first packet, ms")
    axis.set_title(title, loc="left", fontsize=10)
    axis.margins(0.15)
    return _svg(figure)


def frontier(points: Sequence[Point]) -> list[Point]:
    """Returns the points that no other beats in latency and quality, by latency.

    >>> frontier([Point("1", "", 500, 3.0, 0, 0), Point("2", "", 300, 2.0, 0, 0), Point("3", "", 600, 2.5, 0, 0)])
    [Point(name='2', series='', latency_ms=300, mean=2.0, low=0, high=0), \
Point(name='1', series='', latency_ms=500, mean=3.0, low=0, high=0)]
    """
    best: list[Point] = []
    for point in sorted(points, key=lambda each: (each.latency_ms, -each.mean)):
        if not best or point.mean > best[-1].mean:
            best.append(point)
    return best


def draw_costs(costs: Mapping[str, Sequence[float]]) -> str:
    """Draws what each chunk of a stream cost in ms, in order, a line for each way by its name, as SVG."""
    figure = Figure(figsize=(4.6, 3.2), layout="constrained")
    axis = figure.subplots()
    for i, (name, chunk_ms) in enumerate(costs.items()):
        axis.plot(range(1, len(chunk_ms) + 1), chunk_ms, color=f"C{i % 10}", linewidth=1, marker=".", markersize=3)
        axis.annotate(name, (len(chunk_ms), chunk_ms[-1]), (3, 0), textcoords="offset points", color=INK)
    axis.set_ylim(bottom=0)
    axis.set_xlabel("chunk")
    axis.set_title("ms of computing", loc="left", fontsize=10)
    return _svg(figure)


INK = "#010203"
"""What becomes the colour of the text around an SVG: pages are read in the dark, too."""


def _svg(figure: Figure) -> str:
    """The figure as an element to put into a page, as wide as there is room, words as text."""
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
