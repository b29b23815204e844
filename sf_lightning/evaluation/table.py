"""Results as tables: Markdown and HTML for people, CSV for programs. Independent of W&B and the terminal."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sf_lightning.evaluation.intervals import Mean, mean_of
from sf_lightning.evaluation.results import ClipScores, Results
from sf_lightning.evaluation.systems import System, distinguishing_labels
from sf_lightning.files.atomic import write_atomically
from sf_lightning.files.tables import markdown_table, write_csv
from sf_lightning.files.text import markdown_text
from sf_lightning.metrics.speech import OVER_FRAMES
from sf_lightning.vocoder.config import GRIFFIN_LIM


class Column(NamedTuple):
    """A score: title of its column, format of its numbers, and meaning."""

    title: str
    form: str
    meaning: str


COLUMNS = {
    "pesq_wb": Column("PESQ-WB", "{:.2f}", "wide-band PESQ (P.862.2) against the recording, 1 to 4.64"),
    "stoi": Column("STOI", "{:.3f}", "short-time objective intelligibility against the recording, at most 1"),
    "visqol": Column("ViSQOL", "{:.2f}", "ViSQOL v3 in speech mode against the recording, 1 to 5"),
    "similarity": Column("speaker", "{:.3f}", "cosine similarity of ECAPA speaker embeddings to the recording's"),
    "nisqa": Column("NISQA", "{:.2f}", "opinion score predicted by NISQA without the recording, 1 to 5"),
    "dnsmos": Column("DNSMOS", "{:.2f}", "overall opinion predicted by DNSMOS P.835 without the recording, 1 to 5"),
    "mel_l1": Column("mel L1", "{:.3f}", "mean absolute difference of log-mels from the recording's"),
    "mr_stft": Column("MR-STFT", "{:.3f}", "multi-resolution STFT distance from the recording"),
    "periodicity": Column("periodicity", "{:.3f}", "RMS error of periodicity against the recording, 0 to 1"),
    "seam_db": Column(
        "seam dB",
        "{:+.2f}",
        "roughness of the wave at the roughest chunk edges beyond that half a chunk away; 0 is no seam",
    ),
    "pitch_jump": Column(
        "pitch jump", "{:+.2f}", "change of pitch at chunk edges beyond that elsewhere, semitones"
    ),
    "level_jump": Column("level jump", "{:+.2f}", "change of level at chunk edges beyond that elsewhere, dB"),
    "gap": Column("gap", "{:.4f}", "mean absolute difference of streamed from offline log-mels; 0 is equal"),
    "wait_ms": Column("wait ms", "{:.0f}", "duration of the speech whose tokens the first chunk needs"),
    "first_packet_ms": Column(
        "first packet ms", "{:.0f}", "first-packet latency: wait, network and vocoder of the first chunk"
    ),
    "real_time_factor": Column("RTF", "{:.2f}", "real-time factor: computing time over duration, one stream alone"),
    "chunk_ms": Column("chunk ms", "{:.0f}", "median computing time of a chunk"),
}
"""All scores by name, in the order of the table."""

QUALITY = ("pesq_wb", "stoi", "visqol", "similarity", "nisqa", "dnsmos", "mel_l1")

TIMES = ("wait_ms", "first_packet_ms", "real_time_factor", "chunk_ms")
"""Columns from the latency report."""

STREAMING = ("seam_db", "pitch_jump", "level_jump", "gap", *TIMES)

MAX_TIMED = 3
"""Number of clips of each system, the longest ones, that are streamed alone to measure latency."""

INTERVAL_NOTE = (
    "95 % interval over speakers and their clips, or over clips if there is one speaker or the speakers are unknown"
)

TIMES_NOTE = f"wait, first packet, RTF and chunk are measured on the {MAX_TIMED} longest clips and have no interval"

UNKNOWN = "unknown"
"""Language of a clip whose language is not given."""


@dataclass(frozen=True)
class Row:
    """Mean scores of a system over all clips or, if `language` is not empty, over those of one language.

    `number` counts the systems from 1, `labels` are the settings that distinguish a system, by column, `clips` is
    the number of clips, and `means` has the measured scores by name.
    """

    number: int
    system: System
    labels: dict[str, str]
    language: str
    clips: int
    means: dict[str, Mean]


@dataclass(frozen=True)
class Findings:
    """Means and intervals of all systems, computed once for all tables and plots.

    `rows` has one row for each system with results, in the order in which they were asked for; `language_rows` has
    one for each system and language, and is empty where all clips have one language.
    """

    results: Results
    rows: list[Row]
    language_rows: list[Row]

    @classmethod
    def from_results(cls, results: Results) -> "Findings":
        """Computes the means of an evaluation."""
        languages = {row.language for row in results.rows.values()}
        language_rows = _rows(results, _split_by_language) if len(languages) > 1 else []
        return cls(results, _rows(results, lambda rows: {"": rows}), language_rows)

    @property
    def measured(self) -> list[str]:
        """Names of the scores that any system has, in the order of the table."""
        return [name for name in COLUMNS if any(name in row.means for row in self.rows)]


def _split_by_language(rows: list[ClipScores]) -> dict[str, list[ClipScores]]:
    languages = sorted({row.language for row in rows})
    return {language or UNKNOWN: [row for row in rows if row.language == language] for language in languages}


def _rows(results: Results, split: Callable[[list[ClipScores]], dict[str, list[ClipScores]]]) -> list[Row]:
    systems = [*results.systems.values()]
    rows = []
    for number, (system, labels) in enumerate(zip(systems, distinguishing_labels(systems), strict=True), 1):
        if clips := results.rows_of(system):
            for language, part in split(clips).items():
                rows.append(Row(number, system, labels, language, len(part), _means(part)))
    return rows


def _means(rows: Sequence[ClipScores]) -> dict[str, Mean]:
    names, means = {name for row in rows for name in row.scores}, dict[str, Mean]()
    for name in (name for name in COLUMNS if name in names):
        measured = [row for row in rows if name in row.scores]
        weights = [row.frames for row in measured] if name in OVER_FRAMES else None
        mean = mean_of((row.scores[name] for row in measured), weights, (row.speaker or None for row in measured))
        means[name] = mean._replace(low=math.nan, high=math.nan) if name in TIMES else mean
    return means


def format_mean(mean: Mean | None, form: str) -> tuple[str, str]:
    """Returns a mean in a number format, and its interval and undefined scores as smaller text; "" for None."""
    if mean is None:
        return "", ""
    undefined = [f"{mean.num_nan} undefined"] if mean.num_nan else []
    if math.isnan(mean.mean):
        return "none", ", ".join(undefined)
    ends = [] if math.isnan(mean.low) or mean.low == mean.high else [mean.low, mean.high]
    interval = [" to ".join(form.format(end) for end in ends)] if ends else []
    return form.format(mean.mean), ", ".join(interval + undefined)


@dataclass(frozen=True)
class Table:
    """A table of text: cells are pairs of main and smaller text; the first `text_columns` columns hold words."""

    title: str
    header: tuple[str, ...]
    cells: tuple[tuple[tuple[str, str], ...], ...]
    text_columns: int = 1

    def markdown(self) -> str:
        """Returns the table in Markdown, without its title."""
        return markdown_table(
            self.header, [[f"{big} ({small})" if small else big for big, small in row] for row in self.cells]
        )


def tables(findings: Findings) -> list[Table]:
    """Returns the tables of quality and streaming and, for clips in several languages, of quality by language."""
    shown = [_table("Quality", findings.rows, QUALITY), _table("Streaming", findings.rows, STREAMING)]
    return shown + ([_table("By language", findings.language_rows, QUALITY)] if findings.language_rows else [])


def _table(title: str, rows: Sequence[Row], names: Sequence[str]) -> Table:
    names = [name for name in names if any(name in row.means for row in rows)]
    labels = list(rows[0].labels) if rows else []
    language = ["language"] if any(row.language for row in rows) else []
    cells = []
    for row in rows:
        words = [str(row.number), *row.labels.values(), *([row.language] if language else []), str(row.clips)]
        cells.append(
            (
                *((word, "") for word in words),
                *(format_mean(row.means.get(name), COLUMNS[name].form) for name in names),
            )
        )
    header = ("#", *labels, *language, "clips", *(COLUMNS[name].title for name in names))
    return Table(title, header, tuple(cells), 1 + len(labels) + len(language))


FLAT_HEADER = "number way checkpoint layout lookahead nfe guidance vocoder language clips".split()
FLAT_PARTS = ("", "_low", "_high", "_count", "_nan")


def flat_table(findings: Findings) -> tuple[list[str], list[list[object]]]:
    """Returns header and rows of all means, one number a cell; None where a number is undefined.

    The column "way" is the mode of decoding: copy_synthesis, offline or streamed.
    """
    names, rows = findings.measured, []
    header = [*FLAT_HEADER, *(f"{name}{part}" for name in names for part in FLAT_PARTS)]
    for row in [*findings.rows, *findings.language_rows]:
        system, vocoder = row.system, row.system.vocoder.checkpoint
        if vocoder == GRIFFIN_LIM:
            vocoder = f"{vocoder}-{system.vocoder.iterations}"
        settings = [None, None] if system.kind == "copy_synthesis" else [system.nfe, system.guidance]
        values: list[object] = [row.number, system.kind, system.ckpt, system.layout, system.lookahead, *settings]
        values += [vocoder, row.language, row.clips]
        for name in names:
            mean = row.means.get(name)
            values += (
                [None] * len(FLAT_PARTS)
                if mean is None
                else [None if math.isnan(number) else number for number in mean]
            )
        rows.append(values)
    return header, rows


def write_tables(findings: Findings, folder: Path) -> None:
    """Writes `table.md`, all tables with the meanings of their columns, and `table.csv`, one number a cell."""
    write_atomically(folder / "table.md", markdown(findings))
    write_csv(folder / "table.csv", *flat_table(findings))


def markdown(findings: Findings) -> str:
    """Returns all tables in Markdown, and the meanings of their columns."""
    parts = [
        "# Evaluation",
        *(f"- {name}: {markdown_text(fact)}" for name, fact in findings.results.numbered_facts.items()),
        "",
    ]
    for table in tables(findings):
        parts += [f"## {table.title}", "", table.markdown(), ""]
    parts += [
        f"Means over clips, those of mel L1 and gap over frames; in brackets the {INTERVAL_NOTE}, and the "
        f"number of clips whose score is undefined; {TIMES_NOTE}.",
        "",
    ]
    parts += [f"*{COLUMNS[name].title}*: {COLUMNS[name].meaning}." for name in findings.measured]
    return "\n".join(parts) + "\n"
