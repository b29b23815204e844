"""Mel spectrograms as pictures, with the edges of the chunks drawn."""

from collections.abc import Mapping
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
    axes[-1].set_xlabel("seconds; white lines are chunk edges")
    figure.colorbar(image, ax=list(axes), label="log magnitude", pad=0.01)
    path.parent.mkdir(parents=True, exist_ok=True)
    FigureCanvasAgg(figure).print_png(path)
