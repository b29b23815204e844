"""The folder of an evaluation: what it is of, and one line for each clip and way as soon as it is scored.

eval/mine/
  evaluation.json   which clips, which weights, which ways: what a later command may add to
  results.jsonl     one line for each clip and way; an evaluation that was interrupted goes on behind the last
  samples/          sound and pictures of a few clips
"""

import fcntl
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TextIO

from sf_lightning.data.corpus import clean_key
from sf_lightning.evaluation.grid import Way
from sf_lightning.files.records import from_plain

FORMAT = 2

EVALUATION, RESULTS, SAMPLES = "evaluation.json", "results.jsonl", "samples"


@dataclass(frozen=True)
class Identity:
    """What makes an evaluation another one: its numbers could not stand in one table.

    Attributes:
        data: Where the clips are.
        version: Of them.
        clips: How many were asked for.
        similarity: Speaker encoder and a digest of its weights, or empty.
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
        frames: Of its mel.
        scores: By name; NaN where one is undefined, and none where it was not measured.
        chunk_ms: Computing of each chunk, of the few clips whose time was taken.
    """

    way: str
    clip: str
    language: str
    frames: int
    scores: dict[str, float]
    chunk_ms: tuple[float, ...] = ()


@dataclass
class Results:
    """What is known so far; opened by one program at a time.

    Attributes:
        folder: Of the evaluation.
        identity: What it is of.
        ways: In the order in which they were asked for.
        digests: Of what the ways are made with: checkpoints by their paths, layouts and vocoders.
        facts: What is said of it beside the numbers, by name; several commands may each have said something.
        lines: What is done, by way and clip.
    """

    folder: Path
    identity: Identity
    ways: dict[str, Way]
    digests: dict[str, str]
    facts: dict[str, tuple[str, ...]]
    lines: dict[tuple[str, str], Line] = field(default_factory=dict)
    _file: TextIO | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls,
        folder: Path,
        identity: Identity,
        ways: Iterable[Way],
        digests: Mapping[str, str],
        facts: Mapping[str, Sequence[str]],
    ) -> "Results":
        """Begins an evaluation, or goes on with one; what is new of ways, digests and facts is added.

        Args:
            folder: New, or of the same clips.
            identity: What is evaluated.
            ways: All that are wanted now.
            digests: Of what they are made with, by what it is called.
            facts: To be said of it.

        Raises:
            FileExistsError: if the folder holds something else, or another evaluation; what is there stays.
            BlockingIOError: if another program is at it.
        """
        said = {name: tuple(each) for name, each in facts.items()}
        wanted = cls(folder, identity, {way.id: way for way in ways}, dict(digests), said)
        has_something = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
        if has_something and not (folder / EVALUATION).is_file():
            raise FileExistsError(f"--out {folder} holds something else than an evaluation: give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            file = stack.enter_context((folder / RESULTS).open("a+", encoding="utf-8"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(
                    f"--out {folder}: another sf-eval is at it: wait, or give another folder"
                ) from None
            if (folder / EVALUATION).is_file():
                wanted._add_to(cls.read(folder))
            # Nobody else writes now: what goes beyond the last whole line was left by a program that was stopped.
            file.seek(0)
            os.truncate(file.fileno(), len(_whole(file.read()).encode()))
            wanted._write_evaluation()
            stack.pop_all()
        wanted._file = file
        return wanted

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """Reads what a folder holds so far, and changes nothing: another program may be at it.

        Raises:
            FileNotFoundError: if it is none of an evaluation.
            ValueError: if it is damaged, or of another version.
        """
        path = folder / EVALUATION
        if not path.is_file():
            raise FileNotFoundError(f"--out {folder} is no folder of sf-eval: it has no {EVALUATION}")
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            came = values["format"]
            results = cls._of(folder, values) if came == FORMAT else None
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error!r:.200}): give another --out") from error
        if results is None:
            raise ValueError(f"{path} has format {came}, this version writes {FORMAT}: give another --out")
        if (folder / RESULTS).is_file():
            text = _whole((folder / RESULTS).read_text(encoding="utf-8"))
            results.lines = {(line.way, line.clip): line for line in _lines(text, folder / RESULTS)}
        return results

    @classmethod
    def _of(cls, folder: Path, values: Mapping[str, Any]) -> "Results":
        identity = from_plain(Identity, values["identity"], "identity")
        ways = {name: from_plain(Way, way, "way") for name, way in values["ways"].items()}
        facts = {name: tuple(map(str, each)) for name, each in values["facts"].items()}
        return cls(folder, identity, ways, dict(values["digests"]), facts)

    @property
    def said(self) -> dict[str, str]:
        """The facts, one to a name: of several of one name each has its number."""
        numbered = [
            (name if len(each) == 1 else f"{name} {number}", fact)
            for name, each in self.facts.items()
            for number, fact in enumerate(each, 1)
        ]
        return dict(numbered)

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

    def sound(self, way: Way, clip: str) -> Path:
        """Where the sound of a clip made in a way lies."""
        return self.sample(clip, f"{way.id}.flac")

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
        for name, digest in self.digests.items():
            if there.digests.get(name, digest) != digest:
                raise FileExistsError(
                    f"--out {self.folder} holds results of {name} as it was before it changed: give another --out"
                )
        self.ways = there.ways | self.ways
        self.digests = there.digests | self.digests
        facts = there.facts | self.facts
        self.facts = {
            name: tuple(dict.fromkeys((*there.facts.get(name, ()), *self.facts.get(name, ())))) for name in facts
        }
        self.lines = there.lines

    def _write_evaluation(self) -> None:
        values: dict[str, Any] = {
            "format": FORMAT,
            "identity": asdict(self.identity),
            "digests": self.digests,
            "facts": self.facts,
            "ways": {name: asdict(way) for name, way in self.ways.items()},
        }
        fresh = self.folder / f".{EVALUATION}"
        fresh.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
        fresh.replace(self.folder / EVALUATION)


def _whole(text: str) -> str:
    """All lines but a last one that is not written to its end."""
    return text[: text.rfind("\n") + 1]


def _lines(text: str, path: Path) -> list[Line]:
    """Reads lines.

    Raises:
        ValueError: with the file's name, if a line is damaged.
    """
    lines = []
    for number, each in enumerate(text.splitlines(), 1):
        try:
            values = json.loads(each)
            scores = {name: math.nan if value is None else float(value) for name, value in values["scores"].items()}
            way, clip, language = (str(values[name]) for name in ("way", "clip", "language"))
            frames, chunk_ms = int(values["frames"]), tuple(map(float, values["chunk_ms"]))
            lines.append(Line(way, clip, language, frames, scores, chunk_ms))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path}: line {number} is damaged ({error!r:.80}): delete it") from error
    return lines
