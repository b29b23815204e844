"""A blind listening test on one page, and mean opinion scores (MOS) of the ratings that listeners return.

eval/mine/
  listening.html       page for listeners: naturalness and similarity from 1 to 5, in random order
  listening-key.json   the system behind each sound; not to be sent to listeners
  ratings/             ratings that were returned
"""

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sf_lightning.data.corpus import clean_key
from sf_lightning.evaluation.intervals import Mean, mean_of
from sf_lightning.evaluation.report import flac_url, read_sound, write_page
from sf_lightning.evaluation.results import UNCHECKED
from sf_lightning.evaluation.systems import join_labels
from sf_lightning.evaluation.table import Findings, Table, format_mean
from sf_lightning.files.atomic import write_atomically
from sf_lightning.files.digest import digest_of
from sf_lightning.files.foreign import damage_reported, require_no_links, strict_json
from sf_lightning.files.records import from_plain
from sf_lightning.files.tables import write_csv

PAGE, KEY, RATINGS = "listening.html", "listening-key.json", "ratings"

QUESTIONS = ("naturalness", "similarity")

MOS_PARTS = ("", "_low", "_high", "_count")
"""Endings of the columns of `mos.csv` for each question."""

SCALE = range(1, 6)
"""Possible answers, from bad to excellent."""

LEVEL_DB, MAX_PEAK = -26.0, 0.95
"""Common RMS level of all sounds in dBFS, and largest peak: the louder of two sounds is rated better."""


@dataclass(frozen=True)
class Item:
    """A clip to rate: another recording of its speaker, and the clip's sounds by system."""

    clip: str
    voice: Path
    systems: Mapping[str, Path]


@dataclass(frozen=True)
class Rating:
    """One listener's ratings of one sound."""

    listener: str
    system: str
    naturalness: int
    similarity: int


def listening_items(findings: Findings) -> list[Item]:
    """Returns the clips whose sound was kept for every system, and whose speaker has another recording.

    Raises:
        ValueError: if there is no such clip.
    """
    results, items = findings.results, list[Item]()
    keys = dict.fromkeys(row.clip for row in results.rows.values())
    voices = {key: path for key in keys if (path := results.sample_path(key, "voice.flac")).is_file()}
    decoded = {
        join_labels(row.labels): {key: results.sound_path(row.system, key) for key in voices}
        for row in findings.rows
    }
    for key, voice in voices.items():
        systems = {name: sounds[key] for name, sounds in decoded.items()}
        if all(path.is_file() for path in systems.values()):
            items.append(Item(key, voice, {"recording": results.sample_path(key, "reference.flac")} | systems))
    if not voices:
        raise ValueError(
            "--listening_test needs clips with another recording of the same speaker, and none of the clips that "
            "were kept has one: give a larger --keep, or other --data"
        )
    if not items:
        fewest = min(decoded, key=lambda name: sum(path.is_file() for path in decoded[name].values()))
        raise ValueError(
            f"--listening_test needs clips that were kept for every row, and {fewest!r} has the fewest: evaluate "
            "that row again with a --keep as large as for the others"
        )
    return items


def write_test(folder: Path, items: Sequence[Item], seed: int = 0) -> str:
    """Writes the page and the key, and returns the id of the test.

    Args:
        folder: Folder of the evaluation.
        items: Clips to rate.
        seed: Seed of the order of the sounds in the page; each listener rates them in another order.

    Raises:
        FileExistsError: if the folder has another test, whose ratings may not have been returned yet.
    """
    random = np.random.default_rng(seed)
    pairs = [(number, system) for number, item in enumerate(items) for system in item.systems]
    order = [pairs[i] for i in random.permutation(len(pairs))]
    sounds = [_read_at_level(items[number].systems[system]) for number, system in order]
    voices = [_read_at_level(item.voice) for item in items]
    test = digest_of(b"".join([str(seed).encode(), *(wave.tobytes() for wave, _ in [*sounds, *voices])]), 12)
    names = [f"{i:03d}" for i in range(1, len(order) + 1)]
    key = {
        "test": test,
        "seed": seed,
        "systems": list(dict.fromkeys(system for item in items for system in item.systems)),
        "sounds": {
            name: {"clip": items[number].clip, "system": system}
            for name, (number, system) in zip(names, order, strict=True)
        },
    }
    if (folder / KEY).is_file() and (existing := _read_key(folder).test) != test:
        raise FileExistsError(
            f"{folder / KEY} is the key of test {existing}, and this is test {test}: overwriting it would make the "
            "ratings of the other useless; move it away, or give another --out"
        )
    write_atomically(folder / KEY, json.dumps(key, indent=1) + "\n")
    pieces = [
        {"id": name, "voice": number, "sound": flac_url(*sound)}
        for name, (number, _), sound in zip(names, order, sounds, strict=True)
    ]
    content = {"test": test, "voices": [flac_url(*voice) for voice in voices], "sounds": pieces}
    write_page("listening.html.j2", folder / PAGE, content=content, questions=QUESTIONS)
    return test


def add_ratings(folder: Path, paths: Sequence[Path]) -> list[Rating]:
    """Copies files of ratings beside the test and returns all ratings of the test.

    Raises:
        FileNotFoundError: if there is no test, or no such file.
        ValueError: if a file is damaged or belongs to another test, or two files of one listener differ; then no
            file is copied; or if there are links in the folder.
    """
    require_no_links(folder, UNCHECKED)
    key = _read_key(folder)
    new = {path: _read_ratings(path, key) for path in paths}
    ratings_by_path = {path: _read_ratings(path, key) for path in sorted((folder / RATINGS).glob("*.json"))} | new
    first_of: dict[str, Path] = {}
    for path, (listener, ratings) in ratings_by_path.items():
        other = first_of.setdefault(listener, path)
        if ratings_by_path[other][1] != ratings:
            raise ValueError(
                f"--ratings: {path} and {other} are both from listener {listener!r} and differ: delete one, or "
                "change the listener's name in it"
            )
    (folder / RATINGS).mkdir(exist_ok=True)
    for path, (listener, _) in new.items():
        write_atomically(folder / RATINGS / f"{_file_name(listener)}.json", path.read_bytes())
    return read_ratings(folder)


