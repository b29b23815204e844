"""Sources of speech: folders of audio files, and tars in the format of Emilia and Emilia-YODAS.

A corpus is a list of *parts*: one tar, or a fixed number of audio files. A part is read by one process and always
yields the same clips in the same order, so that parts can be shared among processes and jobs, and an interrupted
build can resume.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from sf_lightning.audio.wave import AUDIO_SUFFIXES
from sf_lightning.data.sample import BadSample
from sf_lightning.data.scan import Scan, scan
from sf_lightning.data.tars import PRECOMPUTED, TarMembers
from sf_lightning.files.records import parse_json

RESERVED = ("manifest", "build")
"""Names that a tar may not have, because a set has files of these names."""


@dataclass(frozen=True)
class CorpusClip:
    """A clip of a corpus, before it is written into a shard.

    Attributes:
        key: Key of the sample; without dots, because WebDataset cuts a key at its first one.
        suffix: Suffix of the audio file, such as "mp3"; empty if there is no audio.
        audio: Bytes of the audio file.
        fields: Metadata: `id`, `speaker`, and the fields of the clip's JSON file (`language`, `text`, `dnsmos`).
        precomputed: Bytes of precomputed files by suffix; see `PRECOMPUTED`.
        problem: Reason why there is no such clip, which is then only counted under `cause`.
        cause: Cause under which it is counted.
    """

    key: str
    suffix: str
    audio: bytes
    fields: dict[str, Any]
    precomputed: dict[str, bytes] = field(default_factory=dict)
    problem: str = ""
    cause: str = "damaged tar"

    @property
    def file_name(self) -> str:
        """Name of the audio file in messages."""
        return f"{self.key}.{self.suffix}" if self.suffix else self.key


class CorpusPart(Protocol):
    """A part of a corpus."""

    @property
    def name(self) -> str:
        """Name of its first shard; later ones have a number appended."""
        ...

    @property
    def bytes(self) -> int:
        """Size of its files in bytes: another size shows that they have changed."""
        ...

    def read(self) -> Iterator[CorpusClip]:
        """Yields its clips, the same ones every time."""
        ...


@dataclass(frozen=True)
class FilesPart:
    """Audio files of a corpus; the speaker is `speaker` in a file's JSON, or else the name of the file's folder."""

    name: str
    folder: Path
    paths: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """Size of its audio files, and of the files beside them, in bytes."""
        return sum(path.stat().st_size for path in [*self.paths, *files_beside(self.paths)])

    def read(self) -> Iterator[CorpusClip]:
        """Yields a clip for each audio file, with the files of the same name beside it."""
        for path in self.paths:
            relative = path.relative_to(self.folder)
            key = file_key(relative)
            try:
                beside = {suffix: _read_beside(path, suffix, self.folder) for suffix in ("json", *PRECOMPUTED)}
                fields = {"speaker": "_".join(relative.parent.parts) or key} | _parse_fields(beside.pop("json"))
                audio = _read(path)
            except BadSample as error:
                yield CorpusClip(str(relative), "", b"", {}, problem=error.detail, cause=error.cause)
            else:
                precomputed = {suffix: content for suffix, content in beside.items() if content}
                yield CorpusClip(key, path.suffix[1:].lower(), audio, {"id": key} | fields, precomputed)


@dataclass(frozen=True)
class TarPart:
    """A WebDataset tar with `KEY.mp3` (or another audio suffix) and `KEY.json` of each clip, in any order.

    Args:
        name: Name of its first shard.
        path: Path of the tar.
    """

    name: str
    path: Path

    @property
    def bytes(self) -> int:
        """Size of the tar in bytes."""
        return self.path.stat().st_size

    def read(self) -> Iterator[CorpusClip]:
        """Yields its clips in the order of their first members, then what else of the tar is only counted."""
        with self.path.open("rb") as file:
            members = TarMembers(file)

            for key, found in members.clips.items():
                yield _tar_clip(key, {suffix: members.read(name) for suffix, name in found.items()})
        for name, cause, problem in members.problems:
            yield CorpusClip(name, "", b"", {}, problem=problem, cause=cause)
        if members.damage:
            yield CorpusClip(self.path.name, "", b"", {}, problem=f"ends early: {members.damage}")


def find_parts(corpus: Path, shard_samples: int) -> list[CorpusPart]:
    """Returns the parts of a corpus; see `scan` and `make_parts`."""
    return make_parts(scan(corpus), shard_samples)


def make_parts(found: Scan, shard_samples: int) -> list[CorpusPart]:
    """Returns the parts of a corpus, in order: a tar, whatever its size, or up to `shard_samples` audio files.

    Raises:
        ValueError: if two files would get the same key, or two tars shards of the same name.
    """
    if found.tars:
        named = _shard_names(found)
        _require_unique_keys(named)
        _require_unique_shard_names(dict(named))
        return [TarPart(name, path) for name, path in named]
    _require_unique_keys([(file_key(path.relative_to(found.folder)), path) for path in found.audio])
    groups = [found.audio[i : i + shard_samples] for i in range(0, len(found.audio), shard_samples)]
    return [FilesPart(f"shard-{number:06d}", found.folder, group) for number, group in enumerate(groups)]


def _shard_names(found: Scan) -> list[tuple[str, Path]]:
    """Returns the name of the first shard of each tar: the tar's, with its folders if another one has the same."""

    def name(path: Path) -> str:
        # Only letters, digits and these: the name may be inserted into a shell command; see `ShardInfo`.
        return re.sub(r"[^\w-]", "_", clean_key(str(path))).lstrip("-") or "_"

    count = Counter(name(Path(path.stem)) for path in found.tars)
    return [
        (
            short
            if count[short := name(Path(path.stem))] == 1
            else name(path.relative_to(found.folder).with_suffix("")),
            path,
        )
        for path in found.tars
    ]


