"""Sources of speech: folders of audio files, and tars in the format of Emilia and Emilia-YODAS.

A corpus is a list of *parts*: one tar, or a fixed number of audio files. A part is read by one process and always
yields the same clips in the same order, so that parts can be shared among processes and jobs, and an interrupted
build can resume.
"""

import json
import math
import os
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from webdataset.tariterators import group_by_keys

from sf_lightning.audio.wave import AUDIO_SUFFIXES

PRECOMPUTED = ("tokens.npy", "speaker.npy")
"""Suffixes of precomputed files beside the audio: tokens, and the x-vector of the speaker."""

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
        damage: Reason why the corpus cannot be read beyond this point; such a clip has no audio and is only
            counted.
    """

    key: str
    suffix: str
    audio: bytes
    fields: dict[str, Any]
    precomputed: dict[str, bytes] = field(default_factory=dict)
    damage: str = ""

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
            contents = {suffix: _read_beside(path, suffix) for suffix in ("json", *PRECOMPUTED)}
            fields = {"speaker": "_".join(relative.parent.parts) or key} | _parse_fields(contents.pop("json"))
            precomputed = {suffix: content for suffix, content in contents.items() if content}
            yield CorpusClip(key, path.suffix[1:].lower(), path.read_bytes(), {"id": key} | fields, precomputed)


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
        """Yields its clips; for a damaged tar those before the damage, and a last one that reports it."""
        damage: list[str] = []

        def stop(error: Exception) -> bool:
            damage.append(str(error.args[0] if error.args else error))
            return False

        for raw in group_by_keys(self._members(damage), handler=stop):
            key = clean_key(raw["__key__"])
            suffix = next((suffix[1:] for suffix in AUDIO_SUFFIXES if suffix[1:] in raw), "")
            fields = _parse_fields(raw.get("json", b""))
            # Emilia-YODAS has `_id`; its keys contain ids of videos with underscores, and end in _W and a number.
            fields["id"] = str(fields.pop("_id", None) or fields.get("id") or key)
            fields.setdefault("speaker", re.sub(r"_W\d+$", "", key))
            precomputed = {name: raw[name] for name in PRECOMPUTED if name in raw}
            yield CorpusClip(key, suffix, raw.get(suffix, b""), fields, precomputed)
        if damage:
            yield CorpusClip(self.path.name, "", b"", {}, damage=f"ends early: {damage[0]}")

    def _members(self, damage: list[str]) -> Iterator[dict[str, Any]]:
        """Yields the members as WebDataset does; adds the reason to `damage` if the end cannot be reached."""
        # Not WebDataset's own reader: it takes a cut or broken header for the end of the tar.
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for info in tar:
                        if not info.isfile() or re.match(r"__[^/]*__($|/)", info.name):
                            continue
                        if info.offset_data + info.size > size:
                            raise tarfile.ReadError(f"{info.name} exceeds the end of the file")
                        yield {"fname": info.name, "data": _extract(tar, info), "__url__": str(self.path)}
                    file.seek(tar.offset)
                    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                        damage.append(f"neither a header nor the end mark at byte {tar.offset} of {size}")
            except tarfile.TarError as error:
                damage.append(str(error))


def _extract(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    """Returns the content of a member; empties the tar's list of members, which would grow to many thousands."""
    tar.members = []  # type: ignore[attr-defined]
    file = tar.extractfile(info)
    assert file is not None
    return file.read()


