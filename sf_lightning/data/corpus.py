"""Where speech comes from: folders of audio, and tars as Emilia and Emilia-YODAS are distributed.

A corpus is a list of *parts*. A part is read by one process and always gives the same sources in the same
order, so that parts can be dealt to processes and jobs, and a build that was killed can go on.
"""

import json
import math
import os
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from webdataset.tariterators import group_by_keys

from sf_lightning.audio.wave import AUDIO_SUFFIXES

PRECOMPUTED = ("tokens.npy", "speaker.npy")
"""What may lie beside the audio: tokens, and the speaker's x-vector."""

RESERVED = ("manifest", "build")
"""What no tar may be called: a set has files of these names."""


@dataclass(frozen=True)
class CorpusClip:
    """A clip on its way into a shard.

    Attributes:
        key: Of the sample; without dots, for WebDataset cuts a key at its first one.
        suffix: Of the audio file, such as "mp3"; empty where there is no audio.
        audio: Its bytes as they came.
        fields: What is known of it: `id`, `speaker`, and what its JSON file says (`language`, `text`, `dnsmos`).
        made: Bytes of what was made elsewhere, by name; see `PRECOMPUTED`.
        damage: Why the corpus gives no more after it; such a source is no clip, it is there to be counted.
    """

    key: str
    suffix: str
    audio: bytes
    fields: dict[str, Any]
    made: dict[str, bytes] = field(default_factory=dict)
    damage: str = ""

    @property
    def file(self) -> str:
        """What it is called where it is talked of."""
        return f"{self.key}.{self.suffix}" if self.suffix else self.key


class CorpusPart(Protocol):
    """A part of a corpus."""

    @property
    def name(self) -> str:
        """Of its shards."""
        ...

    @property
    def bytes(self) -> int:
        """Size of its files: another one says that they are not what they were."""
        ...

    def read(self) -> Iterator[CorpusClip]:
        """Yields its sources, the same ones every time."""
        ...


@dataclass(frozen=True)
class FilesPart:
    """Audio files under a folder; the folder that holds a file names its speaker, unless a JSON file does."""

    name: str
    folder: Path
    paths: tuple[Path, ...]

    @property
    def bytes(self) -> int:
        """Size of its audio, and of what lies beside it."""
        beside = (path.with_suffix(f".{suffix}") for path in self.paths for suffix in ("json", *PRECOMPUTED))
        return sum(path.stat().st_size for path in [*self.paths, *(each for each in beside if each.is_file())])

    def read(self) -> Iterator[CorpusClip]:
        """Yields one source for each file, with what lies beside it under the same name."""
        for path in self.paths:
            inside = path.relative_to(self.folder)
            key = file_key(inside)
            raw = {suffix: _read_beside(path, suffix) for suffix in ("json", *PRECOMPUTED)}
            fields = {"speaker": "_".join(inside.parent.parts) or key} | _read_fields(raw.pop("json"))
            made = {suffix: data for suffix, data in raw.items() if data}
            yield CorpusClip(key, path.suffix[1:].lower(), path.read_bytes(), {"id": key} | fields, made)


@dataclass(frozen=True)
class TarPart:
    """A WebDataset tar: `KEY.mp3` (or another audio suffix) and `KEY.json` of each clip, in any order."""

    name: str
    path: Path

    @property
    def bytes(self) -> int:
        """Size of the tar."""
        return self.path.stat().st_size

    def read(self) -> Iterator[CorpusClip]:
        """Yields its clips; of a damaged tar those before the damage, and a last source that says so."""
        damage: list[str] = []

        def stop(error: Exception) -> bool:
            damage.append(str(error.args[0] if error.args else error))
            return False

        for raw in group_by_keys(self._members(damage), handler=stop):
            key = clean_key(raw["__key__"])
            suffix = next((each[1:] for each in AUDIO_SUFFIXES if each[1:] in raw), "")
            fields = _read_fields(raw.get("json", b""))
            # Emilia-YODAS says `_id`; its keys hold ids of videos with underscores, and end in _W and a number.
            fields["id"] = str(fields.pop("_id", None) or fields.get("id") or key)
            fields.setdefault("speaker", re.sub(r"_W\d+$", "", key))
            made = {name: raw[name] for name in PRECOMPUTED if name in raw}
            yield CorpusClip(key, suffix, raw.get(suffix, b""), fields, made)
        if damage:
            yield CorpusClip(self.path.name, "", b"", {}, damage=f"ends early: {damage[0]}")

    def _members(self, damage: list[str]) -> Iterator[dict[str, Any]]:
        """Yields its files as WebDataset does; says what keeps it from going on to the end."""
        # Not WebDataset's own: to it a tar that is cut at a header, or has a broken one, is simply at its end.
        with self.path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            try:
                with tarfile.open(fileobj=file, mode="r:") as tar:
                    for info in tar:
                        if not info.isfile() or re.match(r"__[^/]*__($|/)", info.name):
                            continue
                        if info.offset_data + info.size > size:
                            raise tarfile.ReadError(f"{info.name} goes on beyond its end")
                        yield {"fname": info.name, "data": _extract(tar, info), "__url__": str(self.path)}
                    file.seek(tar.offset)
                    if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                        damage.append(f"no whole header and no end at byte {tar.offset} of {size}")
            except tarfile.TarError as error:
                damage.append(str(error))


