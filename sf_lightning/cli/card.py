"""The model card of an export: what the decoder is, how good it was in validation, how it is used."""

import csv
import math
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from sf_lightning.audio.mel import MelConfig
from sf_lightning.files.records import from_plain
from sf_lightning.model.layout import Layout
from sf_lightning.model.pretrained import Description, Pretrained
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.training.callbacks.run_report import run_table
from sf_lightning.vocoder.config import GRIFFIN_LIM, VocoderConfig, is_shipped

TAGS = ["streamflow", "streaming", "flow-matching", "speech-token-decoder", "vocoder"]

OTHERS = {
    "val/loss": "loss {:.4g}",
    "latency/first_packet_ms": "first packet after {:.0f} ms on the machine of training",
    "latency/real_time_factor": "real-time factor {:.2f}",
}
"""Columns of a run's metrics beside those that are scores, and how the card says them."""

BODY = """
# {name}

A [StreamFlow](https://arxiv.org/abs/2506.23986) decoder of sf-lightning: it turns a stream of speech tokens into
sound while they arrive. It makes no tokens: a language model or a tokenizer stands in front of it.

{table}

## What its layers see

    {picture}

## In validation

{validation}

## Use

```python
import torch
from sf_lightning.streaming.pretrained import load_decoder

stream = load_decoder("{name}").open()  # this folder, or the id of the repository that it is uploaded to
wave = torch.cat([stream.push(torch.arange({tokens})), stream.flush()])  # tokens, as many at a time as there are
```

`stream.decoder.model` is the network alone, as `StreamFlow.from_pretrained` loads it. On the command line:

```bash
hf download OWNER/NAME --local-dir {name}  # unless it is here already
sf-decode --ckpt {name} --tokens tokens.npy --speaker voice.wav --out out.wav
```
{not_inside}
## License and data

{license}

{data}
"""


@dataclass
class Scores:
    """Of the last validation that there was.

    Attributes:
        step: Of it.
        ways: Scores by way of decoding, those that `run_table` shows.
        others: Of the columns of `OTHERS`.
    """

    step: int
    ways: dict[str, dict[str, float]] = field(default_factory=dict)
    others: dict[str, float] = field(default_factory=dict)


def model_card(name: str, trained: Pretrained, scores: Scores | None, license: str | None, data: str | None) -> str:
    """Returns the card, Markdown under the YAML that the Hugging Face hub reads.

    Args:
        name: Of the folder.
        trained: What is in it.
        scores: Of the last validation before, if they are known.
        license: Identifier as the hub has it, such as "apache-2.0"; None leaves the line to be filled in.
        data: What it was trained on, Markdown; None leaves it to be filled in.
    """
    body = BODY.format(
        name=name,
        table=_table(trained),
        picture=trained.model.layout.picture().replace("\n", "\n    "),
        validation=validation_words(trained.description.weights.averaged, scores),
        tokens=min(trained.model.dit.config.vocabulary, 50),
        not_inside=_not_inside(trained.description),
        license=license_words(license),
        data=data_words(data),
    )
    return under_front(body, "text-to-speech", TAGS, license)


def under_front(body: str, pipeline_tag: str, tags: list[str], license: str | None) -> str:
    """Returns a card's text under the YAML from which the hub learns what the thing is."""
    front = {"library_name": "sf-lightning", "pipeline_tag": pipeline_tag, "tags": tags}
    named = front if license is None else front | {"license": license}
    return f"---\n{yaml.safe_dump(named, sort_keys=False)}---\n{body}"


def _table(trained: Pretrained) -> str:
    """What the decoder is, as a table."""
    model, description = trained
    mel, dit, layout = model.mel.config, model.dit.config, model.layout
    decode = from_plain(DecodeConfig, description.decode, "decode")
    tokenizer = description.tokenizer.name
    if description.tokenizer.digest is not None:
        tokenizer += f" (digest `{description.tokenizer.digest}`)"
    voice = f"from {model.speaker.crop_seconds:g} s of audio"
    if model.speaker.x_vectors:
        voice += f" and an x-vector of {model.speaker.x_vectors} [{model.speaker.x_vector_width}]"
    rows = {
        "parameters": f"{sum(p.numel() for p in model.parameters()):,} in all, {layout.num_layers} layers",
        "training": str(description.weights),
        "tokens": f"{tokenizer}, {dit.vocabulary} codes, {mel.frame_rate / dit.frames_per_token:g} a second",
        "mel": mel_words(mel),
        "field": field_words(layout, mel.frame_rate),
        "first chunk waits for": wait_words(layout, decode, mel.frame_rate),
        "voice": voice,
        "vocoder": vocoder_words(from_plain(VocoderConfig, description.vocoder, "vocoder")),
        "decoded by default": f"{decode.mode}, {decode.steps} steps of {decode.method}, guidance "
        f"{decode.guidance:g}, temperature {decode.temperature:g}",
    }
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows.items())])


