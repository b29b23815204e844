"""Provenance of a shard set, `build.json`: configuration and corpus of the build, and how two builds differ.

The file is written when a build begins and stays in the set: a job that is started again recognizes its own build.
Independent of how shards are made.
"""

import json
import reprlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sf_lightning.data.build_config import BuildConfig
from sf_lightning.data.corpus import CorpusPart
from sf_lightning.files.atomic import write_atomically

NAME = "build.json"

MAX_PARTS_NAMED = 3
"""Number of changed parts that an error names."""


def describe(parts: Sequence[CorpusPart], config: BuildConfig) -> dict[str, Any]:
    """Returns the content of `build.json`: the configuration, and the size in bytes of each part of the corpus."""
    return config.as_dict() | {"units": {part.name: part.bytes for part in parts}}


def save(folder: Path, build: dict[str, Any]) -> None:
    """Writes `build.json`."""
    write_atomically(folder / NAME, json.dumps(build, indent=1) + "\n")


def load(folder: Path) -> dict[str, Any] | None:
    """Reads `build.json`; returns None if there is none.

    Raises:
        ValueError: if the file is damaged.
    """
    path = folder / NAME
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError as error:
        raise ValueError(f"{path} is damaged ({error}): delete {folder} and build again") from error


def load_existing(out: Path) -> dict[str, Any] | None:
    """Reads `build.json` of an existing set; returns None if nothing exists at `out`.

    Raises:
        FileExistsError: if something else is there.
    """
    if not out.exists():
        return None
    if (build := load(out)) is None:
        raise FileExistsError(f"{out} exists already: delete it or give another --out")
    return build


def differences(before: dict[str, Any], after: dict[str, Any]) -> str:
    """Returns the options and parts in which two builds differ, for an error; empty if they are the same."""
    old, new = _flatten_options(before), _flatten_options(after)
    changed = [
        f"{name} was {reprlib.repr(old.get(name))} and is {reprlib.repr(new[name])}"
        for name in new
        if old.get(name) != new[name]
    ]
    # Parts made of files follow from the options, so that changed options explain changed parts.
    return ", ".join(changed or _changed_parts(before["units"], after["units"]))


def _flatten_options(build: dict[str, Any]) -> dict[str, Any]:
    """Returns options by the name of the command line, where those of filters have no prefix."""
    flat: dict[str, Any] = {}
    for name, value in build.items():
        if name == "filters":
            flat |= value
        elif name != "units":
            inner = value if isinstance(value, dict) else {}
            flat |= {f"{name}.{key}": inner[key] for key in inner} or {name: value}
    return flat


def _changed_parts(before: dict[str, int], after: dict[str, int]) -> list[str]:
    changed = [f"part {name} is gone" for name in before if name not in after]
    for name, size in after.items():
        if name not in before:
            changed.append(f"part {name} is new")
        elif size != before[name]:
            changed.append(f"part {name} had {before[name]} bytes and has {size}")
    if len(changed) > MAX_PARTS_NAMED:
        changed[MAX_PARTS_NAMED:] = [f"and others, {len(changed)} parts in all"]
    return changed
