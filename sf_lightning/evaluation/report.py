"""A report page with tables, plots and sounds: a single HTML file that opens from disk and needs no network."""

import base64
import io
import mimetypes
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sf_lightning.evaluation.pictures import Point, draw_costs, draw_frontier
from sf_lightning.evaluation.results import Results
from sf_lightning.evaluation.systems import join_labels
from sf_lightning.evaluation.table import COLUMNS, INTERVAL_NOTE, TIMES_NOTE, Findings, Row, Table, tables
from sf_lightning.files.atomic import write_atomically

FRONTIERS = ("visqol", "pesq_wb", "stoi")
"""Scores that are plotted against latency."""

MAX_SAMPLES = 2**25
"""Samples of the longest sound in a page, 35 minutes at 16 kHz; a small FLAC file can expand to gigabytes."""

MAX_CURVES = 8
"""Number of systems in one plot of computing time: more curves could not be distinguished."""


class Sample(NamedTuple):
    """Audio files and picture files of a clip, both by name."""

    key: str
    sounds: dict[str, Path]
    pictures: dict[str, Path]


def write_report(
    path: Path,
    title: str,
    facts: Mapping[str, str],
    tables: Sequence[Table],
    scores: Iterable[str],
    plots: Mapping[str, str],
    samples: Sequence[Sample],
    plot_note: str = "",
) -> None:
    """Writes a report page atomically.

    Args:
        path: HTML file to write.
        title: Title of the page.
        facts: Facts by name.
        tables: Tables, in order.
        scores: Names of the scores in the tables, whose meanings are explained.
        plots: SVG elements by title.
        samples: Clips to play.
        plot_note: How to read the plots.
    """
    meanings = {COLUMNS[name].title: COLUMNS[name].meaning for name in scores}
    page = {"title": title, "facts": facts, "tables": tables, "meanings": meanings, "plots": plots}
    write_page("report.html.j2", path, page=page | {"samples": samples, "plot_note": plot_note})


def write_evaluation_report(path: Path, findings: Findings, first_tables: Sequence[Table] = ()) -> None:
    """Writes the page of an evaluation; `first_tables` precede the tables of the findings."""
    note = f"below each mean its {INTERVAL_NOTE}; {TIMES_NOTE}"
    write_report(
        path,
        "Evaluation",
        findings.results.numbered_facts | {"intervals": note},
        [*first_tables, *tables(findings)],
        findings.measured,
        quality_plots(findings.rows) | cost_plots(findings.results, findings.rows),
        kept_samples(findings.results, findings.rows),
        "Numbers beside points and curves are row numbers of the tables above (column #).",
    )


def quality_plots(rows: Sequence[Row]) -> dict[str, str]:
    """Returns a plot of quality against latency, as SVG by title, for each measured score; none without streams."""
    plots = {}
    for name in FRONTIERS:
        points, levels = list[Point](), dict[str, float]()
        for row in rows:
            latency, mean, system = row.means.get("first_packet_ms"), row.means.get(name), row.system
            if mean is None or np.isnan(mean.mean):
                continue
            if system.kind != "streamed":
                title = system.kind.replace("_", "-")
                # The best of several systems: the quality that is reachable without streaming.
                levels[title] = max(mean.mean, levels.get(title, mean.mean))
            elif latency is not None:
                series = str((system.ckpt, system.layout, system.nfe, system.guidance, system.vocoder))
                points.append(Point(str(row.number), series, latency.mean, mean.mean, mean.low, mean.high))
        if points:
            title = COLUMNS[name].title
            plots[f"Latency and quality: {title}"] = draw_frontier(points, levels, title)
    return plots


def cost_plots(results: Results, rows: Sequence[Row]) -> dict[str, str]:
    """Returns plots of the computing time of each chunk of each system's longest timed clip, as SVG by title."""
    timed = {}
    for row in rows:
        if curves := [clip.chunk_ms for clip in results.rows_of(row.system) if clip.chunk_ms]:
            timed[str(row.number)] = max(curves, key=len)
    names, plots = list(timed), {}
    for start in range(0, len(names), MAX_CURVES):
        part = names[start : start + MAX_CURVES]
        title = "Computing time by chunk" + (f" ({part[0]} to {part[-1]})" if len(names) > MAX_CURVES else "")
        plots[title] = draw_costs({name: timed[name] for name in part})
    return plots


def kept_samples(results: Results, rows: Sequence[Row]) -> list[Sample]:
    """Returns the clips whose sound was kept: the recording, and the clip as each system decodes it."""
    samples = []
    for key in dict.fromkeys(clip.clip for clip in results.rows.values()):
        sounds, pictures = {"reference": results.sample_path(key, "reference.flac")}, dict[str, Path]()
        for row in rows:
            name = f"{row.number}: {join_labels(row.labels)}"
            sounds[name] = results.sound_path(row.system, key)
            pictures[f"mel of {name}"] = results.sample_path(key, f"{row.system.id}.webp")
        if sounds["reference"].is_file():
            samples.append(Sample(key, existing(sounds), existing(pictures)))
    return samples


def existing(paths: Mapping[str, Path]) -> dict[str, Path]:
    """Returns the paths that are files."""
    return {name: path for name, path in paths.items() if path.is_file()}


def write_page(template: str, path: Path, **variables: object) -> None:
    """Renders a template of this package and writes it atomically."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"sound": sound_url, "picture": picture_url}
    write_atomically(path, environment.get_template(template).render(**variables))


def sound_url(path: Path) -> str:
    """Returns an audio file as a data URL of 16-bit FLAC."""
    return flac_url(*read_sound(path, "int16"))


def read_sound(path: Path, dtype: str) -> tuple[np.ndarray, int]:
    """Returns the samples [N] of a kept sound, and its sample rate.

    Raises:
        ValueError: if it is damaged, not mono, or longer than any clip.
    """
    try:
        with soundfile.SoundFile(path) as file:
            if file.channels != 1 or file.frames > MAX_SAMPLES:
                raise ValueError(
                    f"{path} has {file.channels} channels of {file.frames} samples: expected mono, at most "
                    f"{MAX_SAMPLES} samples; delete it"
                )
            return file.read(dtype=dtype), file.samplerate
    except soundfile.LibsndfileError as error:
        raise ValueError(f"{path} is damaged ({error}): delete it, and repeat the evaluation") from error


def flac_url(wave: np.ndarray, rate: int) -> str:
    """Returns a wave [N], int16, as a data URL of FLAC."""
    file = io.BytesIO()
    soundfile.write(file, wave, rate, format="FLAC", subtype="PCM_16")
    return _data_url("audio/flac", file.getvalue())


def picture_url(path: Path) -> str:
    """Returns a picture file as a data URL."""
    return _data_url(mimetypes.guess_type(path.name)[0] or "image/png", path.read_bytes())


def _data_url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
