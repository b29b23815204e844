"""Damaged exports, checkpoints, layouts, sweep files and tokenizers load, or are refused by a designed error."""

import random
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from sf_lightning.files.records import to_plain
from sf_lightning.model.layout import Layout
from sf_lightning.streaming.loading import load_decoder, load_pretrained
from sf_lightning.sweeps.file import SweepFile
from sf_lightning.tokens.kmeans import KMeansTokenizer
from tests.toys.fuzz import damage, damage_text, flip_bits, mutate, strange_value

EXPORT = Path(__file__).parents[1] / "model" / "exports" / "format-1"

SWEEP = {
    "name": "x",
    "method": "grid",
    "run_cap": 2,
    "metric": {"name": "streamed/stoi", "goal": "maximize"},
    "parameters": {"model.layout": {"values": ["a", "b"]}, "seed": {"min": 1, "max": 3}},
    "early_terminate": {"type": "hyperband", "min_iter": 2},
    "command": ["${env}", "echo", "${args}"],
}


def as_yaml(draw: random.Random, value: object) -> bytes:
    """Returns a mutated value as YAML, sometimes damaged as text."""
    return damage_text(draw, yaml.safe_dump(mutate(draw, value), allow_unicode=True))


def damaged_config(draw: random.Random, folder: Path) -> object:
    """Loads an export with a damaged `config.yaml`."""
    shutil.copytree(EXPORT, folder / "export", dirs_exist_ok=True)
    config = yaml.safe_load((EXPORT / "config.yaml").read_text())
    (folder / "export" / "config.yaml").write_bytes(as_yaml(draw, config))
    return load_decoder(folder / "export")


def damaged_weights(draw: random.Random, folder: Path) -> object:
    """Loads an export with a damaged safetensors file."""
    shutil.copytree(EXPORT, folder / "export", dirs_exist_ok=True)
    whole = (EXPORT / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = draw.random() < 0.5
    damaged = whole[:8] + flip_bits(draw, whole[8:end]) + whole[end:] if header else damage(draw, whole)
    (folder / "export" / "model.safetensors").write_bytes(damaged)
    return load_decoder(folder / "export")


def damaged_checkpoint(draw: random.Random, folder: Path) -> object:
    """Loads a checkpoint with damaged bytes, hyperparameters, counts or weights."""
    trained = load_pretrained(EXPORT)
    description = asdict(trained.description)
    options = {**description["model"], "tokenizer": "kmeans"}
    options |= {"decode": description["decode"], "vocoder": description["vocoder"]}
    content = {
        "format": 1,
        "global_step": 7,
        "hyper_parameters": options,
        "state_dict": {f"average.{name}": value for name, value in trained.model.state_dict().items()},
    }
    kind, path = draw.random(), folder / "a.ckpt"
    if kind < 0.4:
        content["hyper_parameters"] = mutate(draw, to_plain(options))
    elif kind < 0.7:
        content[draw.choice([*content])] = strange_value(draw)
    torch.save(content, path)
    if kind >= 0.7:
        path.write_bytes(damage(draw, path.read_bytes()))
    return load_decoder(path)


def damaged_layout(draw: random.Random, folder: Path) -> object:
    """Reads a damaged layout."""
    (folder / "a.yaml").write_bytes(as_yaml(draw, {"backward": [0, 2], "forward": 1, "num_layers": 4}))
    return Layout.read(str(folder / "a.yaml"))


def damaged_sweep(draw: random.Random, folder: Path) -> object:
    """Reads a damaged sweep file."""
    (folder / "s.yaml").write_bytes(as_yaml(draw, SWEEP))
    return SweepFile(folder / "s.yaml")


def damaged_tokenizer(draw: random.Random, folder: Path) -> object:
    """Loads a damaged k-means tokenizer."""
    np.savez(folder / "k.npz", centroids=np.ones((5, 80), np.float32))
    (folder / "k.npz").write_bytes(damage(draw, (folder / "k.npz").read_bytes()))
    return KMeansTokenizer.load(folder / "k.npz")


KINDS = (damaged_config, damaged_weights, damaged_checkpoint, damaged_layout, damaged_sweep, damaged_tokenizer)


def run(kind: Callable[[random.Random, Path], object], folder: Path, seeds: range) -> None:
    """Runs a kind of damage with each seed; any error but the designed ones fails the test."""
    for seed in seeds:
        try:
            kind(random.Random(seed), folder)
        except (ValueError, OSError) as error:
            assert len(str(error)) < 1500, f"seed {seed}"
        except Exception as error:
            raise AssertionError(f"{kind.__name__} with seed {seed}") from error


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_damage_is_refused_in_one_line(kind: Callable[[random.Random, Path], object], tmp_path: Path) -> None:
    run(kind, tmp_path, range(12))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_much_damage_is_refused_in_one_line(kind: Callable[[random.Random, Path], object], tmp_path: Path) -> None:
    run(kind, tmp_path, range(12, 2000))
