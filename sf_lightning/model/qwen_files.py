"""Qwen2.5-Omni's weights on disk: the tensors of one component of its token2wav, however they were saved.

Knows nothing of what the tensors are for: the network that takes them checks their names and shapes.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sf_lightning.files.torch_files import read_torch

Value = TypeVar("Value")

COMPONENTS = {"code2wav_dit_model": "dit_config", "code2wav_bigvgan_model": "bigvgan_config"}
"""The components of token2wav, each with the name of its part of `config.json`."""

INDEX = "model.safetensors.index.json"


def read_qwen(path: Path, component: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads one component's weights and configuration; of a folder, only the shards that hold it are opened.

    Args:
        path: The model's folder (its index and shards, or all its `*.safetensors`), one `.safetensors` file,
            or a torch file of a state dict. `config.json` is looked for in the folder, or beside the file.
        component: "code2wav_dit_model" or "code2wav_bigvgan_model".

    Returns:
        Its tensors as they were stored, under names without prefix, and its part of `config.json`: {} where
        there is none.

    Raises:
        FileNotFoundError: if there is nothing at the path, or a shard that is needed is missing.
        ValueError: if a file is broken, or holds no tensor of the component.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: wanted {component} as a model folder, a .safetensors file or a state dict"
        )
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or path.suffix == ".safetensors":
        tensors = _read_shards(_within(path, _locate(path), component))
    else:
        tensors = _within(path, read_torch(path), component)
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                kind = type(value).__name__
                raise ValueError(f"{path} holds a {kind} under {name!r}: wanted a state dict, of tensors alone")
    return tensors, _config(folder, COMPONENTS[component])


def strip_prefix(state: Mapping[str, Value], component: str) -> dict[str, Value]:
    """Returns what belongs to a component, under names without prefix.

    Keys without any component in them are taken for its own, unless others have one.

    Raises:
        ValueError: if nothing belongs to it.

    >>> strip_prefix({"token2wav.code2wav_dit_model.proj_out.bias": 1, "talker.bias": 2}, "code2wav_dit_model")
    {'proj_out.bias': 1}
    >>> strip_prefix({"proj_out.bias": 1}, "code2wav_dit_model")
    {'proj_out.bias': 1}
    """

    def name(key: str, of: str) -> str:
        return f".{key}".partition(f".{of}.")[2]

    own = {name(key, component): value for key, value in state.items() if name(key, component)}
    if not own and not any(name(key, other) for key in state for other in COMPONENTS):
        own = dict(state)
    if not own:
        some = ", ".join(list(state)[:3]) + ", ..." if state else "nothing"
        raise ValueError(f"no tensor of {component} in it: it has {some}")
    return own


def _within(path: Path, state: Mapping[str, Value], component: str) -> dict[str, Value]:
    try:
        return strip_prefix(state, component)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _locate(path: Path) -> dict[str, tuple[Path, str]]:
    """Returns where the tensor of each key is: its file and its key there."""
    index = path / INDEX
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise ValueError(f"{index} has no weight_map, which says what is in which shard")
        return {key: (path / shard, key) for key, shard in shards.items()}
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{path} has neither {INDEX} nor any *.safetensors in it")
    return {key: (file, key) for file in files for key in _open(file).keys()}


def _read_shards(places: Mapping[str, tuple[Path, str]]) -> dict[str, Tensor]:
    """Returns the tensor at each place."""
    opened = {file: _open(file) for file in {file for file, _ in places.values()}}
    tensors = {}
    for name, (file, key) in places.items():
        try:
            tensors[name] = opened[file].get_tensor(key)
        except SafetensorError as error:
            raise ValueError(f"{file} was to hold {key} ({error}): are the shards of one download?") from error
    return tensors


def _open(file: Path) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, which {INDEX} names: download it too")
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file} is no whole safetensors file ({error}): download it again") from error


def _config(folder: Path, part: str) -> dict[str, Any]:
    """Returns a part of the folder's `config.json`, from under `token2wav_config` or from the top level."""
    file = folder / "config.json"
    if not file.is_file():
        return {}
    config = _read_json(file)
    return (config.get("token2wav_config") or config).get(part) or {}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}: wanted a JSON object")
    return content
