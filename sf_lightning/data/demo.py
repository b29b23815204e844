"""Synthesizes the demo corpus, in English and Mandarin, within seconds and without a download.

Sentences are drawn from a grammar and synthesized by espeak-ng in twelve voices, at 16 kHz. The folder has the
layout of any corpus of recordings, one folder per speaker:

    out/train/<voice>/<voice>_0000.wav     16 kHz, 16 bit, mono; 2 to 4.5 s each
    out/dev/<voice>/<voice>_0000.wav       sentences that do not occur in train
    out/sentences.tsv                      sentence of each file: path, tab, text
    out/corpus.json                        settings and figures; written last, so that a corpus with it is complete

Independent of shards, features and models.
"""

import json
import random
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from rich.progress import Progress

from sf_lightning.data.espeak import SAMPLE_RATE, Espeak, Voice
from sf_lightning.data.grammar import GRAMMARS, draw_sentence

CLIP_SECONDS = (2.0, 4.5)
"""Shortest and longest clip."""

MAX_DRAWS = 1_000
"""Sentences drawn for one clip before the grammar counts as exhausted."""

# English and Mandarin, men and women alternate, so that the few voices of a tiny corpus are balanced.
VOICES = (
    Voice("en-us", "m3", pitch=46, pitch_range=50, words_per_minute=165),
    Voice("cmn", "f1", pitch=48, pitch_range=75, words_per_minute=200),
    Voice("en-us", "f2", pitch=62, pitch_range=45, words_per_minute=175),
    Voice("cmn", "m1", pitch=58, pitch_range=75, words_per_minute=215),
    Voice("en-us", "m7", pitch=60, pitch_range=65, words_per_minute=185),
    Voice("cmn", "f3", pitch=74, pitch_range=65, words_per_minute=225),
    Voice("en-gb-x-rp", "f4", pitch=72, pitch_range=60, words_per_minute=165),
    Voice("cmn", "m4", pitch=50, pitch_range=80, words_per_minute=195),
    Voice("en-gb-x-rp", "m8", pitch=44, pitch_range=40, words_per_minute=155),
    Voice("cmn", "f2", pitch=58, pitch_range=75, words_per_minute=190),
    Voice("en-gb-scotland", "f1", pitch=40, pitch_range=70, words_per_minute=180),
    Voice("cmn", "m6", pitch=74, pitch_range=70, words_per_minute=230),
)


@dataclass(frozen=True)
class Clip:
    """A file that was written: split, voice, path, text and duration."""

    split: str
    voice: Voice
    path: Path
    text: str
    seconds: float


def synthesize(out: Path, *, minutes: float = 24.0, held_out: int = 16, seed: int = 0) -> dict[str, float]:
    """Writes the demo corpus to `out`, unless it exists, and returns its figures.

    The same arguments give the same bytes. Everything is written to `<out>.partial`, which is renamed at the end;
    after an interruption the next call deletes that folder and starts again.

    Args:
        out: Folder of the corpus; it may exist if it is empty, or has the corpus of the same arguments.
        minutes: Minutes of speech in `train`, shared equally among the voices; half English, half Mandarin.
        held_out: Clips in `dev`, in addition to `minutes`, dealt to the voices in turn.
        seed: Seed of the sentences, and of espeak's breath noise.

    Returns:
        `train_minutes`, `dev_minutes`, `english_minutes`, `mandarin_minutes`, `train_clips`, `dev_clips`,
        and `speakers`, the number of voices in `train`.

    Raises:
        ImportError: if espeak-ng is not installed.
        ValueError: if `minutes` or `held_out` is out of range, or `out` has other content.
        RuntimeError: if espeak-ng lacks a voice, clips or is silent, or the grammar has no new sentence.
    """
    if not (0 < minutes < float("inf") and held_out >= 0):
        raise ValueError(
            f"{minutes=} and {held_out=}: expected finite minutes above 0, and 0 or more held-out clips"
        )
    out = out.absolute()
    settings = {"seed": seed, "minutes": minutes, "held_out": held_out}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _read_figures(out, settings)

    partial = out.with_name(f"{out.name}.partial")
    with closing(Espeak(seed)) as espeak:
        if partial.exists():
            shutil.rmtree(partial)
        clips = _write_clips(partial, espeak, minutes, held_out, random.Random(seed))
    figures = _compute_figures(clips)
    sentences = "".join(f"{clip.path.relative_to(partial).as_posix()}\t{clip.text}\n" for clip in clips)
    (partial / "sentences.tsv").write_text(sentences, encoding="utf-8")
    (partial / "corpus.json").write_text(json.dumps({**settings, "figures": figures}, indent=2), encoding="utf-8")
    if out.exists():
        out.rmdir()  # Windows renames onto nothing, not even onto an empty folder
    partial.rename(out)
    return figures