def read_ratings(folder: Path) -> list[Rating]:
    """Returns all ratings stored in a folder; none where it has no test.

    Raises:
        ValueError: as `add_ratings`.
    """
    if not (folder / KEY).is_file():
        return []
    key = _read_key(folder)
    paths = sorted((folder / RATINGS).glob("*.json"))
    return [rating for path in paths for rating in _read_ratings(path, key)[1]]


def opinion_scores(folder: Path, ratings: Sequence[Rating]) -> dict[str, dict[str, Mean]]:
    """Returns the MOS of each system for each question.

    With several listeners it is the mean over listeners, and the interval is for listeners like them, clipped to
    the scale; with one listener the interval is for sounds like those rated.
    """
    scores = dict[str, dict[str, Mean]]()
    for system in _read_key(folder).systems:
        own, scores[system] = [rating for rating in ratings if rating.system == system], {}
        for question in QUESTIONS:
            answers = [float(getattr(rating, question)) for rating in own]
            listeners = [rating.listener for rating in own]
            counts = Counter(listeners)
            mean = mean_of(answers, [1 / counts[listener] for listener in listeners], listeners)
            low, high = np.clip((mean.low, mean.high), SCALE[0], SCALE[-1])
            scores[system][question] = mean._replace(low=float(low), high=float(high))
    return scores


def write_opinions(folder: Path, ratings: Sequence[Rating]) -> Table:
    """Writes the MOS as `mos.md` and `mos.csv`, and returns them as a table."""
    cells, rows = [], []
    for system, means in opinion_scores(folder, ratings).items():
        numbers = [number for mean in means.values() for number in mean[: len(MOS_PARTS)]]
        rows.append([system, *(None if np.isnan(number) else number for number in numbers)])
        count = str(means[QUESTIONS[0]].num_values)
        cells.append(((system, ""), *(format_mean(mean, "{:.2f}") for mean in means.values()), (count, "")))
    listeners = len({rating.listener for rating in ratings})
    title = f"Mean opinion scores of {listeners} listener{'s' if listeners != 1 else ''}"
    table = Table(title, ("system", *QUESTIONS, "ratings"), tuple(cells))
    write_atomically(folder / "mos.md", f"## {title}\n\n{table.markdown()}\n")
    header = ["system", *(f"{question}{part}" for question in QUESTIONS for part in MOS_PARTS)]
    write_csv(folder / "mos.csv", header, rows)
    return table


def _read_at_level(path: Path) -> tuple[np.ndarray, int]:
    """Returns a sound [N] as int16 at the common level, and its sample rate."""
    wave, rate = read_sound(path, "float64")
    level, peak = np.sqrt(np.mean(wave**2)), np.abs(wave).max(initial=0.0)
    gain = min(10 ** (LEVEL_DB / 20) / level, MAX_PEAK / peak) if peak else 1.0
    return (wave * gain * 32767).round().astype(np.int16), rate


@dataclass(frozen=True)
class _Key:
    """Id of a test, labels of its systems, and the system behind each sound by the sound's name."""

    test: str
    systems: tuple[str, ...]
    sounds: dict[str, str]


def _read_key(folder: Path) -> _Key:
    path = folder / KEY
    if not path.is_file():
        raise FileNotFoundError(
            f"--out {folder} has no listening test ({KEY}): make one with --listening_test true"
        )
    with damage_reported(path, "without it ratings cannot be attributed"):
        values = strict_json(path.read_bytes())
        sounds = {name: sound["system"] for name, sound in values["sounds"].items()}
        named = {"test": values["test"], "systems": values["systems"], "sounds": sounds}
        key = from_plain(_Key, named, "key")
        if not set(key.sounds.values()) <= set(key.systems):
            raise ValueError("a sound has an unknown system")
    return key


def _read_ratings(path: Path, key: _Key) -> tuple[str, list[Rating]]:
    """Returns the listener and the ratings of a file, with the systems from the key of the test."""
    if not path.is_file():
        raise FileNotFoundError(f"--ratings: no file {path}")
    try:
        content = strict_json(path.read_bytes())
        test, listener, answers = content["test"], str(content["listener"]), dict(content["ratings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"--ratings: {path} was not saved by a listening page ({error!r:.80})") from error
    if test != key.test:
        raise ValueError(f"--ratings: {path} belongs to test {test}, the one in --out is {key.test}: leave it out")
    if not answers:
        raise ValueError(f"--ratings: {path} has no rating: leave it out")
    ratings = []
    for name, answer in sorted(answers.items()):
        numbers = [answer.get(question) for question in QUESTIONS] if isinstance(answer, dict) else []
        if name not in key.sounds or not numbers or not all(type(n) is int and n in SCALE for n in numbers):
            raise ValueError(
                f"--ratings: {path}: sound {name} has {answer!r:.60}: expected integers from 1 to 5 for {QUESTIONS}"
            )
        ratings.append(Rating(listener, key.sounds[name], answer["naturalness"], answer["similarity"]))
    return listener, ratings


def _file_name(listener: str) -> str:
    """Returns a file name without unsafe letters, made unique by a digest."""
    safe = re.sub(r"[^\w-]", "_", clean_key(listener))[:40]
    return f"{safe}-{digest_of(listener, 8)}"
