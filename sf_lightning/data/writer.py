"""Writes shards: a tar and its index, whole or not at all. Audio files keep their bytes."""

import io
import json
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
from sf_lightning.files.atomic import temporary_path, write_atomically
from sf_lightning.files.digest import file_digest
from sf_lightning.tokens.base import Tokens


@dataclass
class Sample:
    """A clip that is ready to be written.

    Attributes:
        clip: The clip of the corpus.
        tokens: Tokens [L].
        x_vector: Content of `speaker.npy`; empty for none.
        seconds: Duration.
    """

    clip: CorpusClip
    tokens: Tokens
    x_vector: bytes
    seconds: float


def npy_bytes(array: NDArray) -> bytes:
    """Returns the content of a `.npy` file with an array."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


class ShardWriter:
    """Writes one tar, then its index, so that a shard with an index is whole; a context manager.

    The same samples give the same bytes. If the block raises, nothing is left of the shard.

    Args:
        folder: Folder of the set.
        name: Name of the shard, without suffix.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / f"{name}.tar"
        self.temporary = temporary_path(self.path)
        self.file = self.temporary.open("xb")
        self.tar = webdataset.TarWriter(self.file, mtime=0, user="", group="")
        self.rows: list[IndexRow] = []
        self.seconds = 0.0

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        if error is not None:
            # A full disk refuses the last bytes too. An unclosed tar would raise when it is garbage-collected.
            for opened in (self.tar, self.file):
                with suppress(OSError):
                    opened.close()
            self.temporary.unlink(missing_ok=True)

    def add(self, sample: Sample) -> None:
        """Adds a sample."""
        clip = sample.clip
        fields = clip.fields | {"duration": round(sample.seconds, 3)}
        files = {
            clip.suffix: clip.audio,
            "tokens.npy": npy_bytes(sample.tokens.astype(np.int32)),
            "json": _to_json(fields),
        }
        if sample.x_vector:
            files["speaker.npy"] = sample.x_vector
        ranges = {}
        for name in sorted(files):
            self.tar.write({"__key__": clip.key, name: files[name]})
            size = len(files[name])
            ranges[name] = (self.tar.tarstream.offset - -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE, size)
        speaker, language = str(fields["speaker"]), str(fields.get("language", ""))
        self.rows.append(IndexRow(clip.key, len(sample.tokens), checksum(files), speaker, language, ranges))
        self.seconds += sample.seconds

    def finish(self, skipped: Mapping[str, int]) -> ShardInfo:
        """Completes the shard and returns its manifest entry; `skipped` counts the clips left out, by cause."""
        self.tar.close()
        self.file.close()
        info = ShardInfo(
            name=self.path.name,
            samples=len(self.rows),
            tokens=sum(row.tokens for row in self.rows),
            seconds=round(self.seconds, 3),
            bytes=self.temporary.stat().st_size,
            digest=file_digest(self.temporary),
        )
        self.temporary.replace(self.path)
        index = {"info": asdict(info), "skipped": dict(skipped), "rows": [list(row) for row in self.rows]}
        write_atomically(self.path.with_suffix(".json"), _to_json(index) + b"\n")
        return info


def _to_json(values: dict[str, Any]) -> bytes:
    # Text may hold half of a surrogate pair, which UTF-8 cannot encode and JSON can, escaped.
    return json.dumps(values, ensure_ascii=False).encode(errors="backslashreplace")
