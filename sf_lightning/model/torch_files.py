"""Files that torch has saved. Knows nothing of what is in them."""

import zipfile
from pathlib import Path
from typing import Any

import torch


def read_torch(path: Path) -> dict[str, Any]:
    """Reads the dictionary in a torch file, on the CPU, mapped rather than copied where the format allows.

    Raises:
        ValueError: if it is broken, or holds anything but weights in a dictionary.
    """
    try:
        # Files of before torch 1.6 are no zip archives and cannot be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # bytes that are no pickle may end in almost any error
        raise ValueError(f"{path} is no file of torch weights that can be read ({error!r:.100})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}: wanted a state dict")
    return state
