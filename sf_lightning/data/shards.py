"""A shard set on disk: tars, an index beside each, one manifest. Independent of the order in which it is read.

speech/train/
  manifest.json         content of the set and how it was made
  lookup.npy            mean mel of each token, [vocabulary, frames_per_token, F]
  shard-000000.tar      a plain WebDataset shard
  shard-000000.json     its index: keys, tokens and speakers, and where the bytes of each file are in the tar
"""

import io
import json
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.index import IndexRow, checksum, parse_index
from sf_lightning.data.sample import Clip, RawSample, decode_clip
from sf_lightning.data.store import Store
from sf_lightning.files.digest import digest_of
from sf_lightning.files.formats import SHARDS_FORMAT, require_format
from sf_lightning.files.records import from_plain, parse_json
from sf_lightning.files.text import get_logger
from sf_lightning.tokens.base import TokenizerSpec

log = get_logger(__name__)

MAX_MANIFEST_BYTES = 2**28
"""Size of a manifest of a million shards."""

MAX_TABLE_VALUES = 2**28
"""Numbers in the lookup table of a set, which is 1 GiB; that of 6,561 codes has 2 million."""

MAX_X_VECTOR_WIDTH = 2**16
"""Largest accepted width of an x-vector."""


@dataclass(frozen=True)
class ShardInfo:
    """One shard in the manifest.

    Args:
        name: File name of the tar.
        samples: Number of samples.
        tokens: Number of tokens.
        seconds: Seconds of speech.
        bytes: Size of the tar in bytes.
        digest: SHA-256 of the tar.

    Raises:
        ValueError: if a number is negative, or larger than the size of the tar allows, or the name has characters
            other than letters, digits, `_`, `-` and single dots, or its index that of a file of every set.
    """

    name: str
    samples: int
    tokens: int
    seconds: float
    bytes: int
    digest: str

    def __post_init__(self) -> None:
        # The name is appended to a folder or URL, or inserted into a shell command, there maybe between quotes.
        if not re.fullmatch(r"(?!(manifest|build)\.tar)\w([\w-]|\.(?!\.))*\.tar", self.name):
            raise ValueError(
                f"shard {self.name!r:.80}: expected the name of a tar, of letters, digits, `_`, `-` and single dots"
            )
        if min(self.samples, self.tokens, self.bytes) < 0 or not 0 <= self.seconds < math.inf:
            raise ValueError(f"shard {self.name} has a negative number of samples, tokens, bytes or seconds")
        if max(self.samples, self.tokens) > self.bytes:
            raise ValueError(f"shard {self.name} has more samples or tokens than bytes")

    @property
    def index_name(self) -> str:
        """File name of the index."""
        return f"{Path(self.name).stem}.json"


