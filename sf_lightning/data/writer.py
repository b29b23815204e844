"""Writes shards: a tar and its index, whole or not there. Audio bytes are kept as they came."""

import hashlib
import io
import json
import secrets
import tarfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import webdataset
from numpy.typing import NDArray

from sf_lightning.data.corpus import CorpusClip
from sf_lightning.data.index import IndexRow, checksum
from sf_lightning.data.shards import ShardInfo
from sf_lightning.tokens.base import Tokens


@dataclass
class Sample:
    """A clip that is ready to be written."""

    source: CorpusClip
    tokens: Tokens
    x_vector: bytes
    seconds: float


def npy_bytes(array: NDArray) -> bytes:
    """Returns an array as the bytes of a `.npy`."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def temporary_path(path: Path) -> Path:
    """Returns where a file is written before it gets its name: hidden, and no other job's."""
    # Not the process id: jobs in containers, each on a node of its own, may all have the same one.
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file that is either whole or not there."""
    fresh = temporary_path(path)
    try:
        fresh.write_bytes(data)
        fresh.replace(path)
    except BaseException:
        fresh.unlink(missing_ok=True)
        raise


class ShardWriter:
    """One tar and its index; the same samples give the same bytes, and a shard that has its index is whole."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.tar"
        self.fresh = temporary_path(self.path)
        self.file = self.fresh.open("wb")
        self.tar = webdataset.TarWriter(self.file, mtime=0, user="", group="")
        self.rows: list[IndexRow] = []
        self.seconds = 0.0

    def add(self, sample: Sample) -> None:
        """Adds a sample."""
        source = sample.source
        fields = source.fields | {"duration": round(sample.seconds, 3)}
        files = {
            source.suffix: source.audio,
            "tokens.npy": npy_bytes(sample.tokens.astype(np.int32)),
            "json": _as_json(fields),
        }
        if sample.x_vector:
            files["speaker.npy"] = sample.x_vector
        places = {}
        for name in sorted(files):
            self.tar.write({"__key__": source.key, name: files[name]})
            size = len(files[name])
            places[name] = (self.tar.tarstream.offset - -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, size)
        speaker, language = str(fields["speaker"]), str(fields.get("language", ""))
        self.rows.append(IndexRow(source.key, len(sample.tokens), checksum(files), speaker, language, places))
        self.seconds += sample.seconds

    def close(self, skipped: Mapping[str, int]) -> ShardInfo:
        """Ends the shard and returns its row of the manifest; the index comes last and says that it is whole."""
        self.tar.close()
        self.file.close()
        with self.fresh.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        info = ShardInfo(
            name=self.path.name,
            samples=len(self.rows),
            tokens=sum(row.tokens for row in self.rows),
            seconds=round(self.seconds, 3),
            bytes=self.fresh.stat().st_size,
            digest=digest,
        )
        self.fresh.replace(self.path)
        index = {"info": asdict(info), "skipped": dict(skipped), "rows": [list(row) for row in self.rows]}
        write_atomically(self.path.with_suffix(".json"), _as_json(index) + b"\n")
        return info

    def abandon(self) -> None:
        """Takes away what was written of a shard that will not be ended."""
        # A full disk refuses the last bytes too. The tar must be closed, or it would say so when it is collected.
        for each in (self.tar, self.file):
            with suppress(OSError):
                each.close()
        self.fresh.unlink(missing_ok=True)


def _as_json(said: dict[str, Any]) -> bytes:
    # Text may hold half of a surrogate pair, which UTF-8 does not know; JSON does, escaped.
    return json.dumps(said, ensure_ascii=False).encode(errors="backslashreplace")
