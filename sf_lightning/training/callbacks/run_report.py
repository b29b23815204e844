"""Sound and pictures of validation clips, and the table and page at the end of a run."""

import math
from collections.abc import Mapping
from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from torch import Tensor

from sf_lightning.audio.wave import write_wave
from sf_lightning.evaluation.pictures import Point, draw_costs, draw_frontier, draw_mels
from sf_lightning.evaluation.report import FRONTIERS, Sample, existing, write_report
from sf_lightning.evaluation.table import COLUMNS, Table
from sf_lightning.evaluation.terminal import print_tables
from sf_lightning.files.atomic import atomic_path, write_atomically
from sf_lightning.files.text import file_name
from sf_lightning.streaming.latency import LatencyReport, latency_summary
from sf_lightning.training.saving import newest_checkpoint

MODES = ("griffin_lim", "griffin_lim_streamed", "copy_synthesis", "generated", "look_up", "offline", "streamed")
"""Rows of the table, in this order, where a run has them."""

SOUNDS = ("reference", "made", "offline", "streamed")
"""Names of the sounds of a clip, in the order of the page."""

SHOWN = "pesq_wb stoi visqol mel_l1 mr_stft periodicity seam_db gap real_time_factor".split()
"""Columns of the table, where a row has them."""


def samples_folder(trainer: L.Trainer) -> Path:
    """Returns the folder of sound and pictures of the current step, which is created."""
    folder = Path(trainer.default_root_dir) / "samples" / f"step-{trainer.global_step:06d}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def logging_step(trainer: L.Trainer) -> int:
    """Returns the step under which loggers, which count from 0, have the last training step."""
    return max(0, trainer.global_step - 1)


def wandb_loggers(trainer: L.Trainer) -> list[WandbLogger]:
    """Returns the W&B loggers of a trainer."""
    return [logger for logger in trainer.loggers if isinstance(logger, WandbLogger)]


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
    """Writes a clip's sounds and a picture of its log-mels to a folder and to W&B.

    Args:
        trainer: Trainer with the loggers.
        folder: Folder to write to.
        key: Key of the clip.
        sounds: Waves [N] by name.
        rates: Sample rates in Hz, by the same names.
        mels: Log-mels [T, F] by name.
        edges: Frames at which chunks begin, [E].
        frame_rate: Frames a second.
        differences: Whether the picture also shows the differences of the log-mels from the first.
    """
    key = file_name(key)
    for name, wave in sounds.items():
        write_wave(folder / f"{key}.{name}.wav", wave.cpu().numpy(), rates[name])
    picture = folder / f"{key}.png"
    with atomic_path(picture) as temporary:
        draw_mels(mels, edges, frame_rate, temporary, differences=differences)
    for logger in wandb_loggers(trainer):
        logger.log_audio(
            f"audio/{key}",
            [wave.cpu().numpy().clip(-1, 1) for wave in sounds.values()],
            sample_rate=[rates[name] for name in sounds],
            caption=list(sounds),
            step=logging_step(trainer),
        )
        logger.log_image(f"mel/{key}", [str(picture)], step=logging_step(trainer))


def report_run(
    trainer: L.Trainer,
    rows: dict[str, dict[str, float]],
    samples: Path | None,
    latency: LatencyReport | None = None,
) -> None:
    """Prints the table of the last validation and the paths of the run's files; writes the table and a page.

    Args:
        trainer: Trainer of the run.
        rows: Mean scores by mode.
        samples: Folder of the last sounds.
        latency: Latency report of a stream, if one was measured.
    """
    folder, table = Path(trainer.default_root_dir), run_table(rows)
    note = latency_summary(latency) if latency else ""
    write_atomically(folder / "summary.md", f"{table.markdown()}\n\n{note}\n")
    write_run_report(folder, rows, samples, latency)
    print_tables([table])
    console = Console()
    if note:
        console.print(note, markup=False)
    wandb = wandb_loggers(trainer)
    metrics = next((logger.log_dir for logger in trainer.loggers if not isinstance(logger, WandbLogger)), None)
    for name, path in (
        ("report", folder / "report.html"),
        ("samples", samples),
        ("metrics", metrics),
        ("W&B", f"{wandb[0].save_dir}/wandb" if wandb else None),
        ("checkpoint", newest_checkpoint(folder / "checkpoints")),
        ("table", folder / "summary.md"),
    ):
        if path:
            console.print(f"{name + ':':14}{path}", soft_wrap=True, highlight=False, markup=False)


def write_run_report(
    folder: Path, rows: Mapping[str, Mapping[str, float]], samples: Path | None, latency: LatencyReport | None
) -> None:
    """Writes the page of a run's folder; arguments as for `report_run`."""
    plots, shown_samples = {}, list[Sample]()
    if latency is not None and "streamed" in rows:
        levels = {mode.replace("_", "-"): rows[mode] for mode in ("copy_synthesis", "offline") if mode in rows}
        for score in FRONTIERS:
            point = Point("streamed", "", latency.first_packet_ms, rows["streamed"][score], math.nan, math.nan)
            title = COLUMNS[score].title
            means = {mode: values[score] for mode, values in levels.items()}
            plots[f"Latency and quality: {title}"] = draw_frontier([point], means, title)
        plots["Computing time by chunk"] = draw_costs({"": latency.chunk_ms})
    for reference in sorted(samples.glob("*.reference.wav")) if samples else ():
        key = reference.name.removesuffix(".reference.wav")
        sounds = {sound: reference.with_name(f"{key}.{sound}.wav") for sound in SOUNDS}
        pictures = {"mel": reference.with_name(f"{key}.png")}
        shown_samples.append(Sample(key, existing(sounds), existing(pictures)))
    facts, title = {"latency": latency_summary(latency)} if latency else {}, f"Run {folder.resolve().name}"
    scores = _shown_scores(rows)
    write_report(folder / "report.html", title, facts, [run_table(rows)], scores, plots, shown_samples)


def run_table(rows: Mapping[str, Mapping[str, float]]) -> Table:
    """Returns the mean scores by mode as a table; for decoders STOI also as a share of copy-synthesis."""
    shown = _shown_scores(rows)
    has_ceiling = "griffin_lim" not in rows  # a vocoder run trains copy-synthesis itself
    header = ["", *(COLUMNS[name].title for name in shown), *(["of copy"] if has_ceiling else [])]
    ceiling = rows.get("copy_synthesis", {}).get("stoi", math.nan)
    cells = []
    for mode in (mode for mode in MODES if mode in rows):
        values = rows[mode]
        numbers = [COLUMNS[name].form.format(values[name]) if name in values else "" for name in shown]
        share = [f"{values['stoi'] / ceiling:.0%}"] if has_ceiling else []
        cells.append([mode.replace("_", "-"), *numbers, *share])
    return Table("Held-out clips", tuple(header), tuple(tuple((text, "") for text in row) for row in cells))


def _shown_scores(rows: Mapping[str, Mapping[str, float]]) -> list[str]:
    return [name for name in SHOWN if any(name in values for values in rows.values())]
