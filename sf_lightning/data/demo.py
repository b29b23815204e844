"""Synthesises the demo corpus: a small English and Mandarin one, in seconds, with nothing to download.

A grammar draws the sentences, espeak-ng reads them in twelve voices, soxr brings them to 16 kHz, and the
folder looks like any other corpus of recordings: one folder per speaker.

    out/train/<voice>/<voice>_0000.wav     16 kHz, 16 bit, mono; 2 to 4.5 s each
    out/dev/<voice>/<voice>_0000.wav       sentences that train never says
    out/sentences.tsv                      what each file says: path, tab, text
    out/corpus.json                        settings and figures; written last, so a corpus with it is complete

It knows nothing about shards, features or models; any folder of recordings can stand in its place.
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
from sf_lightning.data.grammar import ENGLISH, MANDARIN, draw_sentence

CLIP_SECONDS = (2.0, 4.5)
"""The shortest and the longest clip that is kept."""

MAX_DRAWS = 1_000
"""Sentences drawn for one clip before the grammar is called exhausted."""

# English and Mandarin, men and women by turns: the first few voices of even a toy corpus are a fair mix.
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
    """A file that was written: where, and who says what for how long."""

    split: str
    voice: Voice
    path: Path
    text: str
    seconds: float


def synthesise(out: Path, *, minutes: float = 24.0, held_out: int = 16, seed: int = 0) -> dict[str, float]:
    """Writes the demo corpus to `out`, unless it is there already, and returns its figures.

    The same arguments give the same bytes. Everything is written to `<out>.partial` and renamed at the end:
    a run that was killed leaves that folder and no `out`, and the next run clears it and starts again.

    Args:
        out: folder to make; it may exist if it is empty, or holds the corpus of the same arguments.
        minutes: speech in `train`, shared equally among the voices; half of it English, half Mandarin.
        held_out: clips in `dev`, on top of `minutes`, dealt to the voices in turn.
        seed: of the sentences, and of espeak's breath noise.

    Returns:
        `train_minutes`, `dev_minutes`, `english_minutes`, `mandarin_minutes`, `train_clips`, `dev_clips`,
        and `speakers`, the number of voices in `train`.

    Raises:
        ImportError: espeak-ng is not installed.
        ValueError: `minutes` or `held_out` is out of range, or `out` holds something else.
        RuntimeError: espeak-ng refused a voice, clipped or was silent, or the grammar ran out of sentences.
    """
    if not (0 < minutes < float("inf") and held_out >= 0):
        raise ValueError(f"minutes must be finite and above 0, held_out at least 0, got {minutes=} and {held_out=}")
    out = out.absolute()
    asked = {"seed": seed, "minutes": minutes, "held_out": held_out}
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        return _read_figures(out, asked)

    partial = out.with_name(f"{out.name}.partial")
    with closing(Espeak(seed)) as espeak:
        if partial.exists():
            shutil.rmtree(partial)
        clips = _write_clips(partial, espeak, minutes, held_out, random.Random(seed))
    figures = _figures_of(clips)
    sentences = "".join(f"{clip.path.relative_to(partial).as_posix()}\t{clip.text}\n" for clip in clips)
    (partial / "sentences.tsv").write_text(sentences, encoding="utf-8")
    (partial / "corpus.json").write_text(json.dumps({**asked, "figures": figures}, indent=2), encoding="utf-8")
    if out.exists():
        out.rmdir()  # Windows renames onto nothing, not even onto an empty folder
    partial.rename(out)
    return figures


def _read_figures(out: Path, asked: Mapping[str, float]) -> dict[str, float]:
    """Reads the figures of a complete corpus that was made as `asked`; refuses anything else."""
    if not (out / "corpus.json").is_file():
        raise ValueError(f"{out} exists and is no demo corpus (it has no corpus.json): choose another folder")
    found = json.loads((out / "corpus.json").read_text(encoding="utf-8"))
    figures: dict[str, float] = found.pop("figures", {})
    if found != asked:
        raise ValueError(
            f"{out} holds a demo corpus of {found}, but {asked} was asked for: delete it or choose another folder"
        )
    return figures


def _write_clips(folder: Path, espeak: Espeak, minutes: float, held_out: int, rng: random.Random) -> list[Clip]:
    """Writes `dev`, then `train`, always giving the word to the voice that has spoken least."""
    clips: list[Clip] = []
    said: set[str] = set()
    turns: Counter[tuple[str, Voice]] = Counter()

    def write(split: str, voice: Voice) -> float:
        text, samples = _new_sentence(espeak, voice, rng, said)
        path = folder / split / voice.name / f"{voice.name}_{turns[split, voice]:04d}.wav"
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, samples, SAMPLE_RATE, subtype="PCM_16")
        said_in = {"language": "en" if voice.grammar is ENGLISH else "zh", "text": text}
        path.with_suffix(".json").write_text(json.dumps(said_in, ensure_ascii=False), encoding="utf-8")
        turns[split, voice] += 1
        clips.append(Clip(split, voice, path, text, seconds=len(samples) / SAMPLE_RATE))
        return clips[-1].seconds

    for turn in range(held_out):
        write("dev", VOICES[turn % len(VOICES)])
    spoken = dict.fromkeys(VOICES, 0.0)
    with Progress(transient=True) as progress:
        task = progress.add_task("synthesising the demo corpus", total=60 * minutes)
        while sum(spoken.values()) < 60 * minutes:
            voice = min(VOICES, key=spoken.__getitem__)
            spoken[voice] += write("train", voice)
            progress.update(task, completed=sum(spoken.values()))
    return clips


def _figures_of(clips: Iterable[Clip]) -> dict[str, float]:
    """Counts the clips and adds up their minutes."""

    def minutes(counted: Iterable[Clip]) -> float:
        return sum(clip.seconds for clip in counted) / 60

    train = [clip for clip in clips if clip.split == "train"]
    dev = [clip for clip in clips if clip.split == "dev"]
    return {
        "train_minutes": minutes(train),
        "dev_minutes": minutes(dev),
        "english_minutes": minutes(clip for clip in clips if clip.voice.grammar is ENGLISH),
        "mandarin_minutes": minutes(clip for clip in clips if clip.voice.grammar is MANDARIN),
        "train_clips": float(len(train)),
        "dev_clips": float(len(dev)),
        "speakers": float(len({clip.voice for clip in train})),
    }


def _new_sentence(
    espeak: Espeak, voice: Voice, rng: random.Random, said: set[str]
) -> tuple[str, NDArray[np.int16]]:
    """Lets `voice` say what is not in `said`, drawing again until the length fits `CLIP_SECONDS`."""
    shortest, longest = CLIP_SECONDS
    for _ in range(MAX_DRAWS):
        text = draw_sentence(voice.grammar, rng)
        if text in said:
            continue
        said.add(text)
        samples = espeak.say(voice, text)
        if shortest <= len(samples) / SAMPLE_RATE <= longest:
            return text, samples
    raise RuntimeError(
        f"{MAX_DRAWS} draws gave {voice.name} no new sentence of {shortest} to {longest} s: "
        "ask for fewer minutes or add words to the grammar"
    )