def _tar_clip(key: str, raw: dict[str, bytes]) -> CorpusClip:
    """Returns a clip from the contents of its members by suffix."""
    key = clean_key(key)
    suffix = next((suffix[1:] for suffix in AUDIO_SUFFIXES if suffix[1:] in raw), "")
    try:
        fields = _parse_fields(raw.get("json"))
    except BadSample as error:
        return CorpusClip(key, "json", b"", {}, problem=error.detail, cause=error.cause)
    # Emilia-YODAS has `_id`; its keys contain ids of videos with underscores, and end in _W and a number.
    fields["id"] = str(fields.pop("_id", None) or fields.get("id") or key)
    fields.setdefault("speaker", re.sub(r"_W\d+$", "", key))
    precomputed = {name: raw[name] for name in PRECOMPUTED if name in raw}
    return CorpusClip(key, suffix, raw.get(suffix, b""), fields, precomputed)


def files_beside(paths: Iterable[Path]) -> list[Path]:
    """Returns the JSON files, tokens and x-vectors that are stored beside audio files under the same names."""
    beside = (path.with_suffix(f".{suffix}") for path in paths for suffix in ("json", *PRECOMPUTED))
    return [path for path in beside if path.is_file()]


def file_key(relative: Path) -> str:
    """Returns the key of an audio file, from its path relative to the corpus."""
    return clean_key("_".join(relative.with_suffix("").parts))


def clean_key(name: str) -> str:
    """Returns a key that WebDataset keeps whole, that cannot point outside a folder, and that can be printed."""
    name = re.sub(r"[/\\\s\x00-\x1f\ud800-\udfff]", "_", name.removeprefix("./")).replace(".", "-")
    return re.sub(r"^__+", "_", name) or "_"


def _require_unique_keys(named: list[tuple[str, Path]]) -> None:
    known: dict[str, Path] = {}
    for name, path in named:
        if name in known:
            raise ValueError(f"{path} and {known[name]} would both get the key {name}: rename one of them")
        known[name] = path


def _require_unique_shard_names(tars: dict[str, Path]) -> None:
    """Refuses tars whose shards would get the same name (`a-0001` is also the second shard of `a`)."""
    for name, path in tars.items():
        first = re.sub(r"-\d{4,}$", "", name)
        if first != name and first in tars:
            raise ValueError(f"{path} and {tars[first]} would both have shards named {name}: rename one of them")
        if name in RESERVED:
            raise ValueError(f"{path} would have an index {name}.json, a name that every set uses: rename the tar")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, PermissionError) as error:
        raise BadSample("unreadable file", f"{path.name}: {error.strerror}") from error


def _read_beside(path: Path, suffix: str, corpus: Path) -> bytes | None:
    """Returns the content of a file beside an audio file, if there is one.

    Raises:
        BadSample: if it is a link out of the corpus: what it says would be published with the set.
    """
    beside = path.with_suffix(f".{suffix}")
    if not beside.is_file() and not beside.is_symlink():
        return None
    folders = (corpus.resolve(), path.parent.resolve())
    if beside.is_symlink() and not any(beside.resolve().is_relative_to(folder) for folder in folders):
        raise BadSample("link out of the corpus", f"{beside.name}: expected a copy of the file")
    return _read(beside)


def _parse_fields(data: bytes | None) -> dict[str, Any]:
    """Returns the fields of a clip's JSON file without its nulls; none without a file.

    Raises:
        BadSample: if it is no JSON object: without it the clip would have the wrong speaker and language.
    """
    if data is None:
        return {}
    try:
        fields = parse_json(data)
    except ValueError as error:
        raise BadSample("unreadable JSON", f"{error}") from error
    if not isinstance(fields, dict):
        raise BadSample("unreadable JSON", f"a {type(fields).__name__}; expected an object")
    # An empty name would make one speaker of all unknown ones.
    fields = {
        name: value for name, value in fields.items() if value is not None and (name, value) != ("speaker", "")
    }
    if isinstance(fields.get("text"), str):
        fields["text"] = fields["text"].strip()
    return fields
