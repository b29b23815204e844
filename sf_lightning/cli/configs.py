"""Config files and layouts on a command line: recipes found by name, base configs in front of what refines them."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

import sf_lightning
from sf_lightning.files.yaml_files import read_yaml
from sf_lightning.model.layout import Layout

RECIPES = Path(sf_lightning.__file__).parent / "recipes"
"""Recipes that come with the package: the folder `experiments` of a checkout."""


def find_recipe(name: str, option: str, folder: Path = RECIPES) -> Path:
    """Returns the path of a file, or of the package's recipe of that name; a file takes precedence.

    Args:
        name: Path of a YAML file, or the name of a recipe such as "demo".
        option: Option that the user gave it with.
        folder: Folder of the recipes.

    Raises:
        FileNotFoundError: If there is neither.
    """
    path = Path(name).expanduser()
    if path.is_file():
        return path
    recipes = {recipe.stem: recipe for recipe in sorted(folder.glob("*.yaml"))}
    if name not in recipes:
        raise FileNotFoundError(
            f"{option} {name}: no such file; expected a YAML file or one of {', '.join(recipes)}"
        )
    return recipes[name]


def expand_configs(args: list[str]) -> list[str]:
    """Replaces recipe names by files and puts the `base` of each `--config` in front of it.

    Raises:
        FileNotFoundError: If a config or its base is missing.
        ValueError: If bases form a circle, a base is given as an argument, or a config is a sweep or no YAML.
    """
    expanded: list[str] = []
    rest = iter(args)
    for arg in rest:
        name, equals, value = arg.partition("=")
        if name == "--base":
            raise ValueError(f"{arg}: base is a key of config files; give the other file with an earlier --config")
        if name not in ("--config", "-c"):
            expanded.append(arg)
            continue
        chain = [find_recipe(value if equals else next(rest, ""), "--config")]
        if "parameters" in _load(chain[0]):
            raise ValueError(f"--config {chain[0]} is a sweep; run it with sf-sweep {chain[0]}")
        while base := OmegaConf.select(_load(chain[0]), "base"):
            beside = chain[0].parent / str(base)
            below = beside if beside.is_file() else find_recipe(str(base), f"base of --config {chain[0]}:")
            if any(below.samefile(path) for path in chain):
                raise ValueError(f"--config {chain[0]}: its base {base} is based on it; remove one of the two")
            chain.insert(0, below)
        expanded += [f"--config={path}" for path in chain]
    return expanded


def expand_presets(args: list[str]) -> list[str]:
    """Replaces the name of a preset after `--model.layout` by its file, unless a file of that name exists.

    Raises:
        ValueError: If a layout is neither a file, a preset, nor settings in braces.
    """
    name, known, expanded = "--model.layout", Layout.presets(), list[str]()
    for before, arg in zip(["", *args], args, strict=False):
        option, equals, value = ("", "", arg) if before == name else arg.partition("=")
        is_layout = before == name or (option == name and equals)
        if is_layout and not value.startswith("{") and not Path(value).is_file():
            if value not in known:
                names = ", ".join(known)
                raise ValueError(f"{name} is {value}; expected {names}, a YAML file or {{num_layers: 8, ...}}")
            value = str(known[value])
        expanded.append(f"{option}{equals}{value}")
    return expanded


def _load(path: Path) -> Any:
    """Reads a config file."""
    try:
        values = read_yaml(path)  # bounded, unlike OmegaConf's and jsonargparse's own
    except ValueError as error:
        raise ValueError(f"--config {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"--config {path} holds no settings; expected names and values")
    return OmegaConf.load(path)
