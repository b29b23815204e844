"""Where compiled code is kept: torch's default is a folder in the shared temporary one, with a name others know.

Whoever creates that folder first could replace the code in it, which later runs load.
"""

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from torch import nn

CACHE_DIR = "TORCHINDUCTOR_CACHE_DIR"
"""Environment variable of torch; a folder that it names is used as it is."""


def set_compile_cache() -> None:
    """Has torch keep compiled code in the user's cache folder, unless TORCHINDUCTOR_CACHE_DIR is set.

    Raises:
        PermissionError: if the folder belongs to another user, or others may write to it.
        OSError: if it cannot be created.
    """
    if CACHE_DIR not in os.environ:
        base = os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()
        os.environ[CACHE_DIR] = str(_private_folder(Path(base, "sf-lightning")) / "compiled")


def compile_modules(modules: Iterable[nn.Module]) -> None:
    """Has torch compile each module when it is first used; errors as in `set_compile_cache`."""
    set_compile_cache()
    for module in modules:
        module.compile()


def _private_folder(path: Path) -> Path:
    """Returns a folder that nobody else can write to; it is created if there is none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=0o700, exist_ok=True)
    status = path.lstat()
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise PermissionError(
            f"{path} holds compiled code, and others may change it, or it is no folder of yours: delete it, or set "
            f"{CACHE_DIR}"
        )
    return path
