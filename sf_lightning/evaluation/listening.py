"""A blind listening test on one page, and mean opinion scores (MOS) of what listeners send back.

eval/mine/
  listening.html       for listeners: naturalness and similarity, 1 to 5, in an order of each listener's own
  listening-key.json   what each sound is; it stays here
  ratings/             what came back
"""

import csv
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from sf_lightning.data.corpus import clean_key
from sf_lightning.evaluation.bootstrap import Mean, mean_of, mean_over
from sf_lightning.evaluation.grid import label
from sf_lightning.evaluation.report import flac_url, write_page
from sf_lightning.evaluation.table import Findings, Table

PAGE, KEY, RATINGS = "listening.html", "listening-key.json", "ratings"

QUESTIONS = ("naturalness", "similarity")

SCALE = range(1, 6)
"""Of answers, from bad to excellent."""

LEVEL_DB, MAX_PEAK = -26.0, 0.95
"""All sounds are given this level, as far as their peaks allow: the louder of two sounds better."""


@dataclass(frozen=True)
class Item:
    """A clip to be judged: a recording of its speaker, and the clip as each system made it."""

    clip: str
    voice: Path
    systems: Mapping[str, Path]


@dataclass(frozen=True)
class Rating:
    """What one listener said of one sound."""

    listener: str
    system: str
    naturalness: int
    similarity: int


def items_of(found: Findings) -> list[Item]:
    """Returns what listeners hear: the clips that were kept in every way, as recorded and as made in each.

    A clip whose speaker has no other is left out: its voice would be the recording itself.

    Raises:
        ValueError: if there is none.
    """
    results, items = found.results, list[Item]()
    keys = dict.fromkeys(line.clip for line in results.lines.values())
    voices = {key: path for key in keys if (path := results.sample(key, "voice.flac")).is_file()}
    made = {label(row.told): {key: results.sound(row.way, key) for key in voices} for row in found.rows}
    for key, voice in voices.items():
        systems = {name: sounds[key] for name, sounds in made.items()}
        if all(path.is_file() for path in systems.values()):
            items.append(Item(key, voice, {"recording": results.sample(key, "reference.flac")} | systems))
    if not voices:
        raise ValueError("--listening_test: of no clip that was kept there is another recording of its speaker")
    if not items:
        fewest = min(made, key=lambda name: sum(path.is_file() for path in made[name].values()))
        raise ValueError(
            f"--listening_test: no clip's sound was kept in every row, least of all in {fewest!r}: ask for that "
            "row once more, with a --keep as large as the others had"
        )
    return items


def write_test(folder: Path, items: Sequence[Item], seed: int = 0) -> str:
    """Writes the page and the key, and returns the id of the test.

    Args:
        folder: Where.
        items: What is to be judged.
        seed: Of the order in which sounds lie in the page; each listener hears them in another.

    Raises:
        FileExistsError: if another test is there, whose ratings may be on their way.
    """
    random = np.random.default_rng(seed)
    pairs = [(number, system) for number, item in enumerate(items) for system in item.systems]
    order = [pairs[i] for i in random.permutation(len(pairs))]
    sounds = [_level(items[number].systems[system]) for number, system in order]
    voices = [_level(item.voice) for item in items]
    digest = hashlib.sha256(str(seed).encode())
    for wave, _ in [*sounds, *voices]:
        digest.update(wave.tobytes())
    test = digest.hexdigest()[:12]
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
    if (folder / KEY).is_file() and (there := _read_key(folder)["test"]) != test:
        raise FileExistsError(
            f"{folder / KEY} is of test {there}, this one is {test}: ratings of the other would have no key; "
            "move it away, or give another --out"
        )
    (folder / KEY).write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
    played = [
        {"id": name, "voice": number, "sound": flac_url(*sound)}
        for name, (number, _), sound in zip(names, order, sounds, strict=True)
    ]
    content = {"test": test, "voices": [flac_url(*voice) for voice in voices], "sounds": played}
    write_page("listening.html.j2", folder / PAGE, content=content, questions=QUESTIONS)
    return test


def keep_ratings(folder: Path, paths: Sequence[Path]) -> list[Rating]:
    """Reads ratings, keeps copies of their files beside the test, and returns all that there are.

    Raises:
        FileNotFoundError: if there is no test, or no such file.
        ValueError: if a file holds none, those of another test, or two of one listener differ; then none is kept.
    """
    key = _read_key(folder)
    said = {path: _read_ratings(path, key) for path in paths}
    held = {path: _read_ratings(path, key) for path in sorted((folder / RATINGS).glob("*.json"))}
    whose: dict[str, Path] = {}
    for path, (listener, ratings) in (held | said).items():
        other = whose.setdefault(listener, path)
        if (held | said)[other][1] != ratings:
            raise ValueError(
                f"--ratings: {path} and {other} are both of listener {listener!r} and differ: delete one, or "
                "change the listener's name in it"
            )
    (folder / RATINGS).mkdir(exist_ok=True)
    for path, (listener, _) in said.items():
        (folder / RATINGS / f"{_file_name(listener)}.json").write_bytes(path.read_bytes())
    return read_kept(folder)


