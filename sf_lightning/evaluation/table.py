"""What was found, as tables: for people in Markdown and on the page, for programs in CSV. Knows nothing of W&B."""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sf_lightning.evaluation.bootstrap import Mean, mean_of
from sf_lightning.evaluation.grid import Way, describe
from sf_lightning.evaluation.results import Line, Results
from sf_lightning.vocoder.config import GRIFFIN_LIM


class Column(NamedTuple):
    """A score: its title, how a number of it is written, what it says."""

    title: str
    form: str
    what: str


COLUMNS = {
    "pesq_wb": Column("PESQ-WB", "{:.2f}", "wide-band PESQ (P.862.2) against the recording, 1 to 4.64"),
    "stoi": Column("STOI", "{:.3f}", "short-time objective intelligibility, up to 1"),
    "visqol": Column("ViSQOL", "{:.2f}", "ViSQOL v3 in speech mode against the recording, 1 to 5"),
    "similarity": Column("speaker", "{:.3f}", "cosine between ECAPA embeddings of what was made and the recording"),
    "nisqa": Column("NISQA", "{:.2f}", "opinion predicted from the sound alone, 1 to 5"),
    "dnsmos": Column("DNSMOS", "{:.2f}", "overall opinion (P.835) predicted from the sound alone, 1 to 5"),
    "mel_l1": Column("mel L1", "{:.3f}", "mean absolute difference of log-mel from that of the recording"),
    "mr_stft": Column("MR-STFT", "{:.3f}", "distance of spectra at several resolutions from the recording's"),
    "periodicity": Column("periodicity", "{:.3f}", "error of how periodic the sound is, against the recording"),
    "seam_db": Column("seam dB", "{:+.2f}", "roughness at chunk edges over that around them; 0 is no seam"),
    "pitch_jump": Column(
        "pitch jump", "{:+.2f}", "change of pitch across chunk edges beyond that elsewhere, semitones"
    ),
    "level_jump": Column("level jump", "{:+.2f}", "change of level across chunk edges beyond that elsewhere, dB"),
    "gap": Column("gap", "{:.4f}", "mean absolute difference of streamed from offline log-mel; 0 is equal"),
    "wait_ms": Column("wait ms", "{:.0f}", "speech whose tokens the first chunk waits for"),
    "first_packet_ms": Column("first packet ms", "{:.0f}", "that, and network and vocoder of the first chunk"),
    "real_time_factor": Column("RTF", "{:.2f}", "seconds of computing for a second of sound, one stream alone"),
    "chunk_ms": Column("chunk ms", "{:.0f}", "computing of a chunk, the median of a clip"),
}
"""All scores by name, in the order of the table."""

QUALITY = ("pesq_wb", "stoi", "visqol", "similarity", "nisqa", "dnsmos", "mel_l1")
STREAMING = (
    "seam_db",
    "pitch_jump",
    "level_jump",
    "gap",
    "wait_ms",
    "first_packet_ms",
    "real_time_factor",
    "chunk_ms",
)

OVER_FRAMES = ("mel_l1", "gap")
"""Scores that are means over frames, as in training: a clip weighs as much as it is long."""

TIMES = ("wait_ms", "first_packet_ms", "real_time_factor", "chunk_ms")
"""Of an account of latency, what goes into the table."""

MAX_TIMED = 3
"""Clips of each way, the longest ones, that are streamed by themselves to take the time."""

TIMED = f"wait, first packet, RTF and chunk are of the {MAX_TIMED} longest clips alone, and have no interval"

UNKNOWN = "not said"
"""The language of a clip that does not say it."""


@dataclass(frozen=True)
class Row:
    """A way, or a way in one language.

    Attributes:
        number: Of the way, from 1.
        way: Which.
        told: What tells it from the others, by column.
        language: Or empty for all clips.
        clips: How many.
        means: By name of the score; only what was measured.
    """

    number: int
    way: Way
    told: dict[str, str]
    language: str
    clips: int
    means: dict[str, Mean]


@dataclass(frozen=True)
class Findings:
    """What was found: all means and their intervals, which take a while, made once.

    Attributes:
        results: Of which they are.
        rows: For each way of which something is known, in the order in which they were asked for.
        language_rows: For each way and language; none where there is only one language.
    """

    results: Results
    rows: list[Row]
    language_rows: list[Row]

    @classmethod
    def of(cls, results: Results) -> "Findings":
        """Those of an evaluation as it is now."""
        several = len({line.language for line in results.lines.values()}) > 1
        spoken = _rows(results, _by_language) if several else []
        return cls(results, _rows(results, lambda lines: {"": lines}), spoken)

    @property
    def measured(self) -> list[str]:
        """Names of the scores that there are."""
        return [name for name in COLUMNS if any(name in row.means for row in self.rows)]


def _by_language(lines: list[Line]) -> dict[str, list[Line]]:
    names = sorted({line.language for line in lines})
    return {name or UNKNOWN: [line for line in lines if line.language == name] for name in names}