def _read_figures(out: Path, settings: Mapping[str, float]) -> dict[str, float]:
    """Returns the figures of a complete corpus with these settings; raises ValueError for anything else."""
    if not (out / "corpus.json").is_file():
        raise ValueError(f"{out} exists and is not a demo corpus (it has no corpus.json): choose another folder")
    found = json.loads((out / "corpus.json").read_text(encoding="utf-8"))
    figures: dict[str, float] = found.pop("figures", {})
    if found != settings:
        raise ValueError(
            f"{out} has a demo corpus with {found}, not with {settings}: delete it or choose another folder"
        )
    return figures


def _write_clips(folder: Path, espeak: Espeak, minutes: float, held_out: int, rng: random.Random) -> list[Clip]:
    """Writes `dev`, then `train`, each clip in the voice with the least speech so far."""
    clips: list[Clip] = []
    used: set[str] = set()
    turns: Counter[tuple[str, Voice]] = Counter()

    def write(split: str, voice: Voice) -> float:
        text, samples = _new_sentence(espeak, voice, rng, used)
        path = folder / split / voice.name / f"{voice.name}_{turns[split, voice]:04d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
        fields = {"language": "en" if voice.grammar == "en" else "zh", "text": text}
        path.with_suffix(".json").write_text(json.dumps(fields, ensure_ascii=False), encoding="utf-8")
        turns[split, voice] += 1
        clips.append(Clip(split, voice, path, text, seconds=len(samples) / SAMPLE_RATE))
        return clips[-1].seconds

    for turn in range(held_out):
        write("dev", VOICES[turn % len(VOICES)])
    seconds = dict.fromkeys(VOICES, 0.0)
    with Progress(transient=True) as progress:
        task = progress.add_task("synthesizing the demo corpus", total=60 * minutes)
        while sum(seconds.values()) < 60 * minutes:
            voice = min(VOICES, key=seconds.__getitem__)
            seconds[voice] += write("train", voice)
            progress.update(task, completed=sum(seconds.values()))
    return clips


def _compute_figures(clips: Iterable[Clip]) -> dict[str, float]:
    """Returns the numbers of clips and minutes."""

    def minutes(counted: Iterable[Clip]) -> float:
        return sum(clip.seconds for clip in counted) / 60

    train = [clip for clip in clips if clip.split == "train"]
    dev = [clip for clip in clips if clip.split == "dev"]
    return {
        "train_minutes": minutes(train),
        "dev_minutes": minutes(dev),
        "english_minutes": minutes(clip for clip in clips if clip.voice.grammar == "en"),
        "mandarin_minutes": minutes(clip for clip in clips if clip.voice.grammar == "cmn"),
        "train_clips": float(len(train)),
        "dev_clips": float(len(dev)),
        "speakers": float(len({clip.voice for clip in train})),
    }


def _new_sentence(
    espeak: Espeak, voice: Voice, rng: random.Random, used: set[str]
) -> tuple[str, NDArray[np.int16]]:
    """Returns a sentence that is not in `used`, and its samples; draws until the length fits `CLIP_SECONDS`."""
    shortest, longest = CLIP_SECONDS
    for _ in range(MAX_DRAWS):
        text = draw_sentence(GRAMMARS[voice.grammar], rng)
        if text in used:
            continue
        used.add(text)
        samples = espeak.synthesize(voice, text)
        if shortest <= len(samples) / SAMPLE_RATE <= longest:
            return text, samples
    raise RuntimeError(
        f"{MAX_DRAWS} draws gave no new sentence of {shortest} to {longest} s for {voice.name}: "
        "ask for fewer minutes or add words to the grammar"
    )
