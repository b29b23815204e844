"""Shipped vocoders and their folders: loaded by name, refused with both values."""

import json
import warnings
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from sf_lightning.audio.mel import MelConfig, MelSpectrogram
from sf_lightning.cli.decoder_card import missing_vocoder, vocoder_text
from sf_lightning.files.identify import VOCODER_CONFIG as CONFIG
from sf_lightning.files.identify import VOCODER_WEIGHTS as WEIGHTS
from sf_lightning.model.pretrained import Description, WeightsOrigin
from sf_lightning.vocoder import config as choice
from sf_lightning.vocoder.config import VocoderConfig, shipped
from sf_lightning.vocoder.files import TrainedVocoder, save_vocoder
from sf_lightning.vocoder.griffin_lim import GriffinLim
from tests.toys.audio import synthetic_voice
from tests.toys.vocoder_files import SMALL_GENERATOR, write_vocoder


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ships one vocoder with the package, called tiny."""
    monkeypatch.setattr(choice, "SHIPPED", tmp_path / "weights")
    write_vocoder(tmp_path / "weights" / "tiny")
    return tmp_path / "weights"


@torch.inference_mode()
def test_a_shipped_vocoder_is_loaded_by_name_and_a_folder_by_path(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mel = torch.randn(1, 20, 80, generator=torch.Generator().manual_seed(0))
    named = VocoderConfig("tiny").make(MelConfig()).decode(mel)
    assert shipped() == ["tiny"] and named.abs().max() > 0
    assert torch.equal(named, VocoderConfig(str(weights / "tiny")).make(MelConfig()).decode(mel))
    monkeypatch.chdir(tmp_path)
    Path("tiny").mkdir()
    with pytest.raises(ValueError, match="vocoder: tiny is nothing that sf-lightning can load: expected"):
        VocoderConfig("./tiny").make(MelConfig())


def test_a_shipped_vocoder_of_another_mel_is_refused_with_both_values_and_an_alternative(
    weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = MelConfig(hop_length=200)
    with pytest.raises(ValueError, match=r"its hop_size is 160, the mel of this run has 200$"):
        VocoderConfig("tiny").make(other)
    monkeypatch.setattr(choice, "DEFAULT", "tiny")
    with pytest.raises(ValueError, match=r"has 200; it is the default, griffin_lim accepts any mel"):
        VocoderConfig("tiny").make(other)
    for name in (None, "griffin_lim"):
        assert isinstance(VocoderConfig(name).make(other), GriffinLim)


def test_the_card_of_a_decoder_does_not_ask_for_a_shipped_vocoder(weights: Path) -> None:
    def describe(checkpoint: str | None) -> Description:
        return Description(None, None, None, {}, asdict(VocoderConfig(checkpoint)))  # type: ignore[arg-type]

    assert vocoder_text(VocoderConfig("tiny")) == "`tiny`, shipped with sf-lightning"
    assert [missing_vocoder(describe(name)) for name in (None, "griffin_lim", "tiny", "x/y")] == [
        None,
        None,
        None,
        "x/y",
    ]


def test_a_folder_is_written_whole_or_not_at_all_and_replaces_nothing(tmp_path: Path) -> None:
    folder = write_vocoder(tmp_path / "out")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", WEIGHTS, CONFIG]
    broken = TrainedVocoder({"a": None}, SMALL_GENERATOR, MelConfig(), WeightsOrigin(1, True))  # type: ignore[dict-item]
    with pytest.raises(FileExistsError, match="out exists already"):
        save_vocoder(folder, broken, "")
    with pytest.raises(AttributeError):
        save_vocoder(tmp_path / "bad", broken, "")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_damaged_file_in_a_folder_is_named(tmp_path: Path) -> None:
    folder = write_vocoder(tmp_path / "out")
    tensors = load_file(folder / WEIGHTS)
    save_file({**tensors, "conv_pre.bias": torch.zeros(3)}, folder / WEIGHTS)
    with pytest.raises(ValueError, match=r"out: conv_pre.bias is \[3\], expected \[16\] by its configuration"):
        VocoderConfig(str(folder)).make(MelConfig())
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{WEIGHTS} is no complete safetensors file"):
        VocoderConfig(str(folder)).make(MelConfig())
    (folder / CONFIG).write_text(json.dumps({})[:1])
    with pytest.raises(ValueError, match=rf"{CONFIG} is no JSON"):
        VocoderConfig(str(folder)).make(MelConfig())
    for change, message in (
        (lambda h: h.pop("upsample_rates"), f"{CONFIG}: hyperparameters.upsample_rates is missing"),
        (lambda h: h.update(activation="relu"), f"{CONFIG}: .*activation is .relu.: expected snake or snakebeta"),
    ):
        h = SMALL_GENERATOR.hyperparameters(MelConfig())
        change(h)
        (folder / CONFIG).write_text(json.dumps(h))
        with pytest.raises(ValueError, match=message):
            VocoderConfig(str(folder)).make(MelConfig())
    (folder / CONFIG).write_text("[1]")
    with pytest.raises(ValueError, match=f"{CONFIG} is no JSON of hyperparameters"):
        VocoderConfig(str(folder)).make(MelConfig())
    (folder / CONFIG).unlink()
    with pytest.raises(FileNotFoundError, match=rf"{CONFIG} is missing"):
        VocoderConfig(str(folder)).make(MelConfig())


def test_a_shipped_vocoder_is_small_restores_mels_and_names_its_training_data() -> None:
    assert choice.DEFAULT in (choice.GRIFFIN_LIM, *shipped())
    for name in shipped():
        folder = choice.SHIPPED / name
        assert (folder / WEIGHTS).stat().st_size <= 8_000_000
        card = (folder / "README.md").read_text()
        assert "Attribution" in card and "TO BE FILLED IN" not in card
        with warnings.catch_warnings(action="error", category=FutureWarning):  # users cannot act on torch's warning
            vocoder = VocoderConfig(name).make(MelConfig())
        to_mel = MelSpectrogram(MelConfig())
        mel = to_mel(torch.from_numpy(synthetic_voice(2, 120, seed=0)).float()[None])
        with torch.inference_mode():
            error = (to_mel(vocoder.decode(mel)) - mel).abs().mean()
        assert error < 0.5 < (to_mel(torch.zeros(1, 32000)) - mel).abs().mean() / 4
        VocoderConfig(name).make(MelConfig())