def license_words(license: str | None) -> str:
    """Says under what terms it is, or that somebody must say so."""
    if license is not None:
        return f"License: {license}."
    return "**TO BE FILLED IN: license.** Name one here, and as `license:` in the first lines of this file."


def data_words(data: str | None) -> str:
    """Says what it has learnt from, or that somebody must say so."""
    wanted = "What speech it was trained on, in which languages, under what terms, with whose consent."
    return f"**TO BE FILLED IN: data.** {wanted}" if data is None else f"Trained on:\n\n{data.strip()}"


def mel_words(mel: MelConfig) -> str:
    """Says which mel it is."""
    return (
        f"{mel.num_bands} bands of {mel.f_min:g} to {mel.f_max:g} Hz, {mel.sample_rate} Hz, hop {mel.hop_length}, "
        f"window {mel.win_length}, FFT {mel.n_fft}"
    )


def field_words(layout: Layout, frame_rate: float) -> str:
    """Says how far a network evaluation sees.

    >>> field_words(Layout(), 100)
    '2 back, 1 ahead, in blocks of 240 ms'
    """
    back, ahead = (f"{n:.0f}" if math.isfinite(n) else "all" for n in (layout.field.back, layout.field.ahead))
    return f"{back} back, {ahead} ahead, in blocks of {1000 * layout.block_size / frame_rate:g} ms"


def wait_words(layout: Layout, decode: DecodeConfig, frame_rate: float) -> str:
    """Says how much speech must have been tokenized before anything is heard.

    >>> wait_words(Layout(), DecodeConfig(), 100)
    '480 ms of tokens'
    """
    if decode.mode == "offline":
        return "the last token"
    decode = decode.resolve(layout)
    return f"{layout.wait_ms(decode.chunk_end(0), decode.lookahead, frame_rate):g} ms of tokens"


def vocoder_words(vocoder: VocoderConfig) -> str:
    """Says which vocoder it is; of a path only the end, the rest is no one's business."""
    if vocoder.checkpoint in (None, GRIFFIN_LIM):
        return f"Griffin-Lim, {vocoder.iterations} iterations"
    assert vocoder.checkpoint is not None
    if is_shipped(vocoder.checkpoint):
        return f"`{vocoder.checkpoint}`, which comes with sf-lightning"
    return f"`{Path(vocoder.checkpoint).name}`, not in this folder"


def _not_inside(description: Description) -> str:
    """What a user needs that is not in the folder."""
    lines = [f"**TO BE FILLED IN: tokenizer.** Where the {description.tokenizer.name} tokenizer of its tokens is."]
    if (checkpoint := missing_vocoder(description)) is not None:
        lines.append(f"**TO BE FILLED IN: vocoder.** Where `{Path(checkpoint).name}` is, for `--vocoder`.")
    return "\n" + "\n\n".join(lines) + "\n"


def missing_vocoder(description: Description) -> str | None:
    """Returns the vocoder that whoever gets the folder needs too, if there is one."""
    checkpoint = description.vocoder["checkpoint"]
    return None if checkpoint in (None, GRIFFIN_LIM) or is_shipped(checkpoint) else checkpoint


def validation_words(averaged: bool, scores: Scores | None) -> str:
    """Says how good it was in the last validation; `averaged` are the weights that the card is of."""
    if scores is None:
        return "None: no validation was found beside the checkpoint."
    text = f"Held-out clips at step {scores.step}"
    if not averaged:
        text += ", **with the averaged weights; these are the raw ones**"
    parts = [f"{text}:", run_table(scores.ways).markdown()] if scores.ways else [f"{text}."]
    if scores.others:
        parts.append("; ".join(OTHERS[name].format(value) for name, value in scores.others.items()))
    return "\n\n".join(parts)


def read_scores(checkpoint: Path, step: int) -> Scores | None:
    """Returns the scores of a run's last validation up to a step.

    Args:
        checkpoint: `checkpoints/*.ckpt` in the run's folder; the scores are in its `csv/metrics.csv`.
        step: Of the checkpoint.
    """
    path = checkpoint.absolute().parent.parent / "csv" / "metrics.csv"
    rows = [row for row in _rows(path) if row.get("step", math.inf) < step] if path.is_file() else []
    # What does not change, such as the scores of copy-synthesis, is logged once.
    values = {name: value for row in rows for name, value in row.items()}
    validated = [row["step"] for row in rows if "val/loss" in row or "streamed/stoi" in row]
    if not validated:
        return None
    scores = Scores(int(validated[-1]) + 1)
    for name, value in values.items():
        way, _, metric = name.partition("/")
        if f"{way}/stoi" in values:
            scores.ways.setdefault(way, {})[metric] = value
        elif name in OTHERS:
            scores.others[name] = value
    return scores


def _rows(path: Path) -> list[dict[str, float]]:
    """The finite numbers of each row of a run's table, by column."""

    def number(text: object) -> float:
        try:
            return float(str(text))
        except ValueError:
            return math.nan

    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows = [{name: number(text) for name, text in row.items() if name} for row in csv.DictReader(file)]
    return [{name: value for name, value in row.items() if math.isfinite(value)} for row in rows]
