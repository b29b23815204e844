"""The index of a shard: keys, tokens and speakers of its samples, and where their bytes are in the tar.

Independent of tars and sets.
"""

import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

from sf_lightning.files.records import parse_json


class IndexRow(NamedTuple):
    """One sample in the index of a shard.

    Attributes:
        key: Key of the sample, unique in the shard; see `is_safe_key`.
        tokens: Number of tokens.
        checksum: CRC-32 of its files; see `checksum`.
        speaker: Name of the speaker.
        language: Language, such as "en"; empty if unknown.
        files: Offset and size in bytes of each file in the tar, by suffix.
    """

    key: str
    tokens: int
    checksum: int
    speaker: str
    language: str
    files: dict[str, tuple[int, int]]


def checksum(files: Mapping[str, bytes]) -> int:
    """Returns the CRC-32 of the files of a sample: names and bytes, sorted by name."""
    total = 0
    for name in sorted(name for name in files if not name.startswith("__")):
        total = zlib.crc32(files[name], zlib.crc32(name.encode(), total))
    return total


def is_safe_key(key: str) -> bool:
    """Returns whether a key can neither point outside a folder nor control a terminal.

    Subfolders (`a/b/c`) are safe; absolute paths, `..`, empty parts and control characters are not.
    """
    parts = re.split(r"[/\\\\]", key)
    return not any(part in ("", ".", "..") for part in parts) and not re.search(
        r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", key
    )


def parse_index(content: bytes, samples: int | None, size: int) -> list[IndexRow]:
    """Returns the rows of an index of a tar of `size` bytes, in its order; `samples` is their number, if known.

    Raises:
        ValueError: if the index is damaged, or belongs to another shard.
    """
    try:
        rows = [IndexRow(*row) for row in parse_json(content)["rows"]]
        ranges = [found for row in rows for found in row.files.values()]
        texts = [text for row in rows for text in (row.key, row.speaker, row.language)]
        numbers = [number for found in ranges for number in found] + [row.tokens for row in rows]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not an index: {error}") from error
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise ValueError("not an index: a row has a value of the wrong type")
    for key in (row.key for row in rows if not is_safe_key(row.key)):
        raise ValueError(f"key {key!r:.80}: expected no absolute path, no `..` and no control characters")
    if len({row.key for row in rows}) < len(rows):
        raise ValueError("two samples have the same key")
    if not all(len(found) == 2 and min(found) >= 0 and sum(found) <= size for found in ranges):
        raise ValueError(f"a file is not within the {size} bytes of the tar")
    if sum(length for _, length in ranges) > size or not all(0 <= row.tokens <= size for row in rows):
        raise ValueError(f"files or tokens exceed the {size} bytes of the tar")
    if samples not in (None, len(rows)):
        raise ValueError(f"{len(rows)} samples in the index, {samples} in the manifest")
    return rows
