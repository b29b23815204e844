"""The index of a shard: what each sample is, and where its bytes lie. Knows nothing of tars and sets."""

import json
import zlib
from collections.abc import Mapping
from typing import NamedTuple


class IndexRow(NamedTuple):
    """One sample, as a shard's index has it.

    Attributes:
        key: Of the sample.
        tokens: How many.
        checksum: Of its files; see `checksum`.
        speaker: Name of the speaker.
        language: Empty where it is not known.
        files: Where the bytes of each lie in the tar, (offset, size) by suffix.
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


def parse_index(said: bytes, samples: int | None, size: int) -> list[IndexRow]:
    """Reads what an index says, its samples in the order of the tar.

    Args:
        said: Its bytes.
        samples: How many the manifest has; None where it is not to be asked.
        size: Bytes of the tar: what would lie beyond is not asked for.

    Raises:
        ValueError: if it is damaged, or of another shard.
    """
    try:
        rows = [IndexRow(*row) for row in json.loads(said)["rows"]]
        places = [place for row in rows for place in row.files.values()]
        texts = [text for row in rows for text in (row.key, row.speaker, row.language)]
        numbers = [number for place in places for number in place] + [row.tokens for row in rows]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"no index: {error}") from error
    if not all(isinstance(text, str) for text in texts) or not all(type(number) is int for number in numbers):
        raise ValueError("no index: a row has something of another kind")
    if not all(len(place) == 2 and min(place) >= 0 and sum(place) <= size for place in places):
        raise ValueError(f"a file that does not lie within {size} bytes")
    if samples not in (None, len(rows)):
        raise ValueError(f"{len(rows)} samples in the index, the manifest has {samples}")
    return rows