def find_parts(corpus: Path, shard_samples: int) -> list[CorpusPart]:
    """Returns the parts of a corpus, in order: a tar, whatever its size, or up to `shard_samples` audio files.

    Args:
        corpus: A folder of audio files, or of tars, searched recursively; or one tar.
        shard_samples: Number of audio files of a part.

    Raises:
        FileNotFoundError: if the folder does not exist or has no speech.
        NotADirectoryError: if it is a file other than a tar.
        ValueError: if two files would get the same key, or two tars shards of the same name.
    """
    if not corpus.exists():
        raise FileNotFoundError(f"no folder {corpus}: give a folder of audio files or of tars with --audio")
    if (corpus / "manifest.json").is_file():
        raise ValueError(f"--audio {corpus} is a shard set; expected a folder of audio files or of tars")
    if corpus.is_file() and corpus.suffix != ".tar":
        raise NotADirectoryError(f"{corpus} is a file: give its folder, or a tar, with --audio")
    tars = [corpus] if corpus.suffix == ".tar" else sorted(corpus.rglob("*.tar"))
    paths = sorted(
        path for path in corpus.rglob("*") if path.suffix.lower() in AUDIO_SUFFIXES and not path.is_dir()
    )
    if tars and paths:
        raise ValueError(f"{corpus} has tars ({tars[0]}) and audio files ({paths[0]}): give a folder of one kind")
    if tars:
        # Only letters, digits and these: the name may be inserted into a shell command; see `ShardInfo`.
        named = [(re.sub(r"[^\w-]", "_", clean_key(path.stem)).lstrip("-") or "_", path) for path in tars]
        _require_unique_keys(named)
        _require_unique_shard_names(dict(named))
        return [TarPart(name, path) for name, path in named]
    if not paths:
        raise FileNotFoundError(f"no audio under {corpus}: expected files with suffix {', '.join(AUDIO_SUFFIXES)}")
    _require_unique_keys([(file_key(path.relative_to(corpus)), path) for path in paths])
    groups = [tuple(paths[i : i + shard_samples]) for i in range(0, len(paths), shard_samples)]
    return [FilesPart(f"shard-{number:06d}", corpus, group) for number, group in enumerate(groups)]


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


def _read_beside(path: Path, suffix: str) -> bytes:
    beside = path.with_suffix(f".{suffix}")
    return beside.read_bytes() if beside.is_file() else b""


def _parse_fields(data: bytes) -> dict[str, Any]:
    """Returns the fields of a clip's JSON file without its nulls; none if it is not a JSON object."""
    try:
        fields = json.loads(data)
    except ValueError:
        return {}
    if not isinstance(fields, dict):
        return {}
    # An empty name would make one speaker of all unknown ones.
    fields = {
        name: value for name, value in fields.items() if value is not None and (name, value) != ("speaker", "")
    }
    if isinstance(fields.get("text"), str):
        fields["text"] = fields["text"].strip()
    return fields


@dataclass(frozen=True)
class Filters:
    """Filters of the clips of a corpus; a clip without the field that a filter looks at is rejected.

    Args:
        languages: Accepted languages, such as ["en", "zh"]; empty for all.
        min_seconds: Shortest accepted duration.
        max_seconds: Longest accepted duration.
        min_dnsmos: Lowest accepted DNSMOS, the predicted quality in Emilia's metadata.
        blocked_speakers: Rejected speakers.

    Raises:
        ValueError: if the durations are negative or in the wrong order.
    """

    languages: tuple[str, ...] = ()
    min_seconds: float = 0.0
    max_seconds: float = math.inf
    min_dnsmos: float | None = None
    blocked_speakers: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not 0 <= self.min_seconds <= self.max_seconds:
            raise ValueError(
                f"--min_seconds is {self.min_seconds}: expected 0 to --max_seconds, which is {self.max_seconds}"
            )

    def rejection_reason(self, fields: dict[str, Any]) -> str | None:
        """Returns why a clip with these fields is rejected, or None."""
        if self.languages and str(fields.get("language", "")).lower() not in map(str.lower, self.languages):
            return "language"
        if str(fields.get("speaker")) in self.blocked_speakers:
            return "blocked speaker"
        dnsmos = fields.get("dnsmos")
        if self.min_dnsmos is not None and not (isinstance(dnsmos, int | float) and dnsmos >= self.min_dnsmos):
            return "dnsmos"
        return None

    def accepts_duration(self, seconds: float) -> bool:
        """Returns whether a duration is neither too short nor too long."""
        return self.min_seconds <= seconds <= self.max_seconds
