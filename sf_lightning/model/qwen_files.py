"""Reads the weights of one component of Qwen2.5-Omni's token2wav from disk, in whatever form they were saved.

Independent of the networks: those check the names and shapes of the tensors.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError, safe_open
from torch import Tensor

from sf_lightning.files.hub import SHARD_INDEX
from sf_lightning.files.torch_files import read_torch

Value = TypeVar("Value")

COMPONENTS = {"code2wav_dit_model": "dit_config", "code2wav_bigvgan_model": "bigvgan_config"}
"""Components of token2wav, and the name of their section in `config.json`."""


def read_qwen(path: Path, component: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Reads one component's weights and configuration; of a folder, only the shards that hold it are opened.

    Args:
        path: The model's folder (its index and shards, or all its `*.safetensors`), one `.safetensors` file,
            or a torch file of a state dict. `config.json` is looked for in the folder, or beside the file.
        component: "code2wav_dit_model" or "code2wav_bigvgan_model".

    Returns:
        Its tensors as they were stored, under names without prefix, and its section of `config.json`, which is {}
        if there is none.

    Raises:
        FileNotFoundError: if there is nothing at the path, or a shard that is needed is missing.
        ValueError: if a file is damaged, or holds no tensor of the component.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing: expected {component} in a model folder, a .safetensors file or a state dict"
        )
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or path.suffix == ".safetensors":
        tensors = _read_shards(_entries(path, _locate(path), component))
    else:
        tensors = _entries(path, read_torch(path), component)
        for name, value in tensors.items():
            if not isinstance(value, Tensor):
                kind = type(value).__name__
                raise ValueError(f"{path} holds a {kind} under {name!r}: expected a state dict, of tensors only")
    return tensors, _config(folder, COMPONENTS[component])


def strip_prefix(state: Mapping[str, Value], component: str) -> dict[str, Value]:
    """Returns the entries of a component, under names without prefix.

    Names without any component in them are of this one, unless other names have one.

    Raises:
        ValueError: if the component has no entry.

    >>> strip_prefix({"token2wav.code2wav_dit_model.proj_out.bias": 1, "talker.bias": 2}, "code2wav_dit_model")
    {'proj_out.bias': 1}
    >>> strip_prefix({"proj_out.bias": 1}, "code2wav_dit_model")
    {'proj_out.bias': 1}
    """

    def suffix(name: str, prefix: str) -> str:
        return f".{name}".partition(f".{prefix}.")[2]

    entries = {suffix(name, component): value for name, value in state.items() if suffix(name, component)}
    if not entries and not any(suffix(name, other) for name in state for other in COMPONENTS):
        entries = dict(state)
    if not entries:
        examples = ", ".join(list(state)[:3]) + ", ..." if state else "nothing"
        raise ValueError(f"no tensor of {component} in it: it has {examples}")
    return entries


def _entries(path: Path, state: Mapping[str, Value], component: str) -> dict[str, Value]:
    try:
        return strip_prefix(state, component)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _locate(path: Path) -> dict[str, tuple[Path, str]]:
    """Returns the file of each tensor, and its name there, by its name."""
    index = path / SHARD_INDEX
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict):
            raise ValueError(f"{index} has no weight_map, which names the shard of each tensor")
        return {key: (path / shard, key) for key, shard in shards.items()}
    files = [path] if path.is_file() else sorted(path.glob("*.safetensors"))
    if not files:
        raise FileNotFoundError(f"{path} has neither {SHARD_INDEX} nor any *.safetensors in it")
    return {key: (file, key) for file in files for key in _open(file).keys()}


def _read_shards(places: Mapping[str, tuple[Path, str]]) -> dict[str, Tensor]:
    """Returns the tensors, given the file of each and its name in that file."""
    opened = {file: _open(file) for file in {file for file, _ in places.values()}}
    tensors = {}
    for name, (file, key) in places.items():
        try:
            tensors[name] = opened[file].get_tensor(key)
        except SafetensorError as error:
            raise ValueError(f"{file} does not hold {key} ({error}): download all shards together") from error
    return tensors


def _open(file: Path) -> Any:
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing, which {SHARD_INDEX} names: download it too")
    try:
        return safe_open(file, framework="pt")
    except SafetensorError as error:
        raise ValueError(f"{file} is no complete safetensors file ({error}): download it again") from error


def _config(folder: Path, section: str) -> dict[str, Any]:
    """Returns a section of the folder's `config.json`, from within `token2wav_config` or from the top level."""
    file = folder / "config.json"
    if not file.is_file():
        return {}
    config = _read_json(file)
    return (config.get("token2wav_config") or config).get(section) or {}


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is no JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__}: expected a JSON object")
    return content
