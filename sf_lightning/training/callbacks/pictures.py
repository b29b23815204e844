"""Pictures: mel spectrograms with the edges of the chunks drawn, and what streaming costs and loses."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor


def draw_mels(mels: Mapping[str, Tensor], edges: Tensor, frame_rate: float, path: Path) -> None:
    """Draws log-mels [T, F] one above the other, on one scale, chunk edges [E] (frames) as white lines."""
    figure = Figure(figsize=(10, 2.2 * len(mels)), layout="constrained")
    axes = figure.subplots(len(mels), 1, sharex=True, squeeze=False)[:, 0]
    first = next(iter(mels.values())).cpu()
    low, high = float(first.min()), float(first.max())
    for axis, (name, mel) in zip(axes, mels.items(), strict=True):
        seconds = len(mel) / frame_rate
        image = axis.imshow(
            mel.cpu().T,
            origin="lower",
            aspect="auto",
            extent=(0, seconds, 0, mel.shape[1]),
            vmin=low,
            vmax=high,
        )
        for edge in edges.tolist():
            axis.axvline(edge / frame_rate, color="white", linewidth=0.4, alpha=0.6)
        axis.set_title(name, loc="left", fontsize=10)
        axis.set_ylabel("mel band")
    axes[-1].set_xlabel("seconds; white lines are chunk edges" if len(edges) else "seconds")
    figure.colorbar(image, ax=list(axes), label="log magnitude", pad=0.01)
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
