"""Kinds of files and folders are identified from names and headers; ids of the hub are downloaded as folders."""

import json
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from sf_lightning.files.hub import local_path
from sf_lightning.files.identify import DECODERS, Kind, identify, require_kind
from tests.toys.hostile import Payload

FILES: dict[str, tuple[Kind, Any]] = {
    "decoder.ckpt": (Kind.DECODER_CHECKPOINT, {"hyper_parameters": {"dit": {}}, "state_dict": {}}),
    "vocoder.ckpt": (Kind.VOCODER_CHECKPOINT, {"hyper_parameters": {"generator": {}}, "state_dict": {}}),
    "g.pt": (Kind.BIGVGAN, {"generator": {"conv_pre.bias": torch.zeros(1)}}),
    "qwen.pt": (Kind.QWEN, {"token2wav.code2wav_dit_model.proj_out.bias": torch.zeros(1)}),
    "dit.pt": (Kind.QWEN, {"transformer_blocks.0.attn.to_q.bias": torch.zeros(1)}),
    "other.pt": (Kind.UNKNOWN, {"epoch": 1}),
    "list.pt": (Kind.UNKNOWN, [1]),
}


@pytest.mark.parametrize("name", FILES)
def test_a_torch_file_is_identified_by_its_entries(tmp_path: Path, name: str) -> None:
    kind, content = FILES[name]
    torch.save(content, tmp_path / name)
    assert identify(tmp_path / name) is kind
    torch.save(content, tmp_path / name, _use_new_zipfile_serialization=False)
    assert identify(tmp_path / name) is kind


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        (["config.yaml", "model.safetensors"], Kind.DECODER_EXPORT),
        (["config.json", "bigvgan_generator.safetensors"], Kind.BIGVGAN),
        (["config.json", "bigvgan_generator.pt"], Kind.BIGVGAN),
        (["config.json", "model.safetensors"], Kind.QWEN),
        (["config.json", "model.safetensors.index.json"], Kind.QWEN),
        (["meta.pt", ".metadata", "__0_0.distcp"], Kind.DECODER_CHECKPOINT),
        (["checkpoints/last.ckpt", "config.yaml"], Kind.RUN),
        (["manifest.json", "00000.tar"], Kind.SHARD_SET),
        (["config.json"], Kind.UNKNOWN),
        ([], Kind.UNKNOWN),
    ],
)
def test_a_folder_is_identified_by_its_files(tmp_path: Path, files: list[str], kind: Kind) -> None:
    for name in files:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert identify(tmp_path) is kind


def test_a_safetensors_file_is_identified_by_its_name(tmp_path: Path) -> None:
    for name, kind in (("bigvgan_generator.safetensors", Kind.BIGVGAN), ("a.safetensors", Kind.QWEN)):
        save_file({"a": torch.zeros(1)}, tmp_path / name)
        assert identify(tmp_path / name) is kind


def test_no_code_in_a_file_runs(tmp_path: Path) -> None:
    torch.save({"hyper_parameters": Payload(tmp_path / "ran")}, tmp_path / "bad.ckpt")
    assert identify(tmp_path / "bad.ckpt") is Kind.UNKNOWN
    assert not (tmp_path / "ran").exists()


def test_another_kind_is_refused_with_the_found_and_the_expected_kind(tmp_path: Path) -> None:
    torch.save(FILES["vocoder.ckpt"][1], tmp_path / "v.ckpt")
    with pytest.raises(ValueError, match=r"v.ckpt is a vocoder checkpoint of .*, which --vocoder takes: expected"):
        require_kind(tmp_path / "v.ckpt", *DECODERS)
    with pytest.raises(FileNotFoundError, match=r"no file or folder nothing.ckpt: expected a decoder checkpoint"):
        require_kind(Path("nothing.ckpt"), *DECODERS)
    (tmp_path / "text.ckpt").write_text("hello")
    with pytest.raises(ValueError, match=r"text.ckpt is no readable file of torch weights"):
        require_kind(tmp_path / "text.ckpt", *DECODERS)


def test_an_existing_path_is_never_looked_up_on_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    assert local_path("owner/name") == Path("owner/name")
    for name in ("runs/last.ckpt", "a/b/c", "owne/", "weights.safetensors", "~/x"):
        with pytest.raises(FileNotFoundError, match=rf"no file or folder {name}; a repository .* is OWNER/NAME"):
            local_path(name)


def test_an_id_is_downloaded_with_its_revision_and_only_the_needed_files_of_qwen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, dict[str, Any]]] = []

    def snapshot_download(name: str, **options: Any) -> str:
        calls.append((name, options))
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert local_path("owner/name@v1", revision="main", token="secret", cache_dir=tmp_path) == tmp_path
    (name, options), *rest = calls
    assert name == "owner/name" and not rest
    assert (options["revision"], options["token"], options["cache_dir"]) == ("v1", "secret", tmp_path)
    assert {"config.yaml", "model.safetensors", "bigvgan_generator.safetensors"} <= {*options["allow_patterns"]}
    shards = {"thinker.x": "1.safetensors", "token2wav.code2wav_dit_model.x": "2.safetensors"}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    local_path("owner/name", revision="v2")
    assert [call[1]["revision"] for call in calls[1:]] == ["v2", "v2"]
    assert calls[-1][1]["allow_patterns"] == ["2.safetensors"]
