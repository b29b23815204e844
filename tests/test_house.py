"""The house: floors, modules, recipes, the words of the README."""

import ast
import importlib
import pkgutil
import re
import subprocess
from pathlib import Path

import pytest

import sf_lightning

FLOORS = "files audio tokens model flow vocoder streaming data metrics evaluation training sweeps cli".split()
MODULES = sorted(m.name for m in pkgutil.walk_packages(sf_lightning.__path__, "sf_lightning."))


def imports(path: Path) -> set[str]:
    """Every module that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_imports_only_floors_below_it(repository: Path, floor: str) -> None:
    allowed = set(FLOORS[: FLOORS.index(floor) + 1])
    files = list((repository / "sf_lightning" / floor).rglob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            if name.startswith("sf_lightning."):
                assert name.split(".")[1] in allowed, f"{path} imports {name}"


def test_lightning_lives_where_training_and_commands_are_alone(repository: Path) -> None:
    for floor in (floor for floor in FLOORS if floor not in ("training", "cli")):
        for path in (repository / "sf_lightning" / floor).rglob("*.py"):
            assert not any(name.split(".")[0] in ("lightning", "wandb") for name in imports(path)), path


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_and_says_what_it_is(name: str) -> None:
    if name == "sf_lightning.data.demo":
        pytest.importorskip("espeakng_loader")
    assert importlib.import_module(name).__doc__


def test_pages_point_at_what_is_there(repository: Path) -> None:
    pages = subprocess.check_output(["git", "ls-files", "*.md"], cwd=repository, text=True).split()
    assert "README.md" in pages
    for page in map(repository.joinpath, pages):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page} points at {target}"
