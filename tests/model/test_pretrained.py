"""Trained decoders in folders: what is saved comes back to the bit, what is damaged is named, what is old loads."""

from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
import yaml
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

from sf_lightning.audio.mel import MelConfig
from sf_lightning.files.formats import EXPORT_FORMAT
from sf_lightning.model.dit import DiTConfig
from sf_lightning.model.layout import Layout
from sf_lightning.model.pretrained import (
    Description,
    ModelConfig,
    Pretrained,
    TokenizerName,
    WeightsOrigin,
    load_export,
    save_export,
)
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import MelScale, StreamFlow
from sf_lightning.streaming.loading import load_decoder, load_pretrained, make_decoder
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.vocoder.config import VocoderConfig
from tests.toys.networks import randomize_weights

EXPORTS = Path(__file__).parent / "exports"
"""One folder for each format that there ever was, `tiny` as the version of its time wrote it; `decoded.npz` is
the mel that it gave for some tokens."""


def tiny() -> Pretrained:
    """A decoder that says something in few bytes, with nothing as it is by default."""
    config = ModelConfig(
        Layout(3, 12, (0,), (1,), drawn_for=3),
        DiTConfig(width=16, num_heads=2, rope_heads=1, token_width=6, speaker_width=5, vocabulary=20),
        MelConfig(win_length=800, f_max=7600.0),
        MelScale(-4.5, 2.0),
        SpeakerConfig(channels=8, crop_seconds=0.5),
        "velocity",
    )
    model = randomize_weights(
        StreamFlow(config.layout, config.dit, config.mel, config.scale, config.speaker, config.predict)
    )
    assert isinstance(model, StreamFlow)
    decode = DecodeConfig(steps=3, method="midpoint", guidance=0.7, temperature=0.9, seed=5)
    description = Description(
        config,
        TokenizerName("kmeans", "abc"),
        WeightsOrigin(7, True),
        asdict(decode),
        asdict(VocoderConfig(None, 4)),
    )
    return Pretrained(model, description)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A decoder's folder."""
    save_export(tmp_path / "tiny", tiny(), "A card.\n")
    return tmp_path / "tiny"


def test_a_digest_is_of_the_weights_and_how_they_decode_whoever_wrote_them(folder: Path) -> None:
    trained = tiny()
    assert len(trained.digest) == 16 and load_export(folder).digest == trained.digest
    for change in ({"decode": trained.description.decode | {"seed": 6}}, {"weights": WeightsOrigin(8, True)}):
        assert Pretrained(trained.model, replace(trained.description, **change)).digest != trained.digest
    other = Pretrained(trained.model, replace(trained.description, written_by="sf-lightning 99"))
    assert other.digest == trained.digest
    with torch.no_grad():
        next(trained.model.parameters()).flatten()[0] += 1e-3
    assert other.digest == trained.digest != load_export(folder).digest


def test_what_is_saved_comes_back_to_the_bit(folder: Path) -> None:
    saved, loaded = tiny(), load_export(folder)
    assert loaded.description == saved.description and not loaded.model.training
    weights = saved.model.state_dict()
    assert weights.keys() == loaded.model.state_dict().keys() == load_file(folder / "model.safetensors").keys()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.model.state_dict().items())
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.yaml", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_the_present_format_is_stored() -> None:
    assert (EXPORTS / f"format-{EXPORT_FORMAT}").is_dir()


@pytest.mark.parametrize("stored", sorted(EXPORTS.iterdir()), ids=lambda path: path.name)
def test_a_folder_of_any_format_there_was_gives_the_mel_that_it_gave(stored: Path) -> None:
    recorded = np.load(stored / "decoded.npz")
    decoder = load_decoder(stored)
    assert (decoder.config.steps, decoder.config.seed, decoder.model.layout.block_size) == (3, 5, 12)
    stream = decoder.open(torch.from_numpy(recorded["speaker"]))
    stream.feed(torch.from_numpy(recorded["tokens"]))
    stream.end()
    mel = torch.cat([decoder.step([stream])[0].mel for _ in range(4)])
    np.testing.assert_allclose(mel.numpy(), recorded["mel"], atol=1e-3)
    assert recorded["mel"].std() > 0.5  # it says something


