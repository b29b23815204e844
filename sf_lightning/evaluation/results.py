"""The folder of an evaluation: its systems, and the scores of each clip as soon as they are computed.

eval/mine/
  evaluation.json   clips, weights and systems, which a later command may extend
  results.jsonl     one line for each clip of each system; an interrupted evaluation resumes after the last line
  samples/          sound and pictures of a few clips
"""

import fcntl
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from sf_lightning.evaluation.systems import System
from sf_lightning.files.atomic import remove_leftovers, write_atomically
from sf_lightning.files.foreign import damage_reported, require_no_links, strict_json
from sf_lightning.files.formats import EVALUATION_FORMAT, require_format
from sf_lightning.files.records import from_plain
from sf_lightning.files.text import file_name

EVALUATION, RESULTS, SAMPLES = "evaluation.json", "results.jsonl", "samples"

UNCHECKED = ("wandb",)
"""Subfolders that may contain links: W&B writes and replaces its own."""

MAX_NUMBER = 1e9
"""Bound of all scores, times in ms and numbers of frames."""


@dataclass(frozen=True)
class Identity:
    """What all results of a folder have in common; results that differ in it cannot share a table.

    Attributes:
        data: Shard set or folder of the clips.
        version: Version of the clips.
        clips: Number of clips asked for.
        similarity: Speaker encoder with a digest of its weights; empty without one.
        judges: Names of the predictors of opinion scores.
        device: Type of the device that decodes, to which the times belong.
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
class ClipScores:
    """Scores of one clip of one system.

    Attributes:
        system: Id of the system; stored as "way".
        clip: Key of the clip; SHARD/KEY where clips of several shards have the same one.
        language: Language of the clip; empty where unknown.
        frames: Number of mel frames of the recording.
        scores: Scores by name; NaN where a score is undefined, absent where it was not measured.
        chunk_ms: Computing time of each chunk in ms; empty for clips that are not timed.
        speaker: Speaker of the clip; empty where unknown.
    """

    system: str
    clip: str
    language: str
    frames: int
    scores: dict[str, float]
    chunk_ms: tuple[float, ...] = ()
    speaker: str = ""

    def to_json(self) -> str:
        """Returns the line of `results.jsonl`, with null for NaN."""
        scores = {name: value if math.isfinite(value) else None for name, value in self.scores.items()}
        fields = {"clip": self.clip, "language": self.language, "frames": self.frames, "scores": scores}
        return json.dumps({"way": self.system} | fields | {"chunk_ms": self.chunk_ms, "speaker": self.speaker})

    @classmethod
    def from_json(cls, line: bytes) -> "ClipScores":
        """Reads a line of `results.jsonl`.

        Raises:
            ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError: if it is damaged.
        """
        values = strict_json(line)
        scores = {name: math.nan if value is None else value for name, value in values["scores"].items()}
        names = {"system": "way", "clip": "clip", "language": "language", "frames": "frames"}
        fields = {field: values[name] for field, name in names.items()}
        finite = {name: value for name, value in values["scores"].items() if value is not None}
        fields |= {"scores": finite, "chunk_ms": tuple(values["chunk_ms"]), "speaker": values.get("speaker", "")}
        row = replace(from_plain(cls, fields, "row"), scores=scores)
        if not 0 < row.frames < MAX_NUMBER or any(abs(value) > MAX_NUMBER for value in scores.values()):
            raise ValueError("frames or scores are out of range")
        if not all(0 <= value < MAX_NUMBER for value in row.chunk_ms):
            raise ValueError("chunk_ms is out of range")
        return row


@dataclass(frozen=True)
class _Description:
    """The values of `evaluation.json` beside its format and the systems."""

    identity: Identity
    digests: dict[str, str]
    facts: dict[str, tuple[str, ...]]


@dataclass
class Results:
    """The content of an evaluation folder, opened for writing by one process at a time.

    Attributes:
        folder: The folder.
        identity: What all results have in common.
        systems: The systems by id, in the order in which they were asked for.
        digests: Digests of checkpoints, layouts and vocoders, by name.
        facts: Facts that tables and pages show, by name; several commands may each have added one.
        rows: Scores by system id and clip key.
    """

    folder: Path
    identity: Identity
    systems: dict[str, System]
    digests: dict[str, str]
    facts: dict[str, tuple[str, ...]]
    rows: dict[tuple[str, str], ClipScores] = field(default_factory=dict)
    _file: IO[bytes] | None = field(default=None, repr=False)

    @classmethod
    def open(
        cls,
        folder: Path,
        identity: Identity,
        systems: Iterable[System],
        digests: Mapping[str, str],
        facts: Mapping[str, Sequence[str]],
    ) -> "Results":
        """Creates an evaluation folder, or resumes one and adds new systems, digests and facts.

        For the arguments see the attributes; `systems` are those that are wanted now.

        Raises:
            FileExistsError: if the folder holds something else, or another evaluation; it is left unchanged.
            ValueError: if the evaluation is damaged, or there are links in the folder.
            BlockingIOError: if another process has it open.
        """
        new_facts = {name: tuple(texts) for name, texts in facts.items()}
        results = cls(folder, identity, {system.id: system for system in systems}, dict(digests), new_facts)
        require_no_links(folder, UNCHECKED)
        if folder.exists() and not (folder / EVALUATION).is_file() and _holds_something_else(folder):
            raise FileExistsError(f"--out {folder} holds something other than an evaluation: give another folder")
        folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            file = stack.enter_context((folder / RESULTS).open("ab+"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise BlockingIOError(
                    f"--out {folder} is in use by another sf-eval: wait until it ends, or give another folder"
                ) from None
            if (folder / EVALUATION).is_file():
                results._add_to(cls.read(folder))
            # The file is locked: text after the last newline was left by a process that was killed.
            file.seek(0)
            os.truncate(file.fileno(), len(_complete_lines(file.read())))
            remove_leftovers(folder)
            remove_leftovers(folder / SAMPLES)
            results._write_evaluation()
            stack.pop_all()
        results._file = file
        return results

    @classmethod
    def read(cls, folder: Path) -> "Results":
        """Reads an evaluation folder without changing it; another process may be writing to it.

        Raises:
            FileNotFoundError: if it is not an evaluation folder.
            ValueError: if it is damaged, has another format, or there are links in the folder.
        """
        require_no_links(folder, UNCHECKED)
        path = folder / EVALUATION
        if not path.is_file():
            raise FileNotFoundError(f"--out {folder} is not a folder written by sf-eval: it has no {EVALUATION}")
        with damage_reported(path, "give another --out"):
            values = strict_json(path.read_bytes())
            found = values["format"]
        require_format(path, found, EVALUATION_FORMAT, oldest=EVALUATION_FORMAT, remedy="give another --out")
        with damage_reported(path, "give another --out"):
            stored = {name: values[name] for name in ("identity", "digests", "facts")}
            description = from_plain(_Description, stored, "evaluation")
            systems = {name: from_plain(System, system, f"way {name}") for name, system in values["ways"].items()}
            for name in (name for name, system in systems.items() if name != system.id):
                raise ValueError(f"way {name} has other settings than its name says")
        facts = {name: tuple(texts) for name, texts in description.facts.items()}
        results = cls(folder, description.identity, systems, description.digests, facts)
        if (path := folder / RESULTS).is_file():
            for number, line in enumerate(_complete_lines(path.read_bytes()).splitlines(), 1):
                with damage_reported(f"{path}: line {number}", "delete it"):
                    row = ClipScores.from_json(line)
                results.rows[row.system, row.clip] = row
        return results

    @property
    def numbered_facts(self) -> dict[str, str]:
        """One fact a name: several facts of one name are numbered."""
        return {
            name if len(texts) == 1 else f"{name} {number}": text
            for name, texts in self.facts.items()
            for number, text in enumerate(texts, 1)
        }

    def add(self, row: ClipScores) -> None:
        """Adds the scores of a clip, in memory and on disk."""
        assert self._file is not None
        self._file.write(row.to_json().encode() + b"\n")
        self._file.flush()
        self.rows[row.system, row.clip] = row

    def rows_of(self, system: System) -> list[ClipScores]:
        """Returns the scores of all clips of a system."""
        return [row for row in self.rows.values() if row.system == system.id]

    def sample_path(self, clip: str, name: str) -> Path:
        """Returns the path of a sound or picture of a clip."""
        return self.folder / SAMPLES / f"{file_name(clip)}.{name}"

    def sound_path(self, system: System, clip: str) -> Path:
        """Returns the path of a clip's sound as the system decodes it."""
        return self.sample_path(clip, f"{system.id}.flac")

    def close(self) -> None:
        """Closes the folder and releases its lock."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _add_to(self, existing: "Results") -> None:
        """Merges with the content of the folder; raises FileExistsError if identity or digests differ."""
        for name, given in asdict(self.identity).items():
            stored = asdict(existing.identity)[name]
            if given != stored:
                raise FileExistsError(
                    f"--out {self.folder} holds another evaluation: its {name} is {stored!r}, this command has "
                    f"{given!r}; give another --out, or the same clips and device as before"
                )
        for name, digest in self.digests.items():
            if existing.digests.get(name, digest) != digest:
                raise FileExistsError(
                    f"--out {self.folder} holds results of {name} from before it changed: give another --out"
                )
        self.systems = existing.systems | self.systems
        self.digests = existing.digests | self.digests
        self.facts = {
            name: tuple(dict.fromkeys((*existing.facts.get(name, ()), *self.facts.get(name, ()))))
            for name in existing.facts | self.facts
        }
        self.rows = existing.rows

    def _write_evaluation(self) -> None:
        values: dict[str, Any] = {
            "format": EVALUATION_FORMAT,
            "identity": asdict(self.identity),
            "digests": self.digests,
            "facts": self.facts,
            "ways": {name: asdict(system) for name, system in self.systems.items()},
        }
        write_atomically(self.folder / EVALUATION, json.dumps(values, indent=1) + "\n")


def _holds_something_else(folder: Path) -> bool:
    """Returns whether there is more than an evaluation writes before `evaluation.json`."""
    if not folder.is_dir():
        return True
    return any(
        (path.name != RESULTS or path.stat().st_size) and not (path.match(f".*{EVALUATION}") and path.is_file())
        for path in folder.iterdir()
    )


def _complete_lines(content: bytes) -> bytes:
    """Returns all lines that end with a newline."""
    return content[: content.rfind(b"\n") + 1]
