"""Files of Qwen2.5-Omni: every form gives the same tensors of a component; damage is named."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from sf_lightning.files.torch_files import read_torch
from sf_lightning.model.qwen_files import read_qwen

DIT, BIGVGAN = "code2wav_dit_model", "code2wav_bigvgan_model"

OWN = {
    "proj_out.weight": torch.arange(6.0).view(2, 3),
    "proj_out.bias": torch.ones(2, dtype=torch.bfloat16),
    "layers.0.norm.weight": torch.zeros(3),
}

CONFIG = {"token2wav_config": {"dit_config": {"depth": 2}, "bigvgan_config": {"mel_dim": 80}}}


def add_prefix(prefix: str, state: dict[str, Tensor] = OWN) -> dict[str, Tensor]:
    """Returns the tensors with a prefix before their names."""
    return {prefix + name: tensor for name, tensor in state.items()}


def complete_model() -> dict[str, Tensor]:
    """Returns the tensors of a complete model: both components and a talker."""
    other = {f"token2wav.{BIGVGAN}.conv_pre.bias": torch.zeros(4), "talker.proj_out.bias": torch.ones(5)}
    return add_prefix(f"token2wav.{DIT}.") | other


def save_shards(folder: Path, state: dict[str, Tensor], count: int = 3) -> None:
    """Saves the tensors in several shards, with their index."""
    names = [f"model-{n + 1:05d}-of-{count:05d}.safetensors" for n in range(count)]
    weight_map = {key: names[i % count] for i, key in enumerate(state)}
    for name in names:
        save_file({key: state[key] for key, shard in weight_map.items() if shard == name}, folder / name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def assert_own(tensors: dict[str, Tensor]) -> None:
    """Checks that these are the tensors of the component, as they were stored."""
    assert tensors.keys() == OWN.keys()
    for name, tensor in OWN.items():
        torch.testing.assert_close(tensors[name], tensor, atol=0, rtol=0)


def test_a_folder_of_shards_gives_one_component_and_its_section_of_the_config(tmp_path: Path) -> None:
    save_shards(tmp_path, complete_model())
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    tensors, config = read_qwen(tmp_path, DIT)
    assert_own(tensors)
    assert config == {"depth": 2}
    tensors, config = read_qwen(tmp_path, BIGVGAN)
    assert list(tensors) == ["conv_pre.bias"] and config == {"mel_dim": 80}


def test_a_shard_without_the_component_may_be_missing(tmp_path: Path) -> None:
    save_shards(tmp_path, complete_model(), count=5)  # one tensor per shard
    for unneeded in (4, 5):
        (tmp_path / f"model-{unneeded:05d}-of-00005.safetensors").unlink()
    assert_own(read_qwen(tmp_path, DIT)[0])
    with pytest.raises(FileNotFoundError, match=r"model-00004-of-00005.safetensors is missing, which .*index.json"):
        read_qwen(tmp_path, BIGVGAN)


def test_without_an_index_all_safetensors_of_a_folder_are_read(tmp_path: Path) -> None:
    save_file(add_prefix(f"{DIT}."), tmp_path / "a.safetensors")
    save_file({"talker.bias": torch.ones(1)}, tmp_path / "b.safetensors")
    tensors, config = read_qwen(tmp_path, DIT)
    assert_own(tensors)
    assert config == {}


@pytest.mark.parametrize("prefix", [f"token2wav.{DIT}.", f"{DIT}.", f"model.token2wav.{DIT}.", ""])
@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "w.bin", "old.pth"])
def test_a_file_gives_the_component_under_any_prefix(tmp_path: Path, prefix: str, name: str) -> None:
    path = tmp_path / name
    if path.suffix == ".safetensors":
        save_file(add_prefix(prefix), path)
    else:
        torch.save(add_prefix(prefix), path, _use_new_zipfile_serialization=name != "old.pth")
    (tmp_path / "config.json").write_text(json.dumps(CONFIG["token2wav_config"]))  # the config of token2wav alone
    tensors, config = read_qwen(path, DIT)
    assert_own(tensors)
    assert config == {"depth": 2}


@pytest.mark.parametrize("config", [{}, {"token2wav_config": None}, {"token2wav_config": {"dit_config": None}}])
def test_a_config_without_the_section_is_empty(tmp_path: Path, config: dict) -> None:
    torch.save(OWN, tmp_path / "w.pt")
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert read_qwen(tmp_path / "w.pt", DIT)[1] == {}


def test_names_without_a_prefix_are_ignored_beside_names_with_one(tmp_path: Path) -> None:
    torch.save(add_prefix(f"{DIT}.") | {"stray": torch.ones(1)}, tmp_path / "w.pt")
    assert_own(read_qwen(tmp_path / "w.pt", DIT)[0])
    with pytest.raises(ValueError, match=rf"w.pt: no tensor of {BIGVGAN} in it: it has {DIT}.proj_out.weight, "):
        read_qwen(tmp_path / "w.pt", BIGVGAN)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"w.safetensors is missing: expected {DIT} in a model folder"):
        read_qwen(tmp_path / "w.safetensors", DIT)
    with pytest.raises(FileNotFoundError, match=r"has neither model.safetensors.index.json nor any \*.safetensors"):
        read_qwen(tmp_path, DIT)


@pytest.mark.parametrize("kept", [0, 5, 40, -4])
def test_a_truncated_shard_is_named(tmp_path: Path, kept: int) -> None:
    save_shards(tmp_path, complete_model(), count=2)
    shard = tmp_path / "model-00002-of-00002.safetensors"
    shard.write_bytes(shard.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"model-00002-of-00002.safetensors is no complete safetensors file"):
        read_qwen(tmp_path, DIT)


def test_a_shard_of_another_download_is_named(tmp_path: Path) -> None:
    save_shards(tmp_path, complete_model(), count=2)
    save_file({"x": torch.ones(1)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"model-00001-of-00002.safetensors does not hold token2wav"):
        read_qwen(tmp_path, DIT)


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "is no JSON"), ("[]", "holds a list: expected a JSON object"), ("{}", "has no weight_map")],
)
def test_a_damaged_index_is_named(tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(ValueError, match=f"index.json {message}"):
        read_qwen(tmp_path, DIT)


@pytest.mark.parametrize("content", [b"", b"hello world\n", b"PK", b"P" * 100])
def test_an_unreadable_torch_file_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(ValueError, match=r"w.pt is no readable file of torch weights"):
        read_torch(tmp_path / "w.pt")


def test_a_truncated_torch_file_is_named(tmp_path: Path) -> None:
    torch.save(OWN, tmp_path / "w.pt")
    (tmp_path / "w.pt").write_bytes((tmp_path / "w.pt").read_bytes()[:-30])
    with pytest.raises(ValueError, match=r"w.pt is no readable file of torch weights"):
        read_qwen(tmp_path / "w.pt", DIT)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (torch.ones(2), "holds a Tensor: expected a state dict"),
        ({"generator": dict(OWN)}, "holds a dict under 'generator': expected a state dict, of tensors only"),
        ({}, f"no tensor of {DIT} in it: it has nothing"),
    ],
)
def test_a_torch_file_without_the_component_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=f"w.pt.*{message}"):
        read_qwen(tmp_path / "w.pt", DIT)
