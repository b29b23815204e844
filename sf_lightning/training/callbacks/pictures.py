"""Pictures: mel spectrograms with the edges of the chunks drawn, and what streaming costs and loses."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

DIFFERENCE = 2.0
"""Of log-mels, where its colour is full: a factor of 7 in magnitude."""


def draw_mels(
    mels: Mapping[str, Tensor], edges: Tensor, frame_rate: float, path: Path, differences: bool = False
) -> None:
    """Draws log-mels one above the other, on one scale.

    Args:
        mels: By name, each [T, F].
        edges: Of chunks, in frames, [E]: drawn as white lines.
        frame_rate: Frames a second.
        path: PNG to write.
        differences: Whether to draw, below each but the first, how it differs from the first: red where it is
            louder, blue where it is softer.
    """
    rows = 2 * len(mels) - 1 if differences else len(mels)
    figure = Figure(figsize=(10, 2.2 * rows), layout="constrained")
    shown = [*figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0]]
    panels = iter(shown)
    first = next(iter(mels.values())).cpu()
    low, high = float(first.min()), float(first.max())
    for number, (name, mel) in enumerate(mels.items()):
        axis, extent = next(panels), (0, len(mel) / frame_rate, 0, mel.shape[1])
        image = axis.imshow(mel.cpu().T, origin="lower", aspect="auto", extent=extent, vmin=low, vmax=high)
        for edge in edges.tolist():
            axis.axvline(edge / frame_rate, color="white", linewidth=0.4, alpha=0.6)
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_ylabel("mel band")
        if differences and number:
            axis, limits = next(panels), {"vmin": -DIFFERENCE, "vmax": DIFFERENCE}
            off = mel.cpu() - first[: len(mel)]
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


def _save(figure: Figure, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)
