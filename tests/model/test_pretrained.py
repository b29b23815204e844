"""Exported decoders: bit-exact loading of all formats so far, and errors that name the damage."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import load_file

from sf_lightning.audio.mel import MelConfig
from sf_lightning.files.formats import EXPORT_FORMAT
from sf_lightning.model.pretrained import (
    Description,
    Pretrained,
    WeightsOrigin,
    load_export,
    save_export,
)
from sf_lightning.streaming.loading import load_decoder, load_pretrained, make_decoder
from sf_lightning.vocoder.bigvgan import BigVGANVocoder
from sf_lightning.vocoder.config import VocoderConfig
from sf_lightning.vocoder.griffin_lim import GriffinLim
from tests.toys.exports import change, small_decoder, write_export
from tests.toys.vocoder_files import write_vocoder

EXPORTS = Path(__file__).parent / "exports"
"""One folder for each format, `small_decoder` as the version of its time wrote it; `decoded.npz` is the mel that it
decoded for some tokens."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Returns the folder of a decoder."""
    return write_export(tmp_path / "tiny")


def test_a_digest_depends_on_weights_and_settings_but_not_on_the_version_that_wrote_them(folder: Path) -> None:
    trained = small_decoder()
    assert len(trained.digest) == 16 and load_export(folder).digest == trained.digest
    for other in ({"decode": trained.description.decode | {"seed": 6}}, {"weights": WeightsOrigin(8, True)}):
        assert Pretrained(trained.model, replace(trained.description, **other)).digest != trained.digest
    other = Pretrained(trained.model, replace(trained.description, written_by="sf-lightning 99"))
    assert other.digest == trained.digest
    with torch.no_grad():
        next(trained.model.parameters()).flatten()[0] += 1e-3
    assert other.digest == trained.digest != load_export(folder).digest


def test_a_saved_decoder_loads_bit_exactly(folder: Path) -> None:
    saved, loaded = small_decoder(), load_export(folder)
    assert loaded.description == saved.description and not loaded.model.training
    weights = saved.model.state_dict()
    assert weights.keys() == loaded.model.state_dict().keys() == load_file(folder / "model.safetensors").keys()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.model.state_dict().items())
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "config.yaml", "model.safetensors"]
    assert [path.name for path in folder.parent.iterdir()] == ["tiny"]


def test_the_digest_of_a_stored_export_is_unchanged() -> None:
    assert load_export(EXPORTS / "format-1").digest == "8759f2da5f7cb9e8"  # evaluations store it


def test_an_export_of_the_current_format_is_stored() -> None:
    assert (EXPORTS / f"format-{EXPORT_FORMAT}").is_dir()


@pytest.mark.parametrize("stored", sorted(EXPORTS.iterdir()), ids=lambda path: path.name)
def test_an_export_of_each_format_decodes_the_mel_that_is_stored_with_it(stored: Path) -> None:
    recorded = np.load(stored / "decoded.npz")
    decoder = load_decoder(stored)
    assert (decoder.config.steps, decoder.config.seed, decoder.model.layout.block_size) == (3, 5, 12)
    stream = decoder.open(torch.from_numpy(recorded["speaker"]))
    stream.feed(torch.from_numpy(recorded["tokens"]))
    stream.end()
    mel = torch.cat([decoder.step([stream])[0].mel for _ in range(4)])
    np.testing.assert_allclose(mel.numpy(), recorded["mel"], atol=1e-3)
    assert recorded["mel"].std() > 0.5  # not silence


def test_a_setting_that_an_older_version_did_not_have_is_the_default(folder: Path) -> None:
    change(folder, lambda config: config["model"]["speaker"].pop("encoder"))
    assert load_export(folder).model.speaker.encoder == "joint"


def test_a_folder_that_cannot_be_completed_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: Any) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr(Description, "write", full)
    with pytest.raises(OSError, match="no space"):
        save_export(tmp_path / "tiny", small_decoder(), "A card.\n")
    assert list(tmp_path.iterdir()) == []


def test_an_existing_folder_is_not_replaced_even_if_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    with pytest.raises(FileExistsError, match="tiny exists already: give another path"):
        save_export(tmp_path / "tiny", small_decoder(), "A card.\n")
    assert list(tmp_path.iterdir()) == [tmp_path / "tiny"] and not list((tmp_path / "tiny").iterdir())


def test_a_repository_of_the_hub_is_downloaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(name: str, revision: str | None, allow_patterns: list[str], **others: Any) -> str:
        assert name == "owner/name" and {"config.yaml", "model.safetensors"} <= {*allow_patterns}
        assert revision is None and others == {"token": None, "cache_dir": None}
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    model = load_pretrained("owner/name").model
    assert torch.equal(model.dit.from_mel.weight, small_decoder().model.dit.from_mel.weight) and not model.training


@pytest.mark.parametrize(
    ("name", "message"),
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
def test_a_name_that_does_not_exist_gets_one_line(name: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(*args: Any, **kwargs: Any) -> str:
        assert name == "owner/name"
        raise LocalEntryNotFoundError("no such thing\nand much more to read")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    with pytest.raises(FileNotFoundError, match=message) as error:
        load_pretrained(name)
    assert "\n" not in str(error.value)


def test_a_missing_vocoder_of_training_can_be_replaced(folder: Path) -> None:
    trained = load_export(folder)
    lost = replace(trained.description, vocoder={"checkpoint": "/nowhere/g.pt"})
    with pytest.raises(FileNotFoundError, match=r"vocoder: no file or folder /nowhere/g\.pt"):
        make_decoder(trained._replace(description=lost))
    assert make_decoder(trained._replace(description=lost), VocoderConfig(), steps=2).config.steps == 2


def test_a_decoder_is_loaded_with_another_vocoder_and_other_settings(folder: Path, tmp_path: Path) -> None:
    mel = small_decoder().description.model.mel
    decoder = load_decoder(folder, vocoder=str(write_vocoder(tmp_path / "vocoder", mel=mel)), steps=2, lookahead=3)
    assert isinstance(decoder.vocoder, BigVGANVocoder)
    assert (decoder.config.steps, decoder.config.lookahead, decoder.config.seed) == (2, 3, 5)
    assert isinstance(load_decoder(folder, vocoder="griffin_lim").vocoder, GriffinLim)
    with pytest.raises(ValueError, match=r"decode option step is unknown: expected one of .*steps"):
        load_decoder(folder, step=2)


def test_a_stored_null_vocoder_is_griffin_lim(folder: Path) -> None:
    change(folder, lambda config: config["vocoder"].update(checkpoint=None))
    vocoder = load_decoder(folder).vocoder
    assert isinstance(vocoder, GriffinLim) and vocoder.iterations == 4
    assert VocoderConfig(None) == VocoderConfig("griffin_lim") == VocoderConfig()


def test_a_vocoder_may_be_a_repository_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_vocoder(tmp_path / "vocoder")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, **options: str(folder))
    local = VocoderConfig(str(folder)).make(MelConfig())
    assert VocoderConfig("owner/name@main").make(MelConfig()).digest == local.digest
