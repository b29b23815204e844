"""Exported decoders that are damaged or ask for too much: errors that name the damage."""

import os
import resource
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from sf_lightning.files.yaml_files import read_yaml
from sf_lightning.model.pretrained import (
    load_export,
)
from sf_lightning.streaming.loading import load_decoder, load_pretrained
from tests.toys.exports import change, cut, small_decoder, write_export


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Returns the folder of a decoder."""
    return write_export(tmp_path / "tiny")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda f: (f / "model.safetensors").unlink(),
            "model.safetensors is missing: expected both files of a folder that sf-exp",
        ),
        (lambda f: (f / "config.yaml").unlink(), "config.yaml is missing"),
        (lambda f: cut(f / "model.safetensors"), "model.safetensors is no complete safetensors file"),
        (lambda f: (f / "config.yaml").write_bytes(b"\xff\x00"), "config.yaml is not valid YAML: "),
        (lambda f: (f / "config.yaml").write_text("a: [1"), "config.yaml is not valid YAML: "),
        (lambda f: (f / "config.yaml").write_text(""), "config.yaml: None: expected names and values"),
        (lambda f: cut(f / "config.yaml"), "config.yaml"),
        (
            lambda f: change(f, lambda c: c.update(format=99)),
            "has format 99, sf-lightning .* reads up to 1: ",
        ),
        (lambda f: change(f, lambda c: c.pop("format")), "has None as its format: expected an integer from 1 to 1"),
        (lambda f: change(f, lambda c: c.update(colour="red")), "config.yaml: config.colour is unknown"),
        (
            lambda f: change(f, lambda c: c["model"]["dit"].update(width="wide")),
            "dit.width is 'wide': expected",
        ),
        (lambda f: change(f, lambda c: c["model"].pop("mel")), "config.model.mel is missing"),
        (lambda f: change(f, lambda c: c["model"].update(predict="x")), "config.model.predict is 'x': expected"),
        (lambda f: change(f, lambda c: c["model"]["layout"].update(forward=[9])), "layout.forward lists layer 9"),
        (lambda f: change(f, lambda c: c["model"]["dit"].update(num_heads=0)), "config.yaml: "),
        (
            lambda f: change(f, lambda c: c["model"]["dit"].update(vocabulary=30)),
            r"model.safetensors does not match config.yaml: dit.tokens.* is \[.*\], expected \[.*\] by the",
        ),
        (
            lambda f: change(f, lambda c: c["model"]["layout"].update(num_layers=4, drawn_for=4)),
            "does not match config.yaml: dit.layers.3.* is missing, expected",
        ),
        (
            lambda f: change(f, lambda c: c["model"]["layout"].update(num_layers=2, drawn_for=2)),
            r"does not match config.yaml: dit.modulations.2.weight is \[96, 16\], expected \[32, 16\]",
        ),
    ],
)
def test_a_damaged_file_or_a_mismatch_is_named(folder: Path, damage: Callable[[Path], Any], message: str) -> None:
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        load_export(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("name", ["decode", "vocoder"])
def test_damaged_decode_settings_are_named(folder: Path, name: str) -> None:
    change(folder, lambda config: config[name].update(colour="red"))
    with pytest.raises(ValueError, match=f"{name}.colour is unknown"):
        load_decoder(folder)
    assert load_pretrained(folder).model  # loading a model does not need them


def test_one_flipped_bit_in_the_weights_is_found(folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    first = 8 + int.from_bytes(whole[:8], "little")
    for place in (first, (first + len(whole)) // 2, len(whole) - 1):
        for bit in (0, 7):
            damaged = bytearray(whole)
            damaged[place] ^= 1 << bit
            path.write_bytes(damaged)
            with pytest.raises(
                ValueError, match=r"model.safetensors is damaged: the checksum of its weights is crc32"
            ):
                load_export(folder)
    path.write_bytes(whole)
    assert load_export(folder).digest == small_decoder().digest


@pytest.mark.parametrize(
    ("part", "change_to", "message"),
    [
        ("dit", {"mlp_ratio": 2_000_000}, r"is \[.*\], expected \[.*\] by the configuration"),
        ("dit", {"width": 65536}, "expected"),
        ("dit", {"vocabulary": 10**9}, r"dit.tokens.* is \[.*\], expected \[1000000001, "),
        ("dit", {"vocabulary": 10**30}, "vocabulary is 10{20,}.*: expected int"),
        ("layout", {"num_layers": 10**6}, "expected 1 to 1000"),
        ("layout", {"num_layers": 900, "drawn_for": 900}, "num_layers is 900, but there are"),
        ("layout", {"block_size": 12 * 10**9}, "expected 1 to 10000"),
        ("mel", {"sample_rate": 10**9, "f_max": 8000.0}, "sample_rate"),
        ("mel", {"n_fft": 2**28}, "n_fft"),
        ("speaker", {"channels": 8 * 10**6}, "expected"),
        ("speaker", {"crop_seconds": 1e9}, "crop_seconds is 1000000000.0: expected"),
        ("scale", {"std": float("nan")}, "std is nan: expected float"),
    ],
)
def test_sizes_are_compared_with_the_weights_before_anything_is_allocated(
    folder: Path, part: str, change_to: dict, message: str
) -> None:
    change(folder, lambda config: config["model"][part].update(change_to))
    limit = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**30, limit[1]))
    try:
        with pytest.raises(ValueError, match=message) as error:
            load_export(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limit)
    assert len(str(error.value)) < 500


def test_aliases_that_repeat_values_a_billion_times_are_refused(folder: Path) -> None:
    names = "abcdefghij"
    bomb = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n"
    for before, name in pairwise(names):
        bomb += f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for text in (bomb + "model: *j\n", "model: &a [*a]\n", "&a {model: *a}\n"):
        (folder / "config.yaml").write_text(text)
        with pytest.raises(ValueError, match=r"alias") as error:
            load_export(folder)
        assert len(str(error.value)) < 500
    (folder / "config.yaml").write_text("[" * 20_000)
    with pytest.raises(ValueError, match=r"config.yaml is nested too deeply"):
        load_export(folder)
    (folder / "config.yaml").unlink()
    os.mkfifo(folder / "config.yaml")
    with pytest.raises(FileNotFoundError, match=r"config.yaml is missing"):
        load_export(folder)


def test_an_alias_of_reasonable_size_is_read(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("first: &x [1, 2]\nsecond: *x\nthird: {<<: {a: 1}, b: 2}\n")
    assert read_yaml(tmp_path / "a.yaml") == {"first": [1, 2], "second": [1, 2], "third": {"a": 1, "b": 2}}
