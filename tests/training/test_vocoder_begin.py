"""Initialization of a vocoder run from other weights, and settings that must match on resume."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.shards import ShardSet
from sf_lightning.training.base import require_matching_checkpoint
from sf_lightning.training.vocoder_module import VocoderModule
from sf_lightning.vocoder.config import VocoderConfig
from sf_lightning.vocoder.generator import GeneratorConfig
from tests.toys.vocoder import VOCODER_SETTINGS, fit_vocoder, vocoder_data, vocoder_module


def test_a_run_is_initialized_from_the_networks_of_another_with_new_optimizers(
    shards: ShardSet, tmp_path: Path
) -> None:
    one, path = vocoder_module(), tmp_path / "last.ckpt"
    fit_vocoder(one, vocoder_data(shards), 3).save_checkpoint(path)
    slow = replace(VOCODER_SETTINGS["optimizer"], learning_rate=1e-5)
    two = vocoder_module(init_from=str(path), optimizer=slow)
    two.load_initial_weights()
    for name, value in one.state_dict().items():
        if name.startswith("model."):  # initialized from the averaged weights
            value = one.state_dict()[name.replace("model.", "average.")]
        assert torch.equal(two.state_dict()[name], value), name
    two = vocoder_module(init_from=str(path), optimizer=slow)
    trainer = fit_vocoder(two, vocoder_data(shards), 1)
    assert trainer.global_step == 1 and trainer.optimizers[0].param_groups[0]["lr"] < 1e-5
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    path.unlink()  # not needed on resume
    again = vocoder_module(init_from=str(path), optimizer=slow)
    assert fit_vocoder(again, vocoder_data(shards), 2, ckpt_path=tmp_path / "two.ckpt").global_step == 2


def test_frozen_discriminators_are_not_copied_and_may_have_other_settings(shards: ShardSet, tmp_path: Path) -> None:
    frozen = replace(VOCODER_SETTINGS["optimizer"], freeze_steps=5)
    one = vocoder_module(optimizer=frozen)
    fit_vocoder(one, vocoder_data(shards), 2).save_checkpoint(tmp_path / "last.ckpt")
    wider = replace(VOCODER_SETTINGS["discriminators"], width=1 / 16)
    two = vocoder_module(optimizer=frozen, discriminators=wider, init_from=str(tmp_path / "last.ckpt"))
    two.load_initial_weights()
    for ours, theirs in zip(two.model.parameters(), one.average.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_run_is_initialized_from_a_shipped_vocoder_by_name() -> None:
    sizes = GeneratorConfig(channels=256, kernel_sizes=(3, 7), dilations=(1, 3))
    module = VocoderModule(sizes, discriminators=VOCODER_SETTINGS["discriminators"], init_from="small")  # type: ignore[arg-type]
    module.load_initial_weights()
    shipped = VocoderConfig("small").make(MelConfig())
    mel = torch.randn(1, 20, 80, generator=torch.Generator().manual_seed(0)) - 4
    assert str(module.initialized_from).startswith("small (averaged weights of step ")
    torch.testing.assert_close(module.model.decode(mel), shipped.decode(mel), atol=1e-5, rtol=0)


def test_the_learning_rate_of_the_discriminators_must_match_on_resume(shards: ShardSet, tmp_path: Path) -> None:
    optimizer = replace(VOCODER_SETTINGS["optimizer"], discriminator_learning_rate=4e-3)
    trainer = fit_vocoder(vocoder_module(optimizer=optimizer), vocoder_data(shards), 1)
    rates = [optimizer.param_groups[0]["initial_lr"] for optimizer in trainer.optimizers]
    assert rates == [1e-3, 4e-3]
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    content = torch.load(tmp_path / "last.ckpt", weights_only=True)
    require_matching_checkpoint(content, vocoder_module(optimizer=optimizer), resumed=True)
    message = "checkpoint has discriminator_learning_rate 0.004, this run has None: use the value of the checkpoint"
    with pytest.raises(ValueError, match=message):
        require_matching_checkpoint(content, vocoder_module(), resumed=True)
    # Older checkpoints lack the setting.
    del content["hyper_parameters"]["optimizer"]["discriminator_learning_rate"]
    with pytest.raises(ValueError, match=r"checkpoint has discriminator_learning_rate None, this run has 0.004"):
        require_matching_checkpoint(content, vocoder_module(optimizer=optimizer), resumed=True)
    require_matching_checkpoint(content, vocoder_module(), resumed=True)
    del (
        content["hyper_parameters"]["discriminators"]["gain"],
        content["hyper_parameters"]["optimizer"]["freeze_steps"],
    )
    require_matching_checkpoint(content, vocoder_module(), resumed=True)  # a missing setting has its default