def read_kept(folder: Path) -> list[Rating]:
    """Returns the ratings that are kept in a folder; none where there is no test.

    Raises:
        ValueError: as `keep_ratings`.
    """
    if not (folder / KEY).is_file():
        return []
    key = _read_key(folder)
    return [each for path in sorted((folder / RATINGS).glob("*.json")) for each in _read_ratings(path, key)[1]]


def opinions(folder: Path, ratings: Sequence[Rating]) -> dict[str, dict[str, Mean]]:
    """Returns the MOS of each system in each question.

    Of several listeners it is the mean over them, with an interval for listeners like them, as far as the scale
    goes; of one the interval is for sounds like those that were heard.
    """
    several = len({each.listener for each in ratings}) > 1
    found = dict[str, dict[str, Mean]]()
    for system in _read_key(folder)["systems"]:
        mine, found[system] = [each for each in ratings if each.system == system], {}
        for question in QUESTIONS:
            said = [float(getattr(each, question)) for each in mine]
            mean = mean_over([each.listener for each in mine], said) if several else mean_of(said)
            found[system][question] = mean._replace(
                low=float(np.maximum(mean.low, SCALE[0])), high=float(np.minimum(mean.high, SCALE[-1]))
            )
    return found


def opinion_table(means: Mapping[str, Mapping[str, Mean]], ratings: Sequence[Rating]) -> Table:
    """The MOS as a table."""
    cells = []
    for system, of in means.items():
        numbers = [
            ("none", "")
            if not mean.number
            else (f"{mean.mean:.2f}", "" if np.isnan(mean.low) else f"{mean.low:.2f} to {mean.high:.2f}")
            for mean in of.values()
        ]
        cells.append(((system, ""), *numbers, (str(next(iter(of.values())).number), "")))
    listeners = len({each.listener for each in ratings})
    title = f"Mean opinion scores of {listeners} listener{'s' if listeners != 1 else ''}"
    return Table(title, ("system", *QUESTIONS, "ratings"), tuple(cells))


def write_opinions(folder: Path, means: Mapping[str, Mapping[str, Mean]], ratings: Sequence[Rating]) -> Table:
    """Writes `mos.md` and `mos.csv`, and returns the table."""
    table = opinion_table(means, ratings)
    (folder / "mos.md").write_text(table.markdown() + "\n", encoding="utf-8")
    parts = ("", "_low", "_high", "_count")
    with (folder / "mos.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["system", *(f"{question}{part}" for question in QUESTIONS for part in parts)])
        for system, of in means.items():
            numbers = [number for mean in of.values() for number in mean[: len(parts)]]
            writer.writerow([system, *("" if number != number else number for number in numbers)])
    return table


def _level(path: Path) -> tuple[np.ndarray, int]:
    """A sound [N] as int16 at the common level, and its rate."""
    wave, rate = soundfile.read(path, dtype="float64")
    loud, peak = np.sqrt(np.mean(wave**2)), np.abs(wave).max(initial=0.0)
    gain = min(10 ** (LEVEL_DB / 20) / loud, MAX_PEAK / peak) if peak else 1.0
    return (wave * gain * 32767).round().astype(np.int16), rate


def _read_key(folder: Path) -> dict:
    path = folder / KEY
    if not path.is_file():
        raise FileNotFoundError(
            f"--out {folder} has no listening test ({KEY}): make one with --listening_test true"
        )
    try:
        key = json.loads(path.read_text(encoding="utf-8"))
        assert isinstance(key["test"], str) and isinstance(key["systems"], list)
        assert all(each["system"] in key["systems"] for each in key["sounds"].values())
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error!r:.80}): without it ratings mean nothing") from error
    return key


def _read_ratings(path: Path, key: dict) -> tuple[str, list[Rating]]:
    """Reads what a listener sent, by the key of the test."""
    if not path.is_file():
        raise FileNotFoundError(f"--ratings: no file {path}")
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
        test, listener, answers = said["test"], str(said["listener"]), dict(said["ratings"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"--ratings: {path} is no file that a listening page saved ({error!r:.80})") from error
    if test != key["test"]:
        raise ValueError(f"--ratings: {path} is of test {test}, the one in --out is {key['test']}: leave it out")
    if not answers:
        raise ValueError(f"--ratings: {path} holds no rating: leave it out")
    ratings = []
    for name, answer in sorted(answers.items()):
        numbers = [answer.get(question) for question in QUESTIONS] if isinstance(answer, dict) else []
        if name not in key["sounds"] or not numbers or not all(type(n) is int and n in SCALE for n in numbers):
            raise ValueError(f"--ratings: {path}: sound {name} has {answer!r:.60}: wanted 1 to 5 of {QUESTIONS}")
        ratings.append(Rating(listener, key["sounds"][name]["system"], answer["naturalness"], answer["similarity"]))
    return listener, ratings


def _file_name(listener: str) -> str:
    """A name for a file, of letters that are safe in one; told apart by a digest."""
    safe = re.sub(r"[^\w-]", "_", clean_key(listener))[:40]
    return f"{safe}-{hashlib.sha256(listener.encode()).hexdigest()[:8]}"