def _rows(results: Results, split: Callable[[list[Line]], dict[str, list[Line]]]) -> list[Row]:
    found = []
    for number, (way, told) in enumerate(
        zip(results.ways.values(), describe([*results.ways.values()]), strict=True), 1
    ):
        if lines := results.of(way):
            for language, some in split(lines).items():
                found.append(Row(number, way, told, language, len(some), _means(some)))
    return found


def _means(lines: Sequence[Line]) -> dict[str, Mean]:
    names, means = {name for line in lines for name in line.scores}, dict[str, Mean]()
    for name in COLUMNS:
        if name in names:
            some = [line for line in lines if name in line.scores]
            weights = [line.frames for line in some] if name in OVER_FRAMES else None
            mean = mean_of((line.scores[name] for line in some), weights)
            means[name] = mean._replace(low=math.nan, high=math.nan) if name in TIMES else mean
    return means


def cell(name: str, mean: Mean | None) -> tuple[str, str]:
    """Returns a mean as text, and in small print its interval and what is undefined; empty if not measured."""
    if mean is None:
        return "", ""
    form, undefined = COLUMNS[name].form, [f"{mean.num_nan} undefined"] if mean.num_nan else []
    if math.isnan(mean.mean):
        return "none", undefined[0]
    spread = [] if math.isnan(mean.low) or mean.low == mean.high else [mean.low, mean.high]
    interval = [" to ".join(form.format(end) for end in spread)] if spread else []
    return form.format(mean.mean), ", ".join(interval + undefined)


@dataclass(frozen=True)
class Table:
    """Text to be shown.

    Attributes:
        title: Above it.
        header: Of the columns.
        cells: Rows of pairs: what is said, and more of it in small print.
        words: How many columns, from the left, are words and not numbers.
    """

    title: str
    header: tuple[str, ...]
    cells: tuple[tuple[tuple[str, str], ...], ...]
    words: int = 1

    def markdown(self) -> str:
        """The table in Markdown, under its title."""
        lines = [self.header, ["---"] * len(self.header)]
        lines += [[f"{big} ({small})" if small else big for big, small in row] for row in self.cells]
        return "\n".join([f"## {self.title}", "", *("| " + " | ".join(line) + " |" for line in lines)])


def tables(found: Findings) -> list[Table]:
    """Returns quality, streaming, and where clips are of several languages the quality of each."""
    made = [_table("Quality", found.rows, QUALITY), _table("Streaming", found.rows, STREAMING)]
    return made + ([_table("By language", found.language_rows, QUALITY)] if found.language_rows else [])


def _table(title: str, some: Sequence[Row], names: Sequence[str]) -> Table:
    names = [name for name in names if any(name in row.means for row in some)]
    told = list(some[0].told) if some else []
    spoken = ["language"] if any(row.language for row in some) else []
    cells = []
    for row in some:
        words = [str(row.number), *row.told.values(), *([row.language] if spoken else []), str(row.clips)]
        numbers = [cell(name, row.means.get(name)) for name in names]
        cells.append((*((word, "") for word in words), *numbers))
    header = ("#", *told, *spoken, "clips", *(COLUMNS[name].title for name in names))
    return Table(title, header, tuple(cells), 1 + len(told) + len(spoken))


def flat(found: Findings) -> tuple[list[str], list[list[object]]]:
    """Returns header and rows of everything, a number to a cell; undefined ones are None."""
    some, names = [*found.rows, *found.language_rows], found.measured
    header = [
        "number",
        "way",
        "checkpoint",
        "layout",
        "lookahead",
        "nfe",
        "guidance",
        "vocoder",
        "language",
        "clips",
    ]
    header += [f"{name}{part}" for name in names for part in ("", "_low", "_high", "_count", "_nan")]
    table = []
    for row in some:
        way, copy = row.way, row.way.kind == "copy_synthesis"
        vocoder = way.vocoder.checkpoint
        if vocoder == GRIFFIN_LIM:
            vocoder = f"{vocoder}-{way.vocoder.iterations}"
        decoded = [None, None] if copy else [way.nfe, way.guidance]
        values: list[object] = [row.number, way.kind, way.ckpt, way.layout, way.lookahead, *decoded, vocoder]
        values += [row.language, row.clips]
        for name in names:
            mean = row.means.get(name)
            values += [None] * 5 if mean is None else [None if number != number else number for number in mean]
        table.append(values)
    return header, table


def write_csv(found: Findings, path: Path) -> None:
    """Writes everything, a number to a cell."""
    header, table = flat(found)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *table])


def markdown(found: Findings) -> str:
    """All tables in Markdown, and what their columns mean."""
    parts = ["# Evaluation", *(f"- {name}: {fact}" for name, fact in found.results.said.items()), ""]
    for table in tables(found):
        parts += [table.markdown(), ""]
    parts += [
        "Means over clips, of mel L1 and gap over frames; in brackets 95 % bootstrap intervals, and how many clips "
        f"have no such score; {TIMED}.",
        "",
    ]
    parts += [f"*{COLUMNS[name].title}*: {COLUMNS[name].what}." for name in found.measured]
    return "\n".join(parts) + "\n"
