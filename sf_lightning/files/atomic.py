"""Files and folders that are written whole or not at all: first under a temporary name, then renamed.

A reader, or a program that is killed and started again, never sees half a file under its final name. Temporary
names are random: two writers of one file do not share one, and no file elsewhere is written through a link that
somebody has put into the folder.
"""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def temporary_path(path: Path) -> Path:
    """Returns a hidden path beside `path` that no other process uses; it keeps the suffix of `path`."""
    # Not the process id: jobs in containers, each on its own node, may all have the same one.
    return path.with_name(f".{secrets.token_hex(8)}.{path.name}")


def remove_leftovers(folder: Path, names: str = "*") -> None:
    """Deletes the temporary files and folders that killed writers have left in a folder, which may be missing.

    Args:
        folder: Folder that no other process writes to.
        names: Pattern of the final names.

    Raises:
        OSError: if one cannot be deleted.
    """
    for path in [*folder.glob(f".{'[0-9a-f]' * 16}.{names}")]:
        delete(path)


@contextmanager
def atomic_path(path: Path, *, sync: bool = False) -> Iterator[Path]:
    """Yields the path of an empty temporary file to write to; renames it to `path` at the end.

    The file gets the access rights that new files of this user have. It is deleted if the block raises. Where
    `path` is a link, the link is replaced.

    Args:
        path: Final path of the file; an existing file is replaced.
        sync: Whether to wait until the bytes are on the disk before the rename, so that a crash of the machine
            leaves no empty file.

    Raises:
        OSError: if the file cannot be written or renamed; an existing file is then untouched. Where the disk is
            full, it names `path`, whatever a library that writes raises.
    """
    temporary = temporary_path(path)
    try:
        with open(temporary, "xb") as file:  # fails where there is a file or link
            rights = os.fstat(file.fileno()).st_mode & 0o777
    except OSError as error:
        error.filename = str(path)  # which the user knows
        raise
    try:
        yield temporary
        temporary.chmod(rights)  # safetensors makes its file readable to the owner only
        if sync:
            rename_synced(temporary, path)
        else:
            temporary.replace(path)
    except Exception as error:
        full = _disk_full_error(error, path, temporary)
        temporary.unlink(missing_ok=True)
        if full is not None:
            raise full from error
        raise
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _disk_full_error(error: Exception, path: Path, written: Path | None = None) -> OSError | None:
    """Returns an error that names `path` if one was raised because disk or quota are full, else None.

    Libraries do not always say so: then a few bytes more are written to the file that they were writing.
    """
    stated = re.search(r"\(os error (\d+)\)", str(error))  # by libraries in Rust
    code = error.errno if isinstance(error, OSError) else int(stated[1]) if stated else None
    if code not in _FULL and written is not None and written.is_file():
        try:
            with open(written, "ab", buffering=0) as file:
                file.write(bytes(1 << 16))
        except OSError as reason:
            code = reason.errno
    return OSError(code, os.strerror(code), str(path)) if code in _FULL else None


def write_atomically(path: Path, content: bytes | str, *, sync: bool = False) -> None:
    """Writes a file whole or not at all, text as UTF-8; arguments and errors as in `atomic_path`."""
    with atomic_path(path, sync=sync) as temporary:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)


def open_no_link(path: str | Path, flags: int) -> int:
    """Opens a file unless its path is a link: an `opener` for `open`, where a file is appended to.

    Raises:
        OSError: if it is a link or cannot be opened.
    """
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def append_text(path: Path, text: str) -> None:
    """Appends text to a file as UTF-8, without a buffer; the file is created if there is none.

    Raises:
        OSError: with the path, if it is a link or cannot be written; part of the text may then be in the file.
    """
    content = text.encode()
    with open(path, "ab", buffering=0, opener=open_no_link) as file:
        try:
            while content:
                content = content[file.write(content) :]
        except OSError as error:
            error.filename = str(path)
            raise


def rename_synced(temporary: Path, path: Path) -> None:
    """Renames a file or folder to `path` once its bytes are on the disk, and replaces a file or folder there.

    A folder cannot replace another in one system call: for a moment neither has the name, and both are whole.

    Raises:
        OSError: if it cannot be synced or renamed.
    """
    for written in [*temporary.rglob("*"), temporary] if temporary.is_dir() else [temporary]:
        _sync(written)
    old = temporary_path(path)
    if path.is_dir():
        path.replace(old)
    temporary.replace(path)
    _sync(path.parent)
    delete(old)


@contextmanager
def atomic_folder(folder: Path) -> Iterator[Path]:
    """Yields an empty temporary folder to fill with files; renames it to `folder` when the block ends.

    The files get the access rights that new files of this user have.

    Raises:
        FileExistsError: if the folder exists.
        OSError: with `folder`, if the disk is full.
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
    except Exception as error:
        if (full := _disk_full_error(error, folder)) is not None:
            raise full from error
        raise
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


def delete(path: Path) -> None:
    """Deletes a file, a link or a folder with its content, if there is one.

    Raises:
        OSError: if it cannot be deleted.
    """
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
