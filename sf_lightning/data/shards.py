"""A shard set on disk: tars, an index beside each, one manifest. Knows nothing of who reads it, in what order.

speech/train/
  manifest.json         what the set holds and how it was made
  lookup.npy            the mean mel of each token, [vocabulary, frames_per_token, F]
  shard-000000.tar      a plain WebDataset shard
  shard-000000.json     its index: what each sample is, and where its files lie in the tar
"""

import dataclasses
import hashlib
import io
import json
import logging
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.index import IndexRow, checksum, parse_index
from sf_lightning.data.sample import RawSample
from sf_lightning.data.store import Store
from sf_lightning.tokens.base import TokenizerSpec

log = logging.getLogger(__name__)

FORMAT = 3


@dataclass(frozen=True)
class ShardInfo:
    """One shard, as the manifest has it."""

    name: str
    samples: int
    tokens: int
    seconds: float
    bytes: int
    digest: str

    def check(self) -> None:
        """Checks that it can be of a shard; it comes from a file, which may lie elsewhere.

        Raises:
            ValueError: if it cannot.
        """
        counts = (self.samples, self.tokens, self.bytes)
        if not all(type(count) is int and count >= 0 for count in counts) or not self.seconds >= 0:
            raise ValueError(f"shard {self.name} with counts {counts} and {self.seconds} seconds")
        # A name is put behind a folder, a URL, or into a command.
        if not re.fullmatch(r"[^./\\\x00-\x1f][^/\\\x00-\x1f]*\.tar", self.name):
            raise ValueError(f"shard {self.name!r}: wanted the name of a tar in this folder")


def index_name(info: ShardInfo) -> str:
    """Returns the file name of a shard's index."""
    return f"{Path(info.name).stem}.json"


@dataclass(frozen=True)
class Manifest:
    """What a shard set holds and how it was made.

    Attributes:
        mel: The mel for which it was made.
        tokenizer: What made its tokens.
        shards: Its shards, in order.
        skipped: Files left out when it was built, counted by cause.
        x_vectors: Name of the encoder whose embeddings lie beside the tokens; empty where there are none.
        x_vector_width: Their width.
    """

    mel: MelConfig
    tokenizer: TokenizerSpec
    shards: tuple[ShardInfo, ...]
    skipped: dict[str, int]
    x_vectors: str = ""
    x_vector_width: int = 0

    def as_json(self) -> bytes:
        """What `manifest.json` says."""
        return (json.dumps({"format": FORMAT, **dataclasses.asdict(self)}, indent=1) + "\n").encode()

    @classmethod
    def load(cls, folder: Path | str) -> "Manifest":
        """Reads `manifest.json`.

        Args:
            folder: Of the set, or its place elsewhere; see `Store`.

        Raises:
            FileNotFoundError: if the folder is no shard set.
            ValueError: if the manifest is damaged or of another format.
        """
        store = Store(str(folder))
        if not (store.is_remote or Path(folder, "manifest.json").is_file()):
            within = [str(each.parent) for each in sorted(Path(folder).glob("*/manifest.json"))]
            hint = f"did you mean {' or '.join(within)}?"
            if not within:
                hint = f"make one with `sf-shards build --audio AUDIO --out {folder}`"
            raise FileNotFoundError(f"no shard set at {folder} (no manifest.json there): {hint}")
        return cls.parse(store.read("manifest.json"), f"{folder}/manifest.json")

    @classmethod
    def parse(cls, said: bytes, path: str) -> "Manifest":
        """Reads what a `manifest.json` says.

        Raises:
            ValueError: naming its path, as `load`.
        """
        try:
            data = json.loads(said)
            form = data["format"]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is no manifest, or damaged ({error}): build the set again") from error
        if form != FORMAT:
            raise ValueError(f"{path}: format {form}, this version reads {FORMAT}: build the set again")
        try:
            manifest = cls(
                MelConfig(**data["mel"]),
                TokenizerSpec(**data["tokenizer"]),
                tuple(ShardInfo(**shard) for shard in data["shards"]),
                dict(data["skipped"]),
                data.get("x_vectors", ""),
                data.get("x_vector_width", 0),
            )
            for shard in manifest.shards:
                shard.check()
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}): build the set again") from error
        if not any(shard.samples for shard in manifest.shards):
            raise ValueError(f"{path}: not one sample in it: build the set again")
        return manifest


@dataclass(frozen=True)
class ShardSet:
    """A shard set that can be read.

    Args:
        folder: Where it is, or its place elsewhere; see `Store`.
        cache_gb: Size of the cache of what is brought from elsewhere.
    """

    folder: Path | str
    cache_gb: float = 50.0

    def open(self, name: str, size: int | None = None) -> io.BufferedIOBase:
        """Opens one of its files; see `Store.open`."""
        store = Store(str(self.folder), cache_gb=self.cache_gb)
        # What was cached of a set that has been built again since is of no use.
        return store.open(name, size, self.version if store.is_remote else "")

    @cached_property
    def version(self) -> str:
        """Changes whenever anything in the set does."""
        return hashlib.sha256(self.manifest.as_json()).hexdigest()[:16]

    @cached_property
    def manifest(self) -> Manifest:
        """What the set holds."""
        return Manifest.load(self.folder)

    @property
    def samples(self) -> int:
        """Samples in all shards."""
        return sum(shard.samples for shard in self.manifest.shards)

    def read_index(self, shard: int) -> list[IndexRow]:
        """Reads the index of a shard: its samples in the order of the tar.

        Raises:
            FileNotFoundError: if it is missing.
            ValueError: if it is damaged.
        """
        info = self.manifest.shards[shard]
        name = index_name(info)
        remedy = f"`sf-shards verify --shards {self.folder} --repair=true` makes it again"
        try:
            with self.open(name) as file:
                return parse_index(file.read(), info.samples, info.bytes)
        except FileNotFoundError as error:
            if Store(str(self.folder)).is_remote:
                raise
            raise FileNotFoundError(f"{self.folder}: {name} is missing: {remedy}") from error
        except ValueError as error:
            raise ValueError(f"{self.folder}: {name} is damaged ({error}): {remedy}") from error

    def read_samples(self, shard: int, rows: Iterable[IndexRow] | None = None) -> Iterator[RawSample]:
        """Yields the samples of a shard in order; one that is not what was written, to the byte, is left out.

        Args:
            shard: Its number.
            rows: Of its index, those to be read; by default all.
        """
        info = self.manifest.shards[shard]
        with self.open(info.name, info.bytes) as file:
            # Not as a tar: the index knows where the bytes lie, and a damaged header then costs nothing.
            for row in self.read_index(shard) if rows is None else rows:
                raw: RawSample = {}
                for name, (offset, size) in row.files.items():
                    file.seek(offset)
                    raw[name] = file.read(size)
                if checksum(raw) == row.checksum:
                    yield {"__key__": row.key, **raw}

    def check_files(self) -> None:
        """Warns of shards whose size is not the manifest's; their samples that are left can still be used.

        Of a set that lies elsewhere nothing is checked before it is brought.

        Raises:
            FileNotFoundError: if a shard is missing.
        """
        if Store(str(self.folder)).is_remote:
            return
        for info in self.manifest.shards:
            path = Path(self.folder) / info.name
            if not path.is_file():
                raise FileNotFoundError(f"{path} is missing, though the manifest lists it: build the set again")
            if (size := path.stat().st_size) != info.bytes:
                log.warning("%s has %d bytes, the manifest says %d: is it truncated?", path, size, info.bytes)
