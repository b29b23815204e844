"""Exported decoders: bit-exact loading of all formats so far, and errors that name the damage."""

import os
import resource
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import pairwise
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
from sf_lightning.files.yaml_files import read_yaml
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
from sf_lightning.vocoder.bigvgan import BigVGANVocoder
from sf_lightning.vocoder.config import VocoderConfig
from sf_lightning.vocoder.griffin_lim import GriffinLim
from tests.toys.networks import randomize_weights
from tests.toys.vocoder_files import write_vocoder

EXPORTS = Path(__file__).parent / "exports"
"""One folder for each format, `small_decoder` as the version of its time wrote it; `decoded.npz` is the mel that it
decoded for some tokens."""


def small_decoder() -> Pretrained:
    """Returns a small decoder whose output depends on its inputs, with no setting at its default."""
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
    """Writes the folder of a decoder."""
    save_export(tmp_path / "tiny", small_decoder(), "A card.\n")
    return tmp_path / "tiny"


def test_a_digest_depends_on_weights_and_settings_but_not_on_the_version_that_wrote_them(folder: Path) -> None:
    trained = small_decoder()
    assert len(trained.digest) == 16 and load_export(folder).digest == trained.digest
    for change in ({"decode": trained.description.decode | {"seed": 6}}, {"weights": WeightsOrigin(8, True)}):
        assert Pretrained(trained.model, replace(trained.description, **change)).digest != trained.digest
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


def change(folder: Path, edit: Callable[[dict], Any]) -> None:
    """Edits `config.yaml`."""
    config = yaml.safe_load((folder / "config.yaml").read_text())
    edit(config)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))


def cut(path: Path) -> None:
    """Truncates a file to its first half."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


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
