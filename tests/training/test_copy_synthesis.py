"""Validation of a vocoder: interrupted validations are repeated, and all rows belong to the same clips."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch

from sf_lightning.data.shards import ShardSet
from sf_lightning.training.callbacks import copy_synthesis
from sf_lightning.training.callbacks.copy_synthesis import CopySynthesis
from sf_lightning.training.datamodule import ShardDataModule
from sf_lightning.training.vocoder_module import VocoderModule
from tests.toys.decoder import decoder_data, decoder_module, fit_decoder
from tests.toys.trainer import QUIET_TRAINER
from tests.toys.vocoder import fit_vocoder, vocoder_data, vocoder_module

MODES = {"copy_synthesis", "streamed", "griffin_lim", "griffin_lim_streamed"}


def validate(
    folder: Path, datamodule: ShardDataModule, callback: CopySynthesis, module: VocoderModule | None = None
) -> None:
    """Runs one validation."""
    trainer = L.Trainer(**QUIET_TRAINER, callbacks=[callback], default_root_dir=folder)
    trainer.validate(module or vocoder_module(), datamodule, verbose=False)


def resumed(state: dict[str, Any]) -> CopySynthesis:
    """Returns the callback of a resumed run."""
    callback = CopySynthesis(keep=0, iterations=2)
    callback.load_state_dict(state)
    return callback


def test_an_interrupted_validation_is_repeated_completely(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def stop(trainer: L.Trainer) -> None:
        calls.append(trainer)
        if len(calls) == 3:  # Griffin-Lim is done, and nothing is scored yet
            raise SystemExit(75)

    callback = CopySynthesis(keep=0, iterations=2)
    with monkeypatch.context() as patch:
        patch.setattr(copy_synthesis, "stop_if_requested", stop)
        with pytest.raises(SystemExit):
            validate(tmp_path, vocoder_data(shards), callback)
    again = resumed(callback.state_dict())
    validate(tmp_path, vocoder_data(shards), again)
    assert again.rows.keys() == MODES
    assert all({"stoi", "real_time_factor"} <= row.keys() for row in again.rows.values())


def test_griffin_lim_is_evaluated_once_for_the_same_clips_and_again_for_others(
    shards: ShardSet, tmp_path: Path
) -> None:
    first = CopySynthesis(keep=0, iterations=2)
    validate(tmp_path, vocoder_data(shards), first)
    second, third = resumed(first.state_dict()), resumed(first.state_dict())
    validate(tmp_path, vocoder_data(shards), second)
    validate(tmp_path, vocoder_data(shards, val_clips=3), third)
    assert second.rows.keys() == third.rows.keys() == MODES
    assert second.rows["griffin_lim"] == first.rows["griffin_lim"]  # including its time
    assert third.rows["griffin_lim"]["mel_l1"] != first.rows["griffin_lim"]["mel_l1"]


def test_scores_of_generated_mels_are_dropped_when_mels_are_no_longer_generated(
    shards: ShardSet, tmp_path: Path
) -> None:
    first = CopySynthesis(keep=0, iterations=2)
    validate(tmp_path, vocoder_data(shards), first)
    state = first.state_dict()
    state["rows"] = state["rows"] | {"generated": state["rows"]["copy_synthesis"]}
    validate(tmp_path, vocoder_data(shards), again := resumed(state))
    assert again.rows.keys() == MODES


def test_generated_mels_do_not_depend_on_the_number_of_ranks(shards: ShardSet, tmp_path: Path) -> None:
    fit_decoder(tmp_path, decoder_module(), decoder_data(shards), 1)
    datamodule = vocoder_data(shards, mels="generated", decoder=str(tmp_path / "last.ckpt"), val_clips=4)
    module, callback = vocoder_module(), CopySynthesis(keep=0)
    datamodule.trainer = SimpleNamespace(lightning_module=module, global_rank=0, world_size=1)  # type: ignore[assignment]
    datamodule.setup("validate")
    mels = {}
    for world in (1, 2):
        for rank in range(world):
            trainer: Any = SimpleNamespace(lightning_module=module, global_rank=rank, world_size=world)
            datamodule.trainer = trainer
            clips = callback._clips(module, datamodule, trainer)
            mels[world] = mels.get(world, {}) | {clip.key: clip.generated for clip in clips}
    assert len(mels[1]) == 4 and mels[1].keys() == mels[2].keys()
    for key, mel in mels[1].items():
        assert torch.equal(mel, mels[2][key]), key


def test_a_validation_before_training_evaluates_the_initial_weights(shards: ShardSet, tmp_path: Path) -> None:
    fit_vocoder(vocoder_module(), vocoder_data(shards), 2).save_checkpoint(tmp_path / "last.ckpt")
    module, trained = vocoder_module(init_from=str(tmp_path / "last.ckpt")), vocoder_module()
    validate(tmp_path, vocoder_data(shards), CopySynthesis(keep=0, iterations=2), module)
    trained.init_from = str(tmp_path / "last.ckpt")
    trained.load_initial_weights()
    for actual, expected in zip(module.average.parameters(), trained.average.parameters(), strict=True):
        assert torch.equal(actual, expected)
    assert not torch.equal(next(module.average.parameters()), next(vocoder_module().average.parameters()))
