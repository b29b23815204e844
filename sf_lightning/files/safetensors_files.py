"""Safetensors files with a checksum of their weights, which finds a flipped bit."""

import zlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sf_lightning.files.foreign import require_regular

CHECKSUM = "checksum"
"""Key of the checksum in the metadata of a file."""


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors and the metadata of a safetensors file.

    Raises:
        ValueError: if it is no regular file or damaged; a flipped bit is found in files that have a checksum.
    """
    require_regular(path)
    try:
        with safe_open(path, "pt") as file:
            weights, metadata = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
    except (SafetensorError, RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is no complete safetensors file ({reason}): copy it again") from error
    if CHECKSUM in metadata and (found := weights_checksum(weights)) != metadata[CHECKSUM]:
        raise ValueError(
            f"{path} is damaged: the checksum of its weights is {found}, "
            f"expected {metadata[CHECKSUM]:.30}: copy it again"
        )
    return weights, metadata


def save_safetensors(path: Path, weights: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes tensors to a safetensors file, with metadata and a checksum.

    Raises:
        OSError: if it cannot be written.
    """
    plain = {name: value.detach().cpu().contiguous() for name, value in weights.items()}
    try:
        save_file(plain, path, metadata={"format": "pt", **metadata, CHECKSUM: weights_checksum(plain)})
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error


def weights_checksum(weights: Mapping[str, Tensor]) -> str:
    """Returns a checksum of names, shapes, types and values, at about 1.5 GB/s.

    >>> weights_checksum({"a": torch.zeros(2)})
    'crc32:c3c70aa0'
    """
    total = 0
    for name in sorted(weights):
        weight = weights[name].detach().cpu().contiguous()
        total = zlib.crc32(f"{name} {weight.dtype} {[*weight.shape]};".encode(), total)
        total = zlib.crc32(weight.flatten().view(torch.uint8).numpy(), total)  # type: ignore[arg-type]
    return f"crc32:{total:08x}"
