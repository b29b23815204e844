"""Files and folders that are written whole or not at all: first under a temporary name, then renamed.

A reader, or a program that is killed and started again, never sees half a file under its final name.
"""

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def temporary_path(path: Path) -> Path:
    """Returns a hidden path beside `path` that no other process uses; it keeps the suffix of `path`."""
    # Not the process id: jobs in containers, each on its own node, may all have the same one.
    return path.with_name(f".{secrets.token_hex(8)}.{path.name}")


@contextmanager
def atomic_path(path: Path, *, sync: bool = False, temporary: Path | None = None) -> Iterator[Path]:
    """Yields a temporary path to write to; renames it to `path` at the end, or deletes it if the block raises.

    Args:
        path: Final path of the file; an existing file is replaced.
        sync: Whether to wait until the bytes are on the disk before the rename, so that a crash of the machine
            leaves no empty file.
        temporary: The path to write to; by default `temporary_path(path)`. With a fixed one, the next attempt
            overwrites the leftover of a killed process.

    Raises:
        OSError: if the file cannot be written or renamed; an existing file is then untouched.
    """
    temporary = temporary_path(path) if temporary is None else temporary
    try:
        yield temporary
        if sync:
            rename_synced(temporary, path)
        else:
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: bytes | str, *, sync: bool = False) -> None:
    """Writes a file whole or not at all, text as UTF-8; arguments and errors as in `atomic_path`."""
    with atomic_path(path, sync=sync) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def rename_synced(temporary: Path, path: Path) -> None:
    """Renames a file or folder to `path` once its bytes are on the disk, and replaces a file or folder there.

    A folder cannot replace another in one system call: for a moment neither has the name, and both are whole.

    Raises:
        OSError: if it cannot be synced or renamed.
    """
    for written in [*temporary.rglob("*"), temporary] if temporary.is_dir() else [temporary]:
        _sync(written)
    old = path.with_name(f".{path.name}.old.writing")
    if path.is_dir():
        _delete(old)
        path.replace(old)
    temporary.replace(path)
    _sync(path.parent)
    _delete(old)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty temporary folder to fill with files; renames it to `folder` when the block ends.

    The files get the access rights that new files of this user have.

    Raises:
        FileExistsError: if the folder exists.
    """
    refuse_existing(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    outer = temporary_path(folder)
    outer.mkdir(mode=0o700)  # readable to other users only when it is complete
    try:
        inner = outer / folder.name
        inner.mkdir()
        yield inner
        rights = inner.stat().st_mode & 0o666
        for path in inner.iterdir():
            path.chmod(rights)  # safetensors makes its file readable to the owner only
            _sync(path)  # else a machine that crashes now may keep the name and lose the bytes
        refuse_existing(folder)  # a rename replaces an empty folder silently
        inner.rename(folder)
    finally:
        shutil.rmtree(outer)


def refuse_existing(path: Path) -> None:
    """Raises if there is a file or folder at a path, so that nothing is overwritten.

    Raises:
        FileExistsError: if there is one.
    """
    if path.exists() or path.is_symlink():
        raise FileExistsError(f"{path} exists already: give another path, or move it away")


def _sync(path: Path) -> None:
    """Waits until the content of a file, or the list of a folder's entries, is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
