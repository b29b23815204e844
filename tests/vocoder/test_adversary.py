"""Discriminators and losses of a vocoder: those of the package, at 16 kHz, and in bf16 only the convolutions."""

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


def test_the_cqt_discriminator_runs_at_16_khz(shards: ShardSet) -> None:
    module = vocoder_module(discriminators=DiscriminatorConfig("cqt", periods=(2,), width=1 / 32))
    losses = VocoderLosses()
    fit_vocoder(module, vocoder_data(shards, lanes=1), 1, losses)
    assert losses.steps[0][1] > 0


def test_the_discriminator_loss_is_that_of_the_package() -> None:
    adversary, (real, generated) = vocoder_module().adversary, torch.randn(2, 3, 2560)
    pairs = [part(real[:, None], generated[:, None])[:2] for part in adversary.parts]
    expected = sum(discriminator_loss(*pair)[0] for pair in pairs)
    torch.testing.assert_close(adversary.discriminator_loss(real, generated), expected)


def test_the_gain_scales_the_input_of_the_discriminators_but_not_of_the_mel_loss() -> None:
    torch.manual_seed(0)
    real, generated = torch.randn(2, 3, 2560)
    plain, loud = (
        vocoder_module().adversary,
        vocoder_module(discriminators=replace(VOCODER_SETTINGS["discriminators"], gain=5.0)).adversary,
    )
    assert torch.equal(loud.discriminator_loss(real, generated), plain.discriminator_loss(5 * real, 5 * generated))
    assert loud.discriminator_loss(real, generated) != plain.discriminator_loss(real, generated)
    ours, louder, level = (
        adversary.generator_losses(*waves)
        for adversary, waves in (
            (loud, (real, generated)),
            (plain, (5 * real, 5 * generated)),
            (plain, (real, generated)),
        )
    )
    assert ours.feature == louder.feature and ours.adversarial == louder.adversarial and ours.mel == level.mel


def test_the_mel_loss_is_that_of_the_package() -> None:
    adversary, (real, generated) = (
        vocoder_module(losses=LossConfig("multi_scale")).adversary,
        torch.randn(2, 3, 2560),
    )
    theirs = MultiScaleMelSpectrogramLoss(16000)
    generated.requires_grad_()
    pairs = adversary.mel_loss(real, generated), theirs(real[:, None], generated[:, None])
    torch.testing.assert_close(*pairs)
    torch.testing.assert_close(*(torch.autograd.grad(loss, generated)[0] for loss in pairs), atol=1e-6, rtol=1e-3)


def test_the_constant_q_transforms_run_in_float32_under_bf16() -> None:
    module = vocoder_module(discriminators=DiscriminatorConfig("cqt", periods=(2,), width=1 / 32))
    wave = torch.randn(2, 1, 5120, generator=torch.Generator().manual_seed(0))
    transforms = [part for part in module.adversary.modules() if isinstance(part, DiscriminatorCQT)]
    assert len(transforms) == 3
    for part in transforms:
        exact = part.cqt_transform(part.resample(wave))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(part.cqt_transform(part.resample(wave)), exact)


@pytest.mark.parametrize("kind", ["resolutions", "cqt"])
def test_in_bf16_only_the_discriminators_are_rounded_and_gradients_stay_close(shards: ShardSet, kind: Any) -> None:
    found = {}

    class Recorder(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
            found[trainer.precision] = {
                "mel loss": trainer.callback_metrics["train/mel_loss"],
                "adversarial loss": trainer.callback_metrics["train/adversarial_loss"],
                "generator": torch.cat([p.grad.flatten() for p in module.model.parameters()]),
            }

    discriminators = DiscriminatorConfig(kind, periods=(2,), width=1 / 32)
    for precision in ("32-true", "bf16-mixed"):
        # A small mel loss, which would hide the error of the adversarial loss.
        module = vocoder_module(discriminators=discriminators, losses=LossConfig(mel_weight=1e-3))
        fit_vocoder(module, vocoder_data(shards, lanes=1), 1, Recorder(), precision=precision)
    full, half = found["32-true"], found["bf16-mixed"]
    assert full["mel loss"] == half["mel loss"]  # the generator and this loss are not rounded at all
    assert 0 < (full["adversarial loss"] - half["adversarial loss"]).abs() < 0.01 * full["adversarial loss"]
    assert half["adversarial loss"] != half["adversarial loss"].bfloat16()  # means are not rounded either
    off = half["generator"] - full["generator"]
    assert 0 < off.norm() < 0.05 * full["generator"].norm()
