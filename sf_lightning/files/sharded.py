"""Sharded checkpoints, read without running code in them.

PyTorch's own reader unpickles `.metadata` and every value that is no tensor, which runs whatever a pickle names.
"""

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import DefaultLoadPlanner, FileSystemReader, filesystem, load, metadata
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import ReadItem

from sf_lightning.files.torch_files import reason_in_words

METADATA = ".metadata"
"""The file of a sharded checkpoint that says which part of which file belongs to which tensor."""

CLASSES: dict[str, dict[str, Any]] = {
    metadata.__name__: {
        kind.__name__: kind
        for kind in (
            metadata.BytesStorageMetadata,
            metadata.ChunkStorageMetadata,
            metadata.Metadata,
            metadata.MetadataIndex,
            metadata.StorageMeta,
            metadata.TensorProperties,
            metadata.TensorStorageMetadata,
            metadata._MEM_FORMAT_ENCODING,
        )
    },
    filesystem.__name__: {"_StorageInfo": filesystem._StorageInfo},
    "collections": {"OrderedDict": OrderedDict},
    "torch": {"Size": torch.Size}
    | {name: value for name, value in vars(torch).items() if isinstance(value, torch.dtype)},
    "torch.serialization": {"_get_layout": lambda name: torch.strided},
    # The folder that the checkpoint was saved in, which is not used.
    "pathlib": {"PosixPath": lambda *parts: "/".join(parts)},
    "pathlib._local": {"PosixPath": lambda *parts: "/".join(parts)},
}
"""Everything that the pickle of `.metadata` may name."""


def load_shards(state: dict[str, Any], folder: Path, *, collective: bool = False) -> None:
    """Fills a state dict with the values of a sharded checkpoint, in place; no code in the checkpoint runs.

    Args:
        state: Tensors and values to fill, as `torch.distributed.checkpoint.load` takes them.
        folder: Folder of the checkpoint.
        collective: Whether all ranks load together, each its shards; otherwise this process loads everything.

    Raises:
        ValueError: if a file is missing or damaged, or holds anything but tensors and plain values.
    """
    reader = _Reader(folder)
    try:
        load(state, storage_reader=reader, planner=_Planner(), no_dist=not collective)
    except CheckpointException as error:
        reason = next(iter(error.failures.values()))[0]
        raise ValueError(f"{folder} is no complete sharded checkpoint ({reason_in_words(reason)})") from error


def empty_tensors(folder: Path, prefix: str) -> dict[str, Any]:
    """Returns tensors to fill, one for each tensor of a sharded checkpoint whose name has the prefix.

    Raises:
        ValueError: if `.metadata` is missing, damaged or describes more bytes than the files hold.
    """
    entries = {
        name: entry
        for name, entry in read_metadata(folder).state_dict_metadata.items()
        if name.startswith(prefix) and isinstance(entry, TensorStorageMetadata)
    }
    wanted = sum(entry.size.numel() * entry.properties.dtype.itemsize for entry in entries.values())
    stored = sum(path.stat().st_size for path in folder.glob("*.distcp"))
    if wanted > stored:
        raise ValueError(f"{folder / METADATA} describes {wanted} bytes of tensors, but the files hold {stored}")
    return {name: torch.empty(entry.size, dtype=entry.properties.dtype) for name, entry in entries.items()}


def read_metadata(folder: Path) -> Metadata:
    """Reads `.metadata` of a sharded checkpoint.

    Raises:
        ValueError: if it is missing, damaged, names anything but `CLASSES`, or a file outside of the folder.
    """
    path = folder / METADATA
    try:
        if not path.is_file():
            raise FileNotFoundError("no such file")
        with path.open("rb") as file:
            content = _Unpickler(file).load()
        _check(content, folder)
    except Exception as error:  # bytes that are not a pickle may raise almost any error
        raise ValueError(f"{path} does not describe a sharded checkpoint ({reason_in_words(error)})") from error
    return content


def _check(content: Any, folder: Path) -> None:
    """Raises if unpickled metadata is not consistent in itself or with the files of the folder."""
    if not isinstance(content, Metadata):
        raise ValueError(f"it holds a {type(content).__name__}")
    for name in {info.relative_path for info in content.storage_data.values()}:
        if Path(name).name != name or not (folder / name).is_file():
            raise ValueError(f"there is no file {name:.100} in the folder")
    if any(info.transform_descriptors for info in content.storage_data.values()):
        raise ValueError("its tensors are compressed")
    for name, entry in content.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            continue
        found = sum(chunk.sizes.numel() for chunk in entry.chunks)
        if min(entry.size, default=0) < 0 or found != entry.size.numel():
            raise ValueError(f"{name:.100} has {found} values in its shards, and size {list(entry.size)}")


class _Unpickler(pickle.Unpickler):
    """Refuses every name that is not in `CLASSES`."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return CLASSES[module][name]
        except KeyError:
            raise ValueError(f"it names {module:.60}.{name:.60}, which is refused") from None


class _Reader(FileSystemReader):
    """Reads `.metadata` with `read_metadata`, at once, so that its error reaches the caller."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.metadata = read_metadata(folder)
        self.metadata.storage_meta = metadata.StorageMeta(load_id=self.load_id)

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        return self.metadata


class _Planner(DefaultLoadPlanner):
    """Reads values that are no tensors, such as a learning rate, as plain values."""

    def load_bytes(self, read_item: ReadItem, value: io.BytesIO) -> None:
        # Written again, because the method of the base unpickles without restriction.
        plain = io.BytesIO()
        torch.save(torch.load(value, weights_only=True), plain)
        plain.seek(0)
        super().load_bytes(read_item, plain)
