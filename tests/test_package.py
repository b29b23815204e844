"""The package as a whole: layers, modules, public names, links of the pages."""

import importlib
import pkgutil
import pydoc
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sf_lightning

MODULES = sorted(module.name for module in pkgutil.walk_packages(sf_lightning.__path__, "sf_lightning."))


def test_packages_import_only_packages_below_them_without_circles(repository: Path) -> None:
    command = [Path(sys.executable).with_name("lint-imports"), "--no-cache"]
    result = subprocess.run(command, cwd=repository, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("name", MODULES)
def test_every_module_imports_and_has_a_docstring(name: str) -> None:
    if name == "sf_lightning.data.demo":
        pytest.importorskip("espeakng_loader")
    assert importlib.import_module(name).__doc__


def test_the_package_itself_imports_neither_torch_nor_lightning() -> None:
    program = "import sys, sf_lightning; print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))"
    output = subprocess.check_output([sys.executable, "-c", program], text=True)
    assert output.strip() == "[]"


@pytest.mark.parametrize("name", sf_lightning.__all__)
def test_every_public_name_has_an_example_that_doctest_runs(name: str) -> None:
    public = getattr(sf_lightning, name)
    assert public.__module__.startswith("sf_lightning.") and name in dir(sf_lightning)
    assert ">>> " in public.__doc__


def test_help_names_the_commands_and_every_public_name() -> None:
    page = pydoc.plain(pydoc.render_doc(sf_lightning))
    for word in ("pip install", "sf-fit", "sf-decode", "stream.push", *sf_lightning.__all__):
        assert word in page


def test_an_unknown_name_of_the_package_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'load_decoders'"):
        _ = sf_lightning.load_decoders  # type: ignore[attr-defined]


def test_links_of_pages_exist(repository: Path) -> None:
    pages = subprocess.check_output(["git", "ls-files", "*.md"], cwd=repository, text=True).split()
    assert "README.md" in pages
    for page in map(repository.joinpath, pages):
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page} links to {target}"
