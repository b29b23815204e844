"""What a build was, as `build.json` in its folder has it: the config and the corpus, and what two builds differ in.

It is written when a build begins and stays in the set: with it a job that is started again knows its own work.
Knows nothing of how shards are made.
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
"""Of the units that are other ones than before, so many are named in a line."""


def describe(units: Sequence[CorpusPart], config: BuildConfig) -> dict[str, Any]:
    """Returns what two builds of one set have in common; of the corpus each unit and its size in bytes."""
    return config.as_dict() | {"units": {unit.name: unit.bytes for unit in units}}


def save(folder: Path, build: dict[str, Any]) -> None:
    """Writes what a build is."""
    write_atomically(folder / NAME, (json.dumps(build, indent=1) + "\n").encode())


def load(folder: Path) -> dict[str, Any] | None:
    """Reads what a build was; None where nothing says it.

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


def made_before(out: Path) -> dict[str, Any] | None:
    """Returns what build a set is of; None if there is no set yet.

    Raises:
        FileExistsError: if something else is there.
    """
    if not out.exists():
        return None
    if (build := load(out)) is None:
        raise FileExistsError(f"{out} is there already: delete it or give another --out")
    return build


def differences(was: dict[str, Any], now: dict[str, Any]) -> str:
    """Says in which options and units a build is another one than before; empty if it is the same."""
    before, after = _options(was), _options(now)
    said = [
        f"{name} was {reprlib.repr(before.get(name))} and is {reprlib.repr(value)}"
        for name, value in after.items()
        if before.get(name) != value
    ]
    # The units of files follow from the options: where those differ, they say it all.
    return ", ".join(said or _changed(was["units"], now["units"]))


def _options(build: dict[str, Any]) -> dict[str, Any]:
    """By name, as a user says them: filters have options of their own."""
    flat: dict[str, Any] = {}
    for name, value in build.items():
        if name == "filters":
            flat |= value
        elif name != "units":
            inner = value if isinstance(value, dict) else {}
            flat |= {f"{name}.{each}": inner[each] for each in inner} or {name: value}
    return flat


def _changed(was: dict[str, int], now: dict[str, int]) -> list[str]:
    """Names the units that are other ones than before, the first few of them."""
    said = [f"unit {name} is gone" for name in was if name not in now]
    for name, size in now.items():
        if name not in was:
            said.append(f"unit {name} is new")
        elif size != was[name]:
            said.append(f"unit {name} had {was[name]} bytes and has {size}")
    if len(said) > MAX_PARTS_NAMED:
        said[MAX_PARTS_NAMED:] = [f"and more, {len(said)} units in all"]
    return said
