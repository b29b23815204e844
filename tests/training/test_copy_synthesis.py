"""Validation of a vocoder: what is interrupted is heard again, and rows stand beside rows of the same clips."""

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

WAYS = {"copy_synthesis", "streamed", "griffin_lim", "griffin_lim_streamed"}


def listen(
    folder: Path, datamodule: ShardDataModule, callback: CopySynthesis, module: VocoderModule | None = None
) -> None:
    """One validation."""
    trainer = L.Trainer(
        **QUIET_TRAINER,
        callbacks=[callback],
        default_root_dir=folder,
    )
    trainer.validate(module or vocoder_module(), datamodule, verbose=False)


def heard(state: dict[str, Any]) -> CopySynthesis:
    """The callback of a run that goes on."""
    callback = CopySynthesis(keep=0, iterations=2)
    callback.load_state_dict(state)
    return callback


def test_a_validation_that_is_left_in_its_middle_is_heard_again_and_whole(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def leave(trainer: L.Trainer) -> None:
        calls.append(trainer)
        if len(calls) == 3:  # Griffin-Lim has been made, and nothing is scored
            raise SystemExit(75)

    callback = CopySynthesis(keep=0, iterations=2)
    with monkeypatch.context() as patch:
        patch.setattr(copy_synthesis, "between", leave)
        with pytest.raises(SystemExit):
            listen(tmp_path, vocoder_data(shards), callback)
    again = heard(callback.state_dict())
    listen(tmp_path, vocoder_data(shards), again)
    assert again.rows.keys() == WAYS
    assert all({"stoi", "real_time_factor"} <= row.keys() for row in again.rows.values())


def test_griffin_lim_is_heard_once_for_the_same_clips_and_again_for_others(
    shards: ShardSet, tmp_path: Path
) -> None:
    first = CopySynthesis(keep=0, iterations=2)
    listen(tmp_path, vocoder_data(shards), first)
    second, third = heard(first.state_dict()), heard(first.state_dict())
    listen(tmp_path, vocoder_data(shards), second)
    listen(tmp_path, vocoder_data(shards, val_clips=3), third)
    assert second.rows.keys() == third.rows.keys() == WAYS
    assert second.rows["griffin_lim"] == first.rows["griffin_lim"]  # its time too
    assert third.rows["griffin_lim"]["mel_l1"] != first.rows["griffin_lim"]["mel_l1"]


def test_scores_of_mels_that_are_no_more_generated_are_gone(shards: ShardSet, tmp_path: Path) -> None:
    first = CopySynthesis(keep=0, iterations=2)
    listen(tmp_path, vocoder_data(shards), first)
    state = first.state_dict()
    state["rows"] = state["rows"] | {"generated": state["rows"]["copy_synthesis"]}
    listen(tmp_path, vocoder_data(shards), again := heard(state))
    assert again.rows.keys() == WAYS


def test_the_mels_that_a_decoder_makes_of_the_clips_are_the_same_on_any_number_of_ranks(
    shards: ShardSet, tmp_path: Path
) -> None:
    fit_decoder(tmp_path, decoder_module(), decoder_data(shards), 1)
    datamodule = vocoder_data(shards, mels="generated", decoder=str(tmp_path / "last.ckpt"), val_clips=4)
    module, callback = vocoder_module(), CopySynthesis(keep=0)
    datamodule.trainer = SimpleNamespace(lightning_module=module, global_rank=0, world_size=1)  # type: ignore[assignment]
    datamodule.setup("validate")
    made = {}
    for world in (1, 2):
        for rank in range(world):
            trainer: Any = SimpleNamespace(lightning_module=module, global_rank=rank, world_size=world)
            datamodule.trainer = trainer
            made[world] = made.get(world, {}) | {
                each.key: each.generated for each in callback._clips(module, datamodule, trainer)
            }
    assert len(made[1]) == 4 and made[1].keys() == made[2].keys()
    for key, mel in made[1].items():
        assert torch.equal(mel, made[2][key]), key


def test_what_is_begun_with_is_what_a_validation_hears(shards: ShardSet, tmp_path: Path) -> None:
    fit_vocoder(vocoder_module(), vocoder_data(shards), 2).save_checkpoint(tmp_path / "last.ckpt")
    module, trained = vocoder_module(init_from=str(tmp_path / "last.ckpt")), vocoder_module()
    listen(tmp_path, vocoder_data(shards), CopySynthesis(keep=0, iterations=2), module)
    trained.init_from = str(tmp_path / "last.ckpt")
    trained.load_initial_weights()
    for ours, theirs in zip(module.average.parameters(), trained.average.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(next(module.average.parameters()), next(vocoder_module().average.parameters()))