@dataclass(frozen=True)
class Manifest:
    """Content of a shard set, and how it was made.

    Args:
        mel: Mel settings of the models that it is for.
        tokenizer: Tokenizer of its tokens.
        shards: Its shards, in order.
        skipped: Number of clips that were skipped when it was built, by cause.
        x_vectors: Name of the speaker encoder whose x-vectors are stored beside the tokens; empty for none.
        x_vector_width: Width X of an x-vector.

    Raises:
        ValueError: if two shards have the same name, or the lookup table or an x-vector would be too large.
    """

    mel: MelConfig
    tokenizer: TokenizerSpec
    shards: tuple[ShardInfo, ...]
    skipped: dict[str, int]
    x_vectors: str = ""
    x_vector_width: int = 0

    def __post_init__(self) -> None:
        if len({shard.name for shard in self.shards}) < len(self.shards):
            raise ValueError("two shards have the same name")
        spec = self.tokenizer
        if spec.vocabulary * spec.frames_per_token * self.mel.num_bands > MAX_TABLE_VALUES:
            raise ValueError(
                f"{spec.vocabulary} codes of {spec.frames_per_token} frames of {self.mel.num_bands} bands: "
                f"expected at most {MAX_TABLE_VALUES} numbers in the lookup table"
            )
        if not 0 <= self.x_vector_width <= MAX_X_VECTOR_WIDTH:
            raise ValueError(f"x_vector_width is {self.x_vector_width}: expected 0 to {MAX_X_VECTOR_WIDTH}")

    def as_json(self) -> bytes:
        """Returns the content of `manifest.json`."""
        return (json.dumps({"format": SHARDS_FORMAT, **asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def load(cls, location: Path | str) -> "Manifest":
        """Reads `manifest.json`.

        Args:
            location: Folder of the set, or where it is stored remotely; see `Store`.

        Raises:
            FileNotFoundError: if the folder is not a shard set.
            ValueError: if the manifest is damaged or of another format.
        """
        store = Store(str(location))
        if not (store.is_remote or Path(location, "manifest.json").is_file()):
            inner = [str(path.parent) for path in sorted(Path(location).glob("*/manifest.json"))]
            hint = f"did you mean {' or '.join(inner)}?"
            if not inner:
                hint = f"build one with `sf-shards build --audio AUDIO --out {location}`"
            raise FileNotFoundError(f"no shard set at {location} (no manifest.json there): {hint}")
        path = f"{store.name}/manifest.json"
        content = store.read("manifest.json", MAX_MANIFEST_BYTES)
        try:
            values = parse_json(content)
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): build the set again") from error
        number = values.pop("format", None) if isinstance(values, dict) else None
        require_format(path, number, SHARDS_FORMAT, oldest=SHARDS_FORMAT, remedy="build the set again")
        try:
            manifest = from_plain(cls, values, "manifest")
        except ValueError as error:
            raise ValueError(f"{path} is damaged ({error}): build the set again") from error
        if not any(shard.samples for shard in manifest.shards):
            raise ValueError(f"{path} lists no sample: build the set again")
        return manifest


@dataclass(frozen=True)
class ShardSet:
    """A shard set that can be read.

    Args:
        folder: Folder of the set, or where it is stored remotely; see `Store`.
        cache_gb: Size in GB of the cache of remote files.
    """

    folder: Path | str
    cache_gb: float = 50.0

    @property
    def name(self) -> str:
        """Its location for messages and records, without passwords."""
        return self.store.name

    @cached_property
    def store(self) -> Store:
        """Access to its files."""
        return Store(str(self.folder), cache_gb=self.cache_gb)

    def open(self, name: str, size: int | None = None) -> io.BufferedIOBase:
        """Opens one of its files; see `Store.open`."""
        # The cached files of a set that was built again since are stale, so the version is part of their path.
        return self.store.open(name, size, self.version if self.store.is_remote else "")

    @cached_property
    def version(self) -> str:
        """Digest of the manifest: it changes whenever anything in the set does."""
        return digest_of(self.manifest.as_json())

    @cached_property
    def manifest(self) -> Manifest:
        """Content of the set."""
        return Manifest.load(self.folder)

    @property
    def samples(self) -> int:
        """Number of samples in all shards."""
        return sum(shard.samples for shard in self.manifest.shards)

    def read_index(self, shard: int) -> list[IndexRow]:
        """Returns the index of shard number `shard`, its samples in the order of the tar.

        Raises:
            FileNotFoundError: if it is missing.
            ValueError: if it is damaged.
        """
        info = self.manifest.shards[shard]
        remedy = f"`sf-shards verify --shards {self.name} --repair=true` makes it again"
        try:
            with self.open(info.index_name) as file:
                return parse_index(file.read(), info.samples, info.bytes)
        except FileNotFoundError as error:
            if self.store.is_remote:
                raise
            raise FileNotFoundError(f"{self.name}: {info.index_name} is missing: {remedy}") from error
        except ValueError as error:
            raise ValueError(f"{self.name}: {info.index_name} is damaged ({error}): {remedy}") from error

    def read_samples(self, shard: int, rows: Iterable[IndexRow] | None = None) -> Iterator[RawSample]:
        """Yields the samples of a shard, by default all rows of its index, without those whose checksum differs."""
        info = self.manifest.shards[shard]
        with self.open(info.name, info.bytes) as file:
            available = file.seek(0, io.SEEK_END)
            # Not read as a tar: the index has the offsets, so that a damaged header loses no sample.
            for row in self.read_index(shard) if rows is None else rows:
                raw: RawSample = {}
                if any(offset + size > available for offset, size in row.files.values()):
                    continue  # truncated; a read beyond the end would reserve memory for all of it
                for name, (offset, size) in row.files.items():
                    file.seek(offset)
                    raw[name] = file.read(size)
                if checksum(raw) == row.checksum:
                    yield {"__key__": row.key, **raw}

    def decode(self, raw: RawSample, x_vector_width: int = 0) -> Clip:
        """Returns the clip of one of its samples; see `decode_clip`.

        Raises:
            BadSample: as `decode_clip`.
        """
        spec = self.manifest.tokenizer
        return decode_clip(raw, self.manifest.mel, spec.vocabulary, spec.frames_per_token, x_vector_width)

    def check_files(self) -> None:
        """Warns of shards whose size differs from the manifest's; their undamaged samples can still be read.

        Remote sets are not checked before their files are downloaded.

        Raises:
            FileNotFoundError: if a shard is missing.
        """
        if self.store.is_remote:
            return
        for info in self.manifest.shards:
            path = Path(self.folder) / info.name
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing, but the manifest lists it: build the set again")
            if (size := path.stat().st_size) != info.bytes:
                log.warning("%s has %d bytes, the manifest has %d: is it truncated?", path, size, info.bytes)
