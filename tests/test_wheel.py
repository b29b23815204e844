"""The wheel, built and installed in a new environment, works without a checkout."""

import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml

Run = Callable[..., str]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program of an environment with the wheel, in an empty folder; returns its standard output.

    The environment sees the dependencies that are installed beside pytest, but not this checkout.
    """
    source, folder = Path(__file__).parents[1], tmp_path_factory.mktemp("wheel")
    # A copy of the tracked files: a build also picks up what an earlier one left in the checkout.
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.check_output(listed, cwd=source, text=True).split("\0")[:-1]:
        if (path := source / name).is_symlink() or path.is_file():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, folder / "source" / name, follow_symlinks=False)
    # From an sdist, as a package index would build it.
    build = [sys.executable, "-m", "build", "--outdir", folder / "dist", folder / "source"]
    subprocess.run(build, check=True, capture_output=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    install = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "-q", wheel]
    subprocess.run(install, check=True, capture_output=True)
    (packages,) = (folder / "venv" / "lib").glob("python*/site-packages")
    # Its own .pth files, and with them an editable installation of this checkout, are not read.
    (packages / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (folder / "empty").mkdir()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program: str, *args: str | Path) -> str:
        command = [python.with_name(program), *args]
        done = subprocess.run(command, cwd=folder / "empty", env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def test_commands_presets_recipes_and_vocoders_are_in_the_wheel(run: Run, repository: Path) -> None:
    program = """
import json, sf_lightning
from importlib.metadata import distribution
from sf_lightning.cli.configs import RECIPES
from sf_lightning.audio.mel import MelConfig
from sf_lightning.model.layout import Layout
from sf_lightning.vocoder.config import VocoderConfig
commands = [entry.name for entry in distribution("sf-lightning").entry_points if entry.load()]
recipes = sorted(str(path.relative_to(RECIPES)) for path in RECIPES.rglob("*.yaml"))
print(json.dumps([sf_lightning.__file__, sorted(commands), recipes, sorted(Layout.presets()),
    VocoderConfig("small").make(MelConfig()).sample_rate]))
"""
    path, commands, recipes, layouts, vocoder_rate = yaml.safe_load(run("python", "-c", program))
    assert not Path(path).is_relative_to(repository)
    ours = [entry for entry in entry_points(group="console_scripts") if entry.value.startswith("sf_lightning.")]
    assert commands == sorted({entry.name for entry in ours})
    experiments = repository / "experiments"
    names = [str(path.relative_to(experiments)) for path in experiments.glob("**/*.yaml")]
    assert recipes == sorted(names)
    assert "streamflow_sr" in layouts and "full" in layouts and vocoder_rate == 16000


def test_a_recipe_and_a_layout_by_name_make_a_config(run: Run) -> None:
    config = yaml.safe_load(run("sf-fit", "--config", "demo", "--model.layout=chunk_causal", "--print_config"))
    assert config["model"]["dit"]["width"] == 192 and config["model"]["layout"]["unbounded"] == "past"


def test_an_exported_decoder_decodes(run: Run, repository: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "tokens.npy", np.arange(13))
    export = repository / "tests" / "model" / "exports" / "format-1"
    files = [f"--tokens={tmp_path}/tokens.npy", f"--out={tmp_path}/out.wav"]
    run("sf-decode", f"--ckpt={export}", *files)
    wave, rate = soundfile.read(tmp_path / "out.wav")
    assert rate == 16000 and len(wave) == 13 * 640 and np.abs(wave).max() > 0
