"""Checkpoints of `sf-fit`, read without Lightning: weights, hyperparameters and where the weights come from.

Independent of resuming a run and of the networks of the weights.
"""

from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from sf_lightning.files.formats import CHECKPOINT_FORMAT, require_format
from sf_lightning.files.identify import SHARDED_META, Kind, require_kind
from sf_lightning.files.records import shown
from sf_lightning.files.sharded import empty_tensors, load_shards
from sf_lightning.files.torch_files import read_torch
from sf_lightning.model.pretrained import WeightsOrigin


class Checkpoint(NamedTuple):
    """What a checkpoint holds of a model.

    Attributes:
        weights: State dict of `StreamFlow`, or of `BigVGANVocoder`.
        hyper_parameters: Arguments of `StreamFlowModule` or `VocoderModule`, as plain values.
        tokenizer_digest: Digest of the tokenizer whose tokens a decoder was trained on; None if it is unknown.
        origin: Where the weights come from.
    """

    weights: dict[str, Tensor]
    hyper_parameters: dict[str, Any]
    tokenizer_digest: str | None
    origin: WeightsOrigin


def read_content(path: Path) -> dict[str, Any]:
    """Reads everything in a checkpoint that is not sharded; `path` is a folder where the weights are sharded.

    Raises:
        FileNotFoundError: if there is no such file or folder.
        ValueError: if it is not a checkpoint of `sf-fit`, or damaged.
    """
    require_kind(path, Kind.DECODER_CHECKPOINT, Kind.VOCODER_CHECKPOINT)
    return read_torch(path / SHARDED_META if path.is_dir() else path)


def read_checkpoint(path: Path, average: bool = True) -> Checkpoint:
    """Reads the averaged or the raw weights of a checkpoint of `sf-fit` on the CPU, without optimizer states.

    Raises:
        FileNotFoundError, ValueError: as `read_content`; ValueError also if its format is newer.
    """
    content = read_content(path)
    if "format" not in content:
        raise ValueError(f"{path} has no format number: checkpoints from before there was one are not read")
    require_format(path, content["format"], CHECKPOINT_FORMAT)
    _require_types(path, content)
    state = _read_shards(path) if path.is_dir() else content.get("state_dict")
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise ValueError(f"{path} has no state_dict of named weights: the checkpoint is damaged")
    prefix = "average." if average else "model."
    weights = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
    origin = WeightsOrigin(content["global_step"], average, content.get("begun_with"))
    return Checkpoint(weights, content["hyper_parameters"], content.get("tokenizer_digest"), origin)


def _require_types(path: Path, content: dict[str, Any]) -> None:
    """Raises if an entry that is read is missing or of another type."""
    for name, expected in (
        ("global_step", int),
        ("hyper_parameters", dict),
        ("tokenizer_digest", str | None),
        ("begun_with", str | None),
    ):
        if not isinstance(content.get(name), expected):  # type: ignore[arg-type]
            raise ValueError(f"{path} has {name} {shown(content.get(name))}: the checkpoint is damaged")


def _read_shards(folder: Path) -> dict[str, Tensor]:
    """Returns the state dict of a module, put together from the shards of all ranks."""
    state = empty_tensors(folder, "state_dict.")
    load_shards(state, folder)
    return {name.removeprefix("state_dict."): value for name, value in state.items()}
