"""The lock of a run's folder: one process at a time trains in it.

The kernel releases the lock when the process ends, however it ends, so a lock file that a killed run has left
behind locks nothing. The file names the last process that had the lock.
"""

import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from sf_lightning.files.atomic import open_no_link

LOCK = ".lock"
"""File in the run's folder."""

REQUEUE_SECONDS = 180.0
"""How long a requeued job waits for the lock of its earlier attempt, which a file server may keep for a while."""


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Locks the folder of a run, which is created, for the length of the block.

    Where the file system has no locks, nothing is locked.

    Raises:
        BlockingIOError: with host, process and Slurm job, if another process has the lock.
        OSError: if the lock file cannot be created.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK, "a+", encoding="utf-8", opener=open_no_link) as file:
        if _lock(file, folder):
            owner = {"host": socket.gethostname(), "pid": os.getpid(), "job": os.environ.get("SLURM_JOB_ID")}
            file.truncate(0)
            file.write(json.dumps(owner) + "\n")
            file.flush()
        yield


def _lock(file: IO[str], folder: Path) -> bool:
    """Returns whether the file is locked now; False where the file system has no locks."""
    end = time.monotonic() + REQUEUE_SECONDS
    while True:
        try:
            # Not `flock`, which the data loader's processes would inherit, and hold for seconds after a kill.
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except (BlockingIOError, PermissionError) as error:  # either one, by POSIX
            owner = _owner(file)
            job = owner.get("job")
            if job is None or job != os.environ.get("SLURM_JOB_ID") or time.monotonic() > end:
                raise BlockingIOError(
                    f"{folder} is in use by process {owner.get('pid')} on {owner.get('host')}"
                    f"{f' (Slurm job {job})' if job else ''}: wait until it ends, or give another "
                    "--trainer.default_root_dir"
                ) from error
            time.sleep(1)
        except OSError:
            return False


def _owner(file: IO[str]) -> dict[str, Any]:
    """Returns what the lock file says about the process that has the lock; nothing if it is damaged."""
    file.seek(0)
    try:
        return dict(json.loads(file.read(1000)))
    except (ValueError, TypeError):
        return {}
