"""SHA-256 digests of bytes, text and files, shortened where a name or a comparison needs no more."""

import hashlib
from pathlib import Path
from typing import BinaryIO


def digest_of(content: bytes | str, length: int = 16) -> str:
    """Returns the first `length` hexadecimal digits of the SHA-256 of bytes, or of text as UTF-8.

    >>> digest_of("hop_length: 160")
    '731e0be090b2ca6a'
    """
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()[:length]


def file_digest(file: Path | BinaryIO, length: int = 64) -> str:
    """Returns the first `length` hexadecimal digits of the SHA-256 of a file, or of the rest of an open one.

    Raises:
        OSError: if the file cannot be read.
    """
    if isinstance(file, Path):
        with file.open("rb") as opened:
            return file_digest(opened, length)
    return hashlib.file_digest(file, "sha256").hexdigest()[:length]  # type: ignore[arg-type]
