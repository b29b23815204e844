"""What the model cards of decoders and vocoders share: the YAML that the hub reads, license, data, scores."""

import json
import math
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import ModelCardData

from sf_lightning.audio.mel import MelConfig
from sf_lightning.files.tables import read_metrics
from sf_lightning.files.text import markdown_text, printable
from sf_lightning.training.callbacks.run_report import run_table

COLUMNS = {
    "val/loss": "loss {:.4g}",
    "latency/first_packet_ms": "first packet after {:.0f} ms on the machine of training",
    "latency/real_time_factor": "real-time factor {:.2f}",
}
"""Columns of a run's metrics that the card reports below the table of scores."""


@dataclass
class Scores:
    """Scores of a run's last validation.

    Attributes:
        step: Step of that validation.
        systems: Scores of each row of the table, by metric, as `run_table` shows them.
        others: Values of the columns in `COLUMNS`.
    """

    step: int
    systems: dict[str, dict[str, float]] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)


def read_scores(checkpoint: Path, step: int) -> Scores | None:
    """Returns the last validation scores up to a step, in the run of a checkpoint; None if there are none."""
    rows = [
        {name: value for name, value in row.items() if math.isfinite(value)}
        for row in read_metrics(checkpoint.absolute().parent.parent)
    ]
    rows = [row for row in rows if row.get("step", math.inf) < step]
    # Scores that do not change, such as those of copy-synthesis, are logged once.
    values = {name: value for row in rows for name, value in row.items()}
    validated = [row["step"] for row in rows if "val/loss" in row or "streamed/stoi" in row]
    if not validated:
        return None
    scores = Scores(int(validated[-1]) + 1)
    for name, value in values.items():
        system, _, metric = name.partition("/")
        if f"{system}/stoi" in values:
            scores.systems.setdefault(system, {})[metric] = value
        elif name in COLUMNS:
            scores.others[name] = value
    return scores


def add_metadata(text: str, pipeline_tag: str, tags: list[str], license: str | None) -> str:
    """Returns a card: its text below the YAML metadata of the Hugging Face hub."""
    data = ModelCardData(library_name="sf-lightning", pipeline_tag=pipeline_tag, tags=tags, license=license)
    return f"---\n{data.to_yaml()}\n---\n{text}"


def name_texts(name: str) -> dict[str, str]:
    """Returns a name as it is written in Python (`name`), in Markdown (`title`) and in a shell (`path`)."""
    return {
        "name": json.dumps(name, ensure_ascii=False)[1:-1],
        "title": markdown_text(name),
        "path": shlex.quote(printable(name)),
    }


def license_text(license: str | None) -> str:
    """Returns the sentence on the license, or the place where the user must name one."""
    if license is not None:
        return f"License: {markdown_text(license)}."
    return "**TO BE FILLED IN: license.** Name one here, and as `license:` in the first lines of this file."


def data_text(data: str | None) -> str:
    """Returns the paragraph on the training data, or the place where the user must write it."""
    request = "What speech it was trained on, in which languages, under what terms, with whose consent."
    return f"**TO BE FILLED IN: data.** {request}" if data is None else f"Trained on:\n\n{data.strip()}"


def mel_text(mel: MelConfig) -> str:
    """Returns the settings of a mel, in words."""
    return (
        f"{mel.num_bands} bands of {mel.f_min:g} to {mel.f_max:g} Hz, {mel.sample_rate} Hz, hop {mel.hop_length}, "
        f"window {mel.win_length}, FFT {mel.n_fft}"
    )


def validation_text(averaged: bool, scores: Scores | None) -> str:
    """Returns the table of the last validation, and a remark if the model does not have the averaged weights."""
    if scores is None:
        return "None: no validation was found beside the checkpoint."
    text = f"Held-out clips at step {scores.step}"
    if not averaged:
        text += ", **with the averaged weights; this model has the raw ones**"
    parts = [f"{text}:", run_table(scores.systems).markdown()] if scores.systems else [f"{text}."]
    if scores.others:
        parts.append("; ".join(COLUMNS[name].format(value) for name, value in scores.others.items()))
    return "\n\n".join(parts)