def _extract(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    """Reads a file of a tar, which forgets it then: an hour of clips is many thousands."""
    tar.members = []  # type: ignore[attr-defined]
    held = tar.extractfile(info)
    assert held is not None
    return held.read()


def find_parts(corpus: Path, shard_samples: int) -> list[CorpusPart]:
    """Lists the parts of a corpus, in order.

    Args:
        corpus: A folder of audio files, or of tars, searched through; or one tar.
        shard_samples: Files of a part; a tar is a part, however many clips it holds.

    Raises:
        FileNotFoundError: if there is nothing, or no speech in it.
        NotADirectoryError: if it is a file and no tar.
        ValueError: if two files would have one key, or the shards of two tars one name.
    """
    if not corpus.exists():
        raise FileNotFoundError(f"no folder {corpus}: give a folder of audio files or of tars with --audio")
    if (corpus / "manifest.json").is_file():
        raise ValueError(f"--audio {corpus} is a shard set; expected a folder of audio files or of tars")
    if corpus.is_file() and corpus.suffix != ".tar":
        raise NotADirectoryError(f"{corpus} is a file: give the folder that it lies in with --audio, or a tar")
    tars = [corpus] if corpus.suffix == ".tar" else sorted(corpus.rglob("*.tar"))
    paths = sorted(
        each for each in corpus.rglob("*") if each.suffix.lower() in AUDIO_SUFFIXES and not each.is_dir()
    )
    if tars and paths:
        raise ValueError(f"{corpus} holds tars ({tars[0]}) and audio ({paths[0]}): give a folder of one kind")
    if tars:
        named = [(clean_key(path.stem), path) for path in tars]
        _require_unique(named)
        _require_shards_apart(dict(named))
        return [TarPart(name, path) for name, path in named]
    if not paths:
        raise FileNotFoundError(f"no audio under {corpus}: wanted files ending in {', '.join(AUDIO_SUFFIXES)}")
    _require_unique([(file_key(path.relative_to(corpus)), path) for path in paths])
    runs = [tuple(paths[i : i + shard_samples]) for i in range(0, len(paths), shard_samples)]
    return [FilesPart(f"shard-{number:06d}", corpus, run) for number, run in enumerate(runs)]


def file_key(inside: Path) -> str:
    """Returns the key of an audio file, from its path within the corpus."""
    return clean_key("_".join(inside.with_suffix("").parts))


def clean_key(name: str) -> str:
    """Returns a name that WebDataset neither cuts nor takes for its own, leaves no folder and can be printed."""
    name = re.sub(r"[/\\\s\x00-\x1f\ud800-\udfff]", "_", name.removeprefix("./")).replace(".", "-")
    return re.sub(r"^__+", "_", name) or "_"


def _require_unique(named: list[tuple[str, Path]]) -> None:
    taken: dict[str, Path] = {}
    for name, path in named:
        if name in taken:
            raise ValueError(f"{path} and {taken[name]} would both have the key {name}: rename one of them")
        taken[name] = path


def _require_shards_apart(tars: dict[str, Path]) -> None:
    """Refuses tars whose shards would have the name of another's (`a-0001` is also the second shard of `a`)."""
    for name, path in tars.items():
        first = re.sub(r"-\d{4,}$", "", name)
        if first != name and first in tars:
            raise ValueError(f"{path} and {tars[first]} would both have shards named {name}: rename one of them")
        if name in RESERVED:
            raise ValueError(f"{path} would have an index named {name}.json, as a set has of its own: rename it")


def _read_beside(path: Path, suffix: str) -> bytes:
    beside = path.with_suffix(f".{suffix}")
    return beside.read_bytes() if beside.is_file() else b""


def _read_fields(data: bytes) -> dict[str, Any]:
    """Reads a clip's JSON; what is no JSON object says nothing, and neither do its nulls."""
    try:
        fields = json.loads(data)
    except ValueError:
        return {}
    if not isinstance(fields, dict):
        return {}
    # Without a speaker's name its clips would all be one speaker's.
    fields = {
        name: value for name, value in fields.items() if value is not None and (name, value) != ("speaker", "")
    }
    if isinstance(fields.get("text"), str):
        fields["text"] = fields["text"].strip()
    return fields


@dataclass(frozen=True)
class Filters:
    """Which clips of a corpus are taken; what a clip does not say about itself does not pass a filter on it.

    Args:
        languages: Those wanted, such as ["en", "zh"]; by default all.
        min_seconds: Shortest clip.
        max_seconds: Longest clip.
        min_dnsmos: Least predicted quality, as Emilia has it.
        blocked_speakers: Speakers that are left out.
    """

    languages: tuple[str, ...] = ()
    min_seconds: float = 0.0
    max_seconds: float = math.inf
    min_dnsmos: float | None = None
    blocked_speakers: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if not 0 <= self.min_seconds <= self.max_seconds:
            raise ValueError(
                f"min_seconds is {self.min_seconds}: it must be at most max_seconds {self.max_seconds}, not below 0"
            )

    def reason_against(self, fields: dict[str, Any]) -> str | None:
        """Returns why a clip with these fields is left out, or None."""
        if self.languages and str(fields.get("language", "")).lower() not in map(str.lower, self.languages):
            return "language"
        if str(fields.get("speaker")) in self.blocked_speakers:
            return "blocked speaker"
        dnsmos = fields.get("dnsmos")
        if self.min_dnsmos is not None and not (isinstance(dnsmos, int | float) and dnsmos >= self.min_dnsmos):
            return "dnsmos"
        return None

    def takes(self, seconds: float) -> bool:
        """Whether a clip is neither too short nor too long."""
        return self.min_seconds <= seconds <= self.max_seconds
