"""What can be used of a checkpoint of `sf-fit`, read without Lightning. Knows nothing of resuming a run."""

from dataclasses import asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.checkpoint import FileSystemReader, load
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from sf_lightning.files.formats import CHECKPOINT_FORMAT, require_format
from sf_lightning.files.records import from_plain
from sf_lightning.files.torch_files import read_torch
from sf_lightning.model.pretrained import (
    CONFIG,
    WEIGHTS,
    Description,
    ModelConfig,
    Pretrained,
    TokenizerName,
    WeightsOf,
    is_export,
    load_pretrained,
)
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.vocoder.config import VocoderConfig
from sf_lightning.vocoder.files import holds_generator, is_trained

SHARDED_META = "meta.pt"
"""In the folder of a checkpoint in shards, what is not in shards."""


class Checkpoint(NamedTuple):
    """What a checkpoint says of the model.

    Attributes:
        weights: The state dict of `StreamFlow`.
        hyper_parameters: The arguments of `StreamFlowModule`, plain values.
        tokenizer_digest: Of the tokenizer whose tokens it has learnt, if that is known.
        of: Where the weights come from.
    """

    weights: dict[str, Tensor]
    hyper_parameters: dict[str, Any]
    tokenizer_digest: str | None
    of: WeightsOf


def is_sharded_checkpoint(folder: Path) -> bool:
    """Returns whether a folder is a checkpoint in shards."""
    return (folder / SHARDED_META).is_file()


def read_content(path: Path) -> dict[str, Any]:
    """Reads all of a checkpoint that is not in shards.

    Args:
        path: Of the file; or of the folder, where the weights are in shards.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is something else, or broken.
    """
    if not path.exists():
        raise FileNotFoundError(f"no file {path}: wanted a checkpoint of sf-fit")
    if path.is_dir() and not is_sharded_checkpoint(path):
        kind = "holds no checkpoint"
        if holds_generator(path) or is_export(path):
            kind = "is an export, which cannot be gone on with"
        elif (path / "checkpoints").is_dir():
            kind = "is that of a run, whose checkpoints lie in checkpoints/"
        raise ValueError(f"wanted a checkpoint of sf-fit: the folder {path} {kind}")
    try:
        return read_torch(path / SHARDED_META if path.is_dir() else path)
    except ValueError as error:
        raise ValueError(f"wanted a checkpoint of sf-fit: {error}") from error


def read_checkpoint(path: Path, average: bool = True) -> Checkpoint:
    """Reads a checkpoint of `sf-fit`, on the CPU; optimizer states are not touched.

    Args:
        path: As `read_content`.
        average: Whether to take the averaged weights or the raw ones.

    Raises:
        FileNotFoundError: as `read_content`.
        ValueError: as `read_content`; if it is no checkpoint of `sf-fit`, or of a newer format.
    """
    content = read_content(path)
    if "generator" in content.get("hyper_parameters", {}):
        raise ValueError(f"{path} is the checkpoint of a vocoder, wanted that of a decoder: give it to --vocoder")
    if missing := [name for name in ("format", "hyper_parameters", "tokenizer_digest") if name not in content]:
        older = "; those from before formats had numbers are not read" if missing[0] == "format" else ""
        raise ValueError(f"{path} is no checkpoint of sf-fit: it has no {missing[0]}{older}")
    require_format(path, content["format"], CHECKPOINT_FORMAT)
    named = _read_shards(path) if path.is_dir() else content["state_dict"]
    prefix = "average." if average else "model."
    weights = {name.removeprefix(prefix): value for name, value in named.items() if name.startswith(prefix)}
    of = WeightsOf(content["global_step"], average, content.get("begun_with"))
    return Checkpoint(weights, content["hyper_parameters"], content["tokenizer_digest"], of)


def _read_shards(folder: Path) -> dict[str, Tensor]:
    """The state dict of a module, put together from the shards of all ranks."""
    reader = FileSystemReader(folder)
    held = {
        name: torch.empty(each.size, dtype=each.properties.dtype)
        for name, each in reader.read_metadata().state_dict_metadata.items()
        if name.startswith("state_dict.") and isinstance(each, TensorStorageMetadata)
    }
    load(held, storage_reader=reader, no_dist=True)
    return {name.removeprefix("state_dict."): value for name, value in held.items()}


def load_checkpoint(path: Path, average: bool = True) -> Pretrained:
    """Returns the decoder of a checkpoint.

    Raises:
        FileNotFoundError, ValueError: as `read_checkpoint`; and if weights and hyperparameters do not fit.
    """
    weights, given, digest, of = read_checkpoint(path, average)
    try:
        if missing := {"tokenizer", "decode", "vocoder"} - given.keys():
            raise ValueError(f"its hyperparameters have no {min(missing)}")
        names = {each.name for each in fields(ModelConfig)} & given.keys()
        description = Description(
            model=from_plain(ModelConfig, {name: given[name] for name in names}, "model"),
            tokenizer=TokenizerName(given["tokenizer"], digest),
            weights=of,
            # Nothing is left to defaults, which a later version may change.
            decode=asdict(from_plain(DecodeConfig, given["decode"], "decode")),
            vocoder=asdict(from_plain(VocoderConfig, given["vocoder"], "vocoder")),
        )
        return Pretrained(description.model.build(weights), description)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def is_decoder(path: Path) -> bool:
    """Returns whether `load_trained` knows what is there: a folder of `sf-export`, or a checkpoint of `sf-fit`.

    Raises:
        ValueError: if it is a file that cannot be read.
    """
    return is_trained(path) or (path / CONFIG).is_file() or is_sharded_checkpoint(path)


def load_trained(path: Path) -> Pretrained:
    """Returns the decoder of a folder of `sf-export`, or the averaged one of a checkpoint of `sf-fit`.

    Raises:
        FileNotFoundError, ValueError: as `load_pretrained` and `load_checkpoint`.
    """
    if holds_generator(path):
        raise ValueError(f"{path} is the folder of a vocoder, wanted a decoder: a vocoder is given to --vocoder")
    is_export = any((path / name).exists() for name in (CONFIG, WEIGHTS))
    return load_pretrained(path) if is_export else load_checkpoint(path)
