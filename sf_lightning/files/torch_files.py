"""Weights: torch files, safetensors files, their digest, and whether they fit a network."""

import hashlib
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sf_lightning.files.foreign import require_regular


def read_torch(path: Path) -> dict[str, Any]:
    """Reads the dictionary in a torch file on the CPU, memory-mapped where its format allows; no code in it runs.

    Raises:
        ValueError: if it is no regular file, damaged, or no dictionary of tensors and plain values.
    """
    require_regular(path)
    try:
        # Files of torch before 1.6 are not zip archives and cannot be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # bytes that are not a pickle may raise almost any error
        raise ValueError(f"{path} is no readable file of torch weights ({reason_in_words(error)})") from error
    if not isinstance(state, dict):
        raise ValueError(f"{path} holds a {type(state).__name__}: expected a state dict")
    return state


def reason_in_words(error: BaseException) -> str:
    """Returns why a file could not be read, in a few words.

    >>> reason_in_words(EOFError("Ran out of input"))
    "EOFError('Ran out of input')"
    """
    if isinstance(error, pickle.UnpicklingError):  # PyTorch advises to read the file without restriction
        refused = re.search(r"GLOBAL ([\w.]{1,60})", str(error))
        found = f"it names {refused[1]}, and " if refused else ""
        return f"{found}only tensors and plain values are read"
    return str(error)[:200] if type(error) is ValueError else repr(error)[:100]


def weights_digest(weights: Mapping[str, Tensor], settings: str = "", length: int = 16) -> str:
    """Returns a digest of weights in their order, and of the settings that belong to them.

    Args:
        weights: The state dict.
        settings: Everything else that the digest depends on, as text.
        length: Number of hexadecimal digits.
    """
    total = hashlib.sha256(settings.encode())
    for weight in weights.values():
        total.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:length]


def weight_mismatches(weights: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> list[str]:
    """Returns a phrase for each weight that is missing, unknown or of another shape than expected.

    >>> weight_mismatches({"bias": torch.zeros(3)}, {"bias": torch.zeros(4), "scale": torch.zeros(1)})
    ['bias is [3], expected [4]', 'scale is missing, expected [1]']
    >>> weight_mismatches({"gain": torch.zeros(1)}, {})
    ['gain is [1], which the network does not have']
    """
    phrases = []
    for name in {**expected, **weights}:  # in the order of the network
        value = weights.get(name)
        if value is not None and not _holds_numbers(value):
            phrases.append(f"{name!s:.100} is not a tensor of numbers")
            continue
        found, required = (list(state[name].shape) if name in state else None for state in (weights, expected))
        if required is None:
            phrases.append(f"{name:.100} is {found}, which the network does not have")
        elif found != required:
            phrases.append(f"{name} is {'missing' if found is None else found}, expected {required}")
    return phrases


def _holds_numbers(value: object) -> bool:
    """Returns whether an entry of a state dict is a dense tensor of real numbers, with its data."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and value.device.type != "meta"
        and not value.is_complex()
        and not value.is_quantized
    )