def test_a_setting_that_an_older_version_did_not_know_is_the_default(folder: Path) -> None:
    change(folder, lambda config: config["model"]["speaker"].pop("encoder"))
    assert load_export(folder).model.speaker.encoder == "joint"


def change(folder: Path, edit: Callable[[dict], Any]) -> None:
    """Edits `config.yaml`."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    edit(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def cut(path: Path) -> None:
    """Leaves the first half of a file."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (
            lambda f: (f / "model.safetensors").unlink(),
            "model.safetensors is missing: expected both files of a folder that sf-exp",
        ),
        (lambda f: (f / "config.yaml").unlink(), "config.yaml is missing"),
        (lambda f: cut(f / "model.safetensors"), "model.safetensors is no complete safetensors file"),
        (lambda f: (f / "config.yaml").write_bytes(b"\xff\x00"), "config.yaml: "),
        (lambda f: (f / "config.yaml").write_text("a: [1"), "config.yaml: "),
        (lambda f: (f / "config.yaml").write_text(""), "config.yaml: None: expected names and values"),
        (lambda f: cut(f / "config.yaml"), "config.yaml: "),
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
        (lambda f: change(f, lambda c: c["model"]["layout"].update(forward=[9])), "layout.forward names layer 9"),
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
            "does not match config.yaml: dit.layers.2.*, which the network does not have",
        ),
    ],
)
def test_what_is_damaged_or_does_not_fit_is_named(folder: Path, damage: Callable[[Path], Any], said: str) -> None:
    damage(folder)
    with pytest.raises((ValueError, FileNotFoundError), match=said) as error:
        load_export(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("name", ["decode", "vocoder"])
def test_settings_of_decoding_that_are_damaged_are_named(folder: Path, name: str) -> None:
    change(folder, lambda config: config[name].update(colour="red"))
    with pytest.raises(ValueError, match=f"{name}.colour is unknown"):
        load_decoder(folder)
    assert load_pretrained(folder).model  # which does not need them


def test_a_folder_that_could_not_be_written_whole_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Description, "write", full)
    with pytest.raises(OSError, match="no space"):
        save_export(tmp_path / "tiny", tiny(), "A card.\n")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_not_even_an_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    with pytest.raises(FileExistsError, match="tiny exists already: give another path"):
        save_export(tmp_path / "tiny", tiny(), "A card.\n")
    assert list(tmp_path.iterdir()) == [tmp_path / "tiny"] and not list((tmp_path / "tiny").iterdir())


def test_an_id_of_the_hub_is_brought_from_there(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str], **others: Any) -> str:
        assert name == "owner/name" and {"config.yaml", "model.safetensors"} <= {*allow_patterns}
        assert revision is None and others == {"token": None, "cache_dir": None}
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = load_pretrained("owner/name").model
    assert torch.equal(model.dit.from_mel.weight, tiny().model.dit.from_mel.weight) and not model.training


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("owner/name", "no file or folder owner/name, and the hub does not provide it .no such thing."),
        (
            "/nowhere/decoder",
            "no file or folder /nowhere/decoder; a repository of the Hugging Face hub is OWNER/NAME",
        ),
        ("./decoder", "no file or folder ./decoder; a repo"),
        ("decoder", "no file or folder decoder; a repo"),
    ],
)
def test_a_name_of_nothing_is_said_in_one_line(name: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*args: Any, **kwargs: Any) -> str:
        assert name == "owner/name"
        raise LocalEntryNotFoundError("no such thing\nand much more to read")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(FileNotFoundError, match=said) as error:
        load_pretrained(name)
    assert "\n" not in str(error.value)


def test_the_vocoder_may_be_another(folder: Path) -> None:
    trained = load_export(folder)
    lost = replace(trained.description, vocoder={"checkpoint": "/nowhere/g.pt"})
    with pytest.raises(FileNotFoundError, match=r"vocoder: no file or folder /nowhere/g\.pt"):
        make_decoder(trained._replace(description=lost))
    assert make_decoder(trained._replace(description=lost), VocoderConfig(), steps=2).config.steps == 2
