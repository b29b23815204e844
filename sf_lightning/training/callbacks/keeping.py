"""What a validation leaves behind: sound and pictures of a few clips, and a table of scores at the end of a run."""

from collections.abc import Mapping
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from torch import Tensor

from sf_lightning.audio.wave import write_wave
from sf_lightning.training.callbacks.pictures import draw_mels
from sf_lightning.training.saving import newest

WAYS = ("griffin_lim", "griffin_lim_streamed", "copy_synthesis", "generated", "look_up", "offline", "streamed")
"""Rows of the table, in this order, where they are there."""


def samples_folder(trainer: L.Trainer) -> Path:
    """Where sound and pictures of this step lie."""
    return Path(trainer.default_root_dir) / "samples" / f"step-{trainer.global_step:06d}"


def kept(count: int, keep: int) -> list[int]:
    """Which of so many clips are kept."""
    return list(range(count))[:: max(1, count // max(1, keep))][:keep]


def keep_clip(
    trainer: L.Trainer,
    folder: Path,
    key: str,
    sounds: Mapping[str, Tensor],
    rates: Mapping[str, int],
    mels: Mapping[str, Tensor],
    edges: Tensor,
    frame_rate: float,
    differences: bool = False,
) -> None:
    """Writes a clip's waves [N], each at its rate, and a picture of its mels [T, F], here and to W&B.

    Args:
        trainer: Its loggers, and its step.
        folder: Where.
        key: Of the clip.
        sounds: By name.
        rates: In Hz, by the same names.
        mels: By name.
        edges: Of chunks, in frames, [E].
        frame_rate: Frames a second.
        differences: Whether the picture also shows how the mels differ from the first.
    """
    for name, wave in sounds.items():
        write_wave(folder / f"{key}.{name}.wav", wave.cpu().numpy(), rates[name])
    picture = folder / f"{key}.png"
    draw_mels(mels, edges, frame_rate, picture, differences)
    step = max(0, trainer.global_step - 1)  # loggers count from 0
    for logger in (each for each in trainer.loggers if isinstance(each, WandbLogger)):
        logger.log_audio(
            f"audio/{key}",
            [wave.cpu().numpy().clip(-1, 1) for wave in sounds.values()],
            sample_rate=[rates[name] for name in sounds],
            caption=list(sounds),
            step=step,
        )
        logger.log_image(f"mel/{key}", [str(picture)], step=step)


def conclude(trainer: L.Trainer, rows: dict[str, dict[str, float]], more: str, samples: Path | None) -> None:
    """Prints the table of the last validation and what to open; keeps the table in the run's folder.

    Args:
        trainer: Whose run it is.
        rows: Scores by way.
        more: A line below the table.
        samples: Where the last sounds are.
    """
    folder = Path(trainer.default_root_dir)
    (folder / "summary.md").write_text("\n".join([summary(rows), "", more]) + "\n")
    console = Console()
    console.print(as_table(rows))
    if more:
        console.print(more)
    checkpoint = newest(folder / "checkpoints")
    for what, path in (
        ("hear and see", samples),
        (
            "metrics",
            next((lg.log_dir for lg in trainer.loggers if not isinstance(lg, WandbLogger)), None),
        ),
        ("W&B", next((lg.save_dir for lg in trainer.loggers if isinstance(lg, WandbLogger)), None)),
        ("checkpoint", checkpoint),
        ("this table", folder / "summary.md"),
    ):
        if path:
            console.print(f"{what + ':':14}{path}", soft_wrap=True, highlight=False)


COLUMNS = {
    "pesq_wb": ("PESQ-WB", "{:.2f}"),
    "stoi": ("STOI", "{:.3f}"),
    "visqol": ("ViSQOL", "{:.2f}"),
    "mel_l1": ("mel L1", "{:.3f}"),
    "mr_stft": ("MR-STFT", "{:.3f}"),
    "periodicity": ("periodicity", "{:.3f}"),
    "seam_db": ("seam dB", "{:+.2f}"),
    "gap": ("gap", "{:.4f}"),
    "real_time_factor": ("RTF", "{:.2f}"),
}
"""Of the table, where a row has them: title and form."""


def _cells(rows: dict[str, dict[str, float]]) -> list[list[str]]:
    """The titles, and one row of text per way, with STOI also as a share of copy-synthesis."""
    columns = {name: column for name, column in COLUMNS.items() if any(name in values for values in rows.values())}
    table = [["", *(title for title, _ in columns.values()), "of copy"]]
    top = rows.get("copy_synthesis", {}).get("stoi", float("nan"))
    for way in (way for way in WAYS if way in rows):
        values = rows[way]
        cells = [form.format(values[name]) if name in values else "" for name, (_, form) in columns.items()]
        table.append([way.replace("_", "-"), *cells, f"{values['stoi'] / top:.0%}"])
    return table


def as_table(rows: dict[str, dict[str, float]]) -> Table:
    """The scores as a table for the terminal."""
    table = Table(title="held-out clips", box=SIMPLE)
    header, *cells = _cells(rows)
    for title in header:
        table.add_column(title, justify="right" if title else "left", no_wrap=True)
    for row in cells:
        table.add_row(*row)
    return table


def summary(rows: dict[str, dict[str, float]]) -> str:
    """The scores as a Markdown table."""
    header, *cells = _cells(rows)
    lines = [header, ["---"] * len(header), *cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
