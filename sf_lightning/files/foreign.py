"""Folders and files that somebody else may have written: no links in folders, and one line for a damaged file."""

import json
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sf_lightning.files.records import parse_json


def require_no_links(folder: Path, unchecked: Collection[str] = (), linked: Collection[str] = ()) -> None:
    """Checks that a folder has regular files and folders only, so that nothing outside of it is read or changed.

    The folder itself may be a link, and so may its parents.

    Args:
        folder: The folder; it need not exist.
        unchecked: Names of subfolders whose content is not checked.
        linked: Names in the folder that may be links themselves.

    Raises:
        ValueError: if there is a symbolic link, a named pipe, a socket or a device in it.
    """
    for parent, folders, files in os.walk(folder):
        for path in (Path(parent, name) for name in (*folders, *files)):
            if path.name in linked and path.parent == folder:
                continue
            with suppress(FileNotFoundError):  # a temporary file of another process
                mode = path.lstat().st_mode
                if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                    kind = "a symbolic link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
                    raise ValueError(f"{path} is {kind}, which {folder} may not contain: delete it, or use a copy")
        folders[:] = [name for name in folders if name not in unchecked]


def require_regular(path: Path) -> None:
    """Checks that a path is neither a named pipe, nor a device, nor a folder: reading one may never end.

    Raises:
        ValueError: if it is one.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"{path} is no regular file")


@contextmanager
def damage_reported(source: object, remedy: str) -> Iterator[None]:
    """Turns errors of reading a file into a ValueError that names the file and the remedy."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise ValueError(f"{source} is damaged ({error!r:.200}): {remedy}") from error


def strict_json(content: bytes) -> Any:
    """Returns the value of a JSON text that can be written again: without NaN, infinity and incomplete characters.

    Raises:
        ValueError: if it is not such a text, or nested too deeply.
    """
    value = parse_json(content)
    json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    return value
