"""One page to hear and see what was found: a single file that opens from disk and asks nothing of the network."""

import base64
import io
import mimetypes
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from sf_lightning.evaluation.grid import label
from sf_lightning.evaluation.pictures import Point, draw_costs, draw_frontier
from sf_lightning.evaluation.results import Results
from sf_lightning.evaluation.table import COLUMNS, TIMED, Findings, Row, Table, tables

FRONTIERS = ("visqol", "pesq_wb", "stoi")
"""Scores that are drawn against latency."""

NUM_LEGEND = 8
"""Ways whose cost is drawn in one plot: more could not be told apart."""


@dataclass(frozen=True)
class Sample:
    """A clip to be heard and seen.

    Attributes:
        key: Of the clip.
        sounds: Files by what they are.
        pictures: By what they are said to be.
    """

    key: str
    sounds: dict[str, Path]
    pictures: dict[str, Path]


@dataclass(frozen=True)
class Page:
    """What is on a page.

    Attributes:
        title: Its title.
        facts: By name.
        tables: In order.
        meanings: Of the columns, by title.
        plots: SVG by title.
        samples: To be heard.
    """

    title: str
    facts: Mapping[str, str]
    tables: Sequence[Table]
    meanings: Mapping[str, str] = field(default_factory=dict)
    plots: Mapping[str, str] = field(default_factory=dict)
    samples: Sequence[Sample] = ()

    def write(self, path: Path) -> None:
        """Writes the page, whole or not at all."""
        write_page("report.html.j2", path, page=self)


def page_of(found: Findings, more: Sequence[Table] = ()) -> Page:
    """Returns the page of an evaluation; further tables come first."""
    results, every = found.results, found.rows
    meanings = {COLUMNS[name].title: COLUMNS[name].what for name in found.measured}
    facts = results.said | {"intervals": f"below each mean its 95 % bootstrap interval over clips; {TIMED}"}
    plots = frontiers(every) | costs(results, every)
    return Page("Evaluation", facts, [*more, *tables(found)], meanings, plots, samples(results, every))


def frontiers(every: Sequence[Row]) -> dict[str, str]:
    """Returns quality against latency, as SVG, for each score that was measured; nothing where nothing streams."""
    plots = {}
    for name in FRONTIERS:
        points, levels = list[Point](), dict[str, float]()
        for row in every:
            latency, mean = row.means.get("first_packet_ms"), row.means.get(name)
            if mean is None or np.isnan(mean.mean):
                continue
            if row.way.kind != "streamed":
                title = row.way.kind.replace("_", "-")
                # Of several the best: what could be had without streaming.
                levels[title] = max(mean.mean, levels.get(title, mean.mean))
            elif latency is not None:
                way = row.way
                series = str((way.ckpt, way.layout, way.nfe, way.guidance, way.vocoder))
                points.append(Point(str(row.number), series, latency.mean, mean.mean, mean.low, mean.high))
        if points:
            title = COLUMNS[name].title
            plots[f"Latency and quality: {title}"] = draw_frontier(points, levels, title)
    return plots


def costs(results: Results, every: Sequence[Row]) -> dict[str, str]:
    """Returns cost against position, as SVG, of each way's longest clip; nothing where no time was taken."""
    timed = {}
    for row in every:
        if curves := [line.chunk_ms for line in results.of(row.way) if line.chunk_ms]:
            timed[str(row.number)] = max(curves, key=len)
    names, plots = list(timed), {}
    for start in range(0, len(names), NUM_LEGEND):
        some = names[start : start + NUM_LEGEND]
        title = "Cost against position" + (f" ({some[0]} to {some[-1]})" if len(names) > NUM_LEGEND else "")
        plots[title] = draw_costs({name: timed[name] for name in some})
    return plots


def samples(results: Results, every: Sequence[Row]) -> list[Sample]:
    """Returns the clips whose sound was kept: as recorded, and as made in each way."""
    found = []
    for key in dict.fromkeys(line.clip for line in results.lines.values()):
        sounds, pictures = {"reference": results.sample(key, "reference.flac")}, dict[str, Path]()
        for row in every:
            name = f"{row.number}: {label(row.told)}"
            sounds[name] = results.sound(row.way, key)
            pictures[f"mel of {name}"] = results.sample(key, f"{row.way.id}.webp")
        there = ({name: path for name, path in each.items() if path.is_file()} for each in (sounds, pictures))
        if sounds["reference"].is_file():
            found.append(Sample(key, *there))
    return found


def write_page(template: str, path: Path, **what: object) -> None:
    """Writes a page from a template beside this file, whole or not at all."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"sound": sound_url, "picture": picture_url}
    fresh = path.with_name(f".{path.name}")
    fresh.write_text(environment.get_template(template).render(**what), encoding="utf-8")
    fresh.replace(path)


def sound_url(path: Path) -> str:
    """Returns a sound as a data URL: 16-bit FLAC, whatever it was."""
    wave, rate = soundfile.read(path, dtype="int16")
    return flac_url(wave, rate)


def flac_url(wave: np.ndarray, rate: int) -> str:
    """Returns a wave [N], int16, as a data URL."""
    written = io.BytesIO()
    soundfile.write(written, wave, rate, format="FLAC", subtype="PCM_16")
    return _url("audio/flac", written.getvalue())


def picture_url(path: Path) -> str:
    """Returns a picture as a data URL."""
    return _url(mimetypes.guess_type(path.name)[0] or "image/png", path.read_bytes())


def _url(kind: str, data: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
