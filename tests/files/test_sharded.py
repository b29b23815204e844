"""Sharded checkpoints are read without running code, and damage is reported in one line."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import checkpoint as dcp

from sf_lightning.files.sharded import empty_tensors, load_shards, read_metadata
from tests.toys.hostile import Payload

STATE: dict[str, Any] = {
    "state_dict": {"model.w": torch.arange(6.0).reshape(2, 3), "average.n": torch.tensor(7)},
    "optimizer_0": {"state": {"step": torch.tensor(2.0)}, "param_groups": [{"lr": 0.1, "betas": (0.9, 0.98)}]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Writes a sharded checkpoint of one process."""
    dcp.save(STATE, checkpoint_id=tmp_path / "last.ckpt", no_dist=True)
    return tmp_path / "last.ckpt"


def empty_state() -> dict[str, Any]:
    """Returns `STATE` with other values."""
    return {
        "state_dict": {name: torch.zeros_like(value) for name, value in STATE["state_dict"].items()},
        "optimizer_0": {"state": {"step": torch.tensor(0.0)}, "param_groups": [{"lr": 0.0, "betas": None}]},
    }


def test_tensors_and_plain_values_are_read_as_pytorch_reads_them(folder: Path) -> None:
    ours, theirs = empty_state(), empty_state()
    load_shards(ours, folder)
    dcp.load(theirs, checkpoint_id=folder, no_dist=True)
    assert repr(ours) == repr(theirs) == repr(STATE)
    weights = empty_tensors(folder, "state_dict.")
    load_shards(weights, folder)
    assert repr(weights) == repr({f"state_dict.{name}": value for name, value in STATE["state_dict"].items()})


def test_no_code_in_the_metadata_runs(folder: Path, tmp_path: Path) -> None:
    for payload in (Payload(tmp_path / "ran"), {"a": [Payload(tmp_path / "ran")]}):
        (folder / ".metadata").write_bytes(pickle.dumps(payload))
        for read in (lambda: read_metadata(folder), lambda: load_shards(empty_state(), folder)):
            with pytest.raises(ValueError, match=r"it names [\w.]+, which is refused"):
                read()
    assert not (tmp_path / "ran").exists()


def test_no_code_in_a_value_that_is_no_tensor_runs(tmp_path: Path) -> None:
    hostile = {"optimizer_0": {"param_groups": [{"lr": Payload(tmp_path / "ran")}]}}
    dcp.save(hostile, checkpoint_id=tmp_path / "bad.ckpt", no_dist=True)
    with pytest.raises(ValueError, match=r"bad.ckpt is no complete sharded checkpoint .it names [\w.]+, and only"):
        load_shards({"optimizer_0": {"param_groups": [{"lr": 0.0}]}}, tmp_path / "bad.ckpt")
    assert not (tmp_path / "ran").exists()


def edit(folder: Path, change: Callable[[Any], Any]) -> None:
    """Edits the metadata."""
    metadata = read_metadata(folder)
    change(metadata)
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))


def size_of(metadata: Any, size: tuple[int, ...]) -> None:
    """Gives one tensor another size, whole in one chunk."""
    entry = metadata.state_dict_metadata["state_dict.model.w"]
    entry.size = entry.chunks[0].sizes = torch.Size(size)


def refer_to(metadata: Any, name: str) -> None:
    """Stores another file name."""
    for info in metadata.storage_data.values():
        info.relative_path = name


def replace_by_pipe(folder: Path) -> None:
    """Replaces the shards by a named pipe, which nobody writes to."""
    (folder / "__0_0.distcp").unlink()
    os.mkfifo(folder / "__0_0.distcp")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / ".metadata").unlink(), "no such file"),
        (lambda f: (f / ".metadata").write_bytes(b""), "EOFError"),
        (lambda f: (f / ".metadata").write_bytes(pickle.dumps([1])), "it holds a list"),
        (lambda f: (f / "__0_0.distcp").unlink(), "there is no file __0_0.distcp in the folder"),
        (replace_by_pipe, "there is no file __0_0.distcp in the folder"),
        (lambda f: (f / "__0_0.distcp").write_bytes(b"x" * 9000), "is no complete sharded checkpoint"),
        (lambda f: edit(f, lambda m: refer_to(m, "../last.ckpt/__0_0.distcp")), "there is no file ../last.ckpt/__"),
        (lambda f: edit(f, lambda m: refer_to(m, "/etc/passwd")), "there is no file /etc/passwd in the folder"),
        (
            lambda f: edit(f, lambda m: size_of(m, (10**6, 10**6))),
            r"describes 4\d+ bytes of tensors, but the files",
        ),
        (lambda f: edit(f, lambda m: size_of(m, (-2, 3))), r"and size \[-2, 3\]"),
        (
            lambda f: edit(f, lambda m: m.state_dict_metadata["state_dict.model.w"].chunks.clear()),
            "has 0 values in",
        ),
        (lambda f: edit(f, lambda m: m.state_dict_metadata.update(x=3, **{"state_dict.y": 3})), None),
        (lambda f: edit(f, lambda m: setattr(m, "storage_data", None)), "AttributeError"),
    ],
)
def test_damage_is_named(folder: Path, damage: Callable[[Path], Any], message: str | None) -> None:
    damage(folder)
    if message is None:
        assert len(empty_tensors(folder, "state_dict.")) == 2
        return
    with pytest.raises(ValueError, match=message) as error:
        load_shards(empty_tensors(folder, "state_dict."), folder)
    assert str(folder) in str(error.value) and len(str(error.value)) < 500
