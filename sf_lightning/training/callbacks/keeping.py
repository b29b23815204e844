"""What a validation leaves behind: sound and pictures of a few clips; at the end of a run a table and a page."""

import math
from collections.abc import Mapping
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as Drawn
from torch import Tensor

from sf_lightning.audio.wave import write_wave
from sf_lightning.evaluation.pictures import Point, draw_costs, draw_frontier, draw_mels
from sf_lightning.evaluation.report import FRONTIERS, Page, Sample
from sf_lightning.evaluation.table import COLUMNS, Table
from sf_lightning.streaming.latency import LatencyReport
from sf_lightning.training.saving import newest_checkpoint

WAYS = ("griffin_lim", "griffin_lim_streamed", "copy_synthesis", "generated", "look_up", "offline", "streamed")
"""Rows of the table, in this order, where they are there."""


def samples_folder(trainer: L.Trainer) -> Path:
    """Where sound and pictures of this step lie."""
    return Path(trainer.default_root_dir) / "samples" / f"step-{trainer.global_step:06d}"


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
    draw_mels(mels, edges, frame_rate, picture, differences=differences)
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


def conclude(
    trainer: L.Trainer,
    rows: dict[str, dict[str, float]],
    more: str,
    samples: Path | None,
    latency: LatencyReport | None = None,
) -> None:
    """Prints the table of the last validation and what to open; keeps table and page in the run's folder.

    Args:
        trainer: Whose run it is.
        rows: Scores by way.
        more: A line below the table.
        samples: Where the last sounds are.
        latency: Of a stream, if there was one.
    """
    folder = Path(trainer.default_root_dir)
    (folder / "summary.md").write_text("\n".join([summary(rows), "", more]) + "\n")
    run_page(folder.resolve().name, rows, more, samples, latency).write(folder / "report.html")
    console, table = Console(), as_table(rows)
    console.width = max(console.width, Console(width=1000).measure(table).maximum)  # never cut, in a pipe neither
    console.print(table)
    if more:
        console.print(more)
    checkpoint = newest_checkpoint(folder / "checkpoints")
    for what, path in (
        ("hear and see", folder / "report.html"),
        ("its files", samples),
        (
            "metrics",
            next((lg.log_dir for lg in trainer.loggers if not isinstance(lg, WandbLogger)), None),
        ),
        ("W&B", next((f"{lg.save_dir}/wandb" for lg in trainer.loggers if isinstance(lg, WandbLogger)), None)),
        ("checkpoint", checkpoint),
        ("this table", folder / "summary.md"),
    ):
        if path:
            console.print(f"{what + ':':14}{path}", soft_wrap=True, highlight=False)


def run_page(
    name: str, rows: dict[str, dict[str, float]], more: str, samples: Path | None, latency: LatencyReport | None
) -> Page:
    """Returns the page of a run: its last table, where it lies between latency and quality, its last sounds.

    Args:
        name: Of the run.
        rows: Scores by way.
        more: What is said of latency.
        samples: Folder of the last sounds.
        latency: Of a stream, if there was one.
    """
    header, *cells = _cells(rows)
    table = Table("Held-out clips", tuple(header), tuple(tuple((cell, "") for cell in row) for row in cells))
    plots, heard = {}, list[Sample]()
    if latency is not None and "streamed" in rows:
        levels = {way.replace("_", "-"): rows[way] for way in ("copy_synthesis", "offline") if way in rows}
        for score in FRONTIERS:
            point = Point("streamed", "", latency.first_packet_ms, rows["streamed"][score], math.nan, math.nan)
            title = COLUMNS[score].title
            across = {way: values[score] for way, values in levels.items()}
            plots[f"Latency and quality: {title}"] = draw_frontier([point], across, title)
        plots["Cost against position"] = draw_costs({"": latency.chunk_ms})
    for reference in sorted(samples.glob("*.reference.wav")) if samples else ():
        key = reference.name.removesuffix(".reference.wav")
        files = {
            each: reference.with_name(f"{key}.{each}.wav") for each in ("reference", "made", "offline", "streamed")
        }
        sounds = {each: path for each, path in files.items() if path.is_file()}
        picture = reference.with_name(f"{key}.png")
        heard.append(Sample(key, sounds, {"mel": picture} if picture.is_file() else {}))
    meanings = {COLUMNS[score].title: COLUMNS[score].what for score in _shown(rows)}
    facts = {"latency": more} if more else {}
    return Page(f"Run {name}", facts, [table], meanings, plots, heard)


SOUNDS = ("reference", "made", "offline", "streamed")
"""Names of what is kept of a clip, in the order in which they are heard."""

SHOWN = (
    "pesq_wb",
    "stoi",
    "visqol",
    "mel_l1",
    "mr_stft",
    "periodicity",
    "seam_db",
    "gap",
    "real_time_factor",
)
"""Columns of the table, where a row has them."""


def _shown(rows: dict[str, dict[str, float]]) -> list[str]:
    return [name for name in SHOWN if any(name in values for values in rows.values())]


def _cells(rows: dict[str, dict[str, float]]) -> list[list[str]]:
    """The titles, and one row of text per way; a decoder's with STOI also as a share of copy-synthesis."""
    shown = _shown(rows)
    of_copy = "griffin_lim" not in rows  # beside which a vocoder is judged: its copy-synthesis is no ceiling
    table = [["", *(COLUMNS[name].title for name in shown), *(["of copy"] if of_copy else [])]]
    top = rows.get("copy_synthesis", {}).get("stoi", float("nan"))
    for way in (way for way in WAYS if way in rows):
        values = rows[way]
        cells = [COLUMNS[name].form.format(values[name]) if name in values else "" for name in shown]
        table.append([way.replace("_", "-"), *cells, *([f"{values['stoi'] / top:.0%}"] if of_copy else [])])
    return table


def as_table(rows: dict[str, dict[str, float]]) -> Drawn:
    """The scores as a table for the terminal."""
    table = Drawn(title="held-out clips", box=SIMPLE)
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
