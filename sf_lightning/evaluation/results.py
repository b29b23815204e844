"""The folder of an evaluation: what it is of, and one line for each clip and way as soon as it is scored.

eval/mine/
  evaluation.json   which clips, which checkpoints, which ways: what a later command may add to
  results.jsonl     one line for each clip and way; an evaluation that was interrupted goes on behind the last
  samples/          sound and pictures of a few clips
"""

import fcntl
import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from sf_lightning.data.corpus import clean_key
from sf_lightning.evaluation.grid import Way
from sf_lightning.model.plain import from_plain

FORMAT = 1

EVALUATION, RESULTS, SAMPLES = "evaluation.json", "results.jsonl", "samples"


@dataclass(frozen=True)
class Identity:
    """What makes an evaluation another one: its numbers could not stand in one table.

    Attributes:
        data: Where the clips are.
        version: Of them.
        clips: How many were asked for.
        similarity: Speaker encoder, or empty.
        judges: Names of those that predict opinions.
        device: Where it is decoded, of which the times are.
    """

    data: str
    version: str
    clips: int
    similarity: str
    judges: tuple[str, ...]
    device: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "judges", tuple(self.judges))


@dataclass(frozen=True)
class Line:
    """One clip made in one way.

    Attributes:
        way: Its id.
        clip: Key of the clip.
        language: Of the clip; empty where it is not known.
        scores: By name; NaN where one is undefined, and none where it was not measured.
        chunk_ms: Computing of each chunk, of the few clips whose time was taken.
    """

    way: str
    clip: str
    language: str
    scores: dict[str, float]
    chunk_ms: tuple[float, ...] = ()


@dataclass
class Results:
    """What is known so far; opened by one program at a time.

    Attributes:
        folder: Of the evaluation.
        identity: What it is of.
        ways: In the order in which they were asked for.
        facts: What is said of it beside the numbers, by name.
        lines: What is done, by way and clip.
    """

    folder: Path
    identity: Identity
    ways: dict[str, Way]
    checkpoints: dict[str, str]
    facts: dict[str, str]
    lines: dict[tuple[str, str], Line] = field(default_factory=dict)
    _file: TextIO | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls,
        folder: Path,
        identity: Identity,
        ways: Iterable[Way],
        checkpoints: Mapping[str, str],
        facts: Mapping[str, str],
    ) -> "Results":
        """Begins an evaluation, or goes on with one; ways and checkpoints that are new are added.

        Args:
            folder: New, or of the same clips.
            identity: What is evaluated.
            ways: All that are wanted now.
            checkpoints: Digests of their weights, by path.
            facts: To be said of it; new ones replace the old.

        Raises:
            FileExistsError: if the folder holds something else, or another evaluation; what is there stays.
            BlockingIOError: if another program is at it.
        """
        wanted = cls(folder, identity, {way.id: way for way in ways}, dict(checkpoints), dict(facts))
        if (folder / EVALUATION).is_file():
            wanted._add_to(cls.read(folder))
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"--out {folder} holds something else than an evaluation: give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / RESULTS).open("a+", encoding="utf-8")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"--out {folder}: another sf-eval is at it: wait, or give another folder"
            ) from None
        wanted._file = file
        wanted._write_evaluation()
        wanted.lines = {(line.way, line.clip): line for line in _whole_lines(file)}
        return wanted

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """Reads what a folder holds.

        Raises:
            FileNotFoundError: if it is none of an evaluation.
            ValueError: if it is damaged, or of a newer version.
        """
        path = folder / EVALUATION
        if not path.is_file():
            raise FileNotFoundError(f"--out {folder} is no folder of sf-eval: it has no {EVALUATION}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values["format"] != FORMAT:
                raise ValueError(f"format {values['format']}, this version reads {FORMAT}")
            identity = from_plain(Identity, values["identity"], "identity")
            ways = {name: from_plain(Way, way, "way") for name, way in values["ways"].items()}
            results = cls(folder, identity, ways, dict(values["checkpoints"]), dict(values["facts"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error!r:.200}): give another --out") from error
        if (folder / RESULTS).is_file():
            with (folder / RESULTS).open("r+", encoding="utf-8") as file:
                results.lines = {(line.way, line.clip): line for line in _whole_lines(file)}
        return results

    def add(self, line: Line) -> None:
        """Keeps a line, here and on disk."""
        assert self._file is not None
        values = asdict(line)
        values["scores"] = {name: value if math.isfinite(value) else None for name, value in line.scores.items()}
        self._file.write(json.dumps(values) + "\n")
        self._file.flush()
        self.lines[line.way, line.clip] = line

    def of(self, way: Way) -> list[Line]:
        """The lines of a way."""
        return [line for line in self.lines.values() if line.way == way.id]

    def sample(self, clip: str, name: str) -> Path:
        """Where a sound or a picture of a clip lies."""
        return self.folder / SAMPLES / f"{clean_key(clip)}.{name}"

    def close(self) -> None:
        """Lets others at it."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _add_to(self, there: "Results") -> None:
        """Takes over what is there, or refuses it."""
        for name, came in asdict(self.identity).items():
            has = asdict(there.identity)[name]
            if came != has:
                raise FileExistsError(
                    f"--out {self.folder} holds another evaluation, with {name} {has!r} where this one has "
                    f"{came!r}: give another --out, or what it was begun with"
                )
        for path, digest in self.checkpoints.items():
            if there.checkpoints.get(path, digest) != digest:
                raise FileExistsError(
                    f"--out {self.folder} holds results of {path} as it was before it changed: give another --out"
                )
        self.ways = there.ways | self.ways
        self.checkpoints = there.checkpoints | self.checkpoints
        self.facts = there.facts | self.facts

    def _write_evaluation(self) -> None:
        values: dict[str, Any] = {
            "format": FORMAT,
            "identity": asdict(self.identity),
            "checkpoints": self.checkpoints,
            "facts": self.facts,
            "ways": {name: asdict(way) for name, way in self.ways.items()},
        }
        fresh = self.folder / f".{EVALUATION}"
        fresh.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        fresh.replace(self.folder / EVALUATION)


def _whole_lines(file: TextIO) -> list[Line]:
    """Reads all lines, and cuts off a last one that was not written to its end.

    Raises:
        ValueError: if a line is damaged.
    """
    file.seek(0)
    text = file.read()
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        os.truncate(file.fileno(), len(whole.encode()))
        file.seek(0, os.SEEK_END)
    lines = []
    for number, each in enumerate(whole.splitlines(), 1):
        try:
            values = json.loads(each)
            scores = {name: math.nan if value is None else float(value) for name, value in values["scores"].items()}
            way, clip, language = (str(values[name]) for name in ("way", "clip", "language"))
            lines.append(Line(way, clip, language, scores, tuple(map(float, values["chunk_ms"]))))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file.name}: line {number} is damaged ({error!r:.80}): delete it") from error
    return lines
