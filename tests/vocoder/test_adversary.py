"""What judges a vocoder: the package's losses, at 16 kHz, in 16 bits where that is heard by nobody."""

from dataclasses import replace
from typing import Any

import lightning as L
import pytest
import torch
from bigvgan.discriminators import DiscriminatorCQT
from bigvgan.loss import MultiScaleMelSpectrogramLoss, discriminator_loss

from sf_lightning.data.shards import ShardSet
from sf_lightning.vocoder.adversary import DiscriminatorConfig, LossConfig
from tests.toys.vocoder import VOCODER_SETTINGS, VocoderLosses, fit_vocoder, vocoder_data, vocoder_module


def test_the_cqt_discriminator_judges_at_16_khz(shards: ShardSet) -> None:
    module = vocoder_module(discriminators=DiscriminatorConfig("cqt", periods=(2,), width=1 / 32))
    notes = VocoderLosses()
    fit_vocoder(module, vocoder_data(shards, lanes=1), 1, notes)
    assert notes.steps[0][1] > 0


def test_what_tells_real_from_made_is_the_loss_of_the_package() -> None:
    adversary, (real, made) = vocoder_module().adversary, torch.randn(2, 3, 2560)
    pairs = [part(real[:, None], made[:, None])[:2] for part in adversary.parts]
    wanted = sum(discriminator_loss(*pair)[0] for pair in pairs)
    torch.testing.assert_close(adversary.discriminator_loss(real, made), wanted)


def test_discriminators_hear_the_gain_and_the_distance_of_mels_does_not() -> None:
    torch.manual_seed(0)
    real, made = torch.randn(2, 3, 2560)
    plain, loud = (
        vocoder_module().adversary,
        vocoder_module(discriminators=replace(VOCODER_SETTINGS["discriminators"], gain=5.0)).adversary,
    )
    assert torch.equal(loud.discriminator_loss(real, made), plain.discriminator_loss(5 * real, 5 * made))
    assert loud.discriminator_loss(real, made) != plain.discriminator_loss(real, made)
    ours, louder, level = (
        each.generator_losses(*waves)
        for each, waves in ((loud, (real, made)), (plain, (5 * real, 5 * made)), (plain, (real, made)))
    )
    assert ours.feature == louder.feature and ours.adversarial == louder.adversarial and ours.mel == level.mel


def test_the_distance_of_mels_is_that_of_the_package() -> None:
    adversary, (real, made) = vocoder_module(losses=LossConfig("multi_scale")).adversary, torch.randn(2, 3, 2560)
    theirs = MultiScaleMelSpectrogramLoss(16000)
    made.requires_grad_()
    pairs = adversary.mel_loss(real, made), theirs(real[:, None], made[:, None])
    torch.testing.assert_close(*pairs)
    torch.testing.assert_close(*(torch.autograd.grad(each, made)[0] for each in pairs), atol=1e-6, rtol=1e-3)


def test_the_constant_q_transforms_hear_every_bit_of_the_wave_in_bf16() -> None:
    module = vocoder_module(discriminators=DiscriminatorConfig("cqt", periods=(2,), width=1 / 32))
    wave = torch.randn(2, 1, 5120, generator=torch.Generator().manual_seed(0))
    transforms = [each for each in module.adversary.modules() if isinstance(each, DiscriminatorCQT)]
    assert len(transforms) == 3
    for each in transforms:
        whole = each.cqt_transform(each.resample(wave))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(each.cqt_transform(each.resample(wave)), whole)


@pytest.mark.parametrize("kind", ["resolutions", "cqt"])
def test_in_bf16_the_discriminators_alone_are_rounded_and_gradients_stay_close(shards: ShardSet, kind: Any) -> None:
    found = {}

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
            found[trainer.precision] = {
                "mel loss": trainer.callback_metrics["train/mel_loss"],
                "adversarial loss": trainer.callback_metrics["train/adversarial_loss"],
                "generator": torch.cat([p.grad.flatten() for p in module.model.parameters()]),
            }

    discriminators = DiscriminatorConfig(kind, periods=(2,), width=1 / 32)
    for precision in ("32-true", "bf16-mixed"):
        # Of the adversary alone: the mel loss would hide it.
        module = vocoder_module(discriminators=discriminators, losses=LossConfig(mel_weight=1e-3))
        fit_vocoder(module, vocoder_data(shards, lanes=1), 1, Look(), precision=precision)
    full, half = found["32-true"], found["bf16-mixed"]
    assert full["mel loss"] == half["mel loss"]  # the generator and this loss are not rounded at all
    assert 0 < (full["adversarial loss"] - half["adversarial loss"]).abs() < 0.01 * full["adversarial loss"]
    assert half["adversarial loss"] != half["adversarial loss"].bfloat16()  # means are not rounded either
    off = half["generator"] - full["generator"]
    assert 0 < off.norm() < 0.05 * full["generator"].norm()
