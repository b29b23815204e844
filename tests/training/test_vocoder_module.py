"""Training of BigVGAN: segments of clips, one step per batch, runs that resume bit-exactly."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import soundfile
import soxr
import torch
from bigvgan.activations import SnakeBeta
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.build import build, fit_tokenizer
from sf_lightning.data.build_config import BuildConfig
from sf_lightning.data.corpus import find_parts
from sf_lightning.data.packing import Batch
from sf_lightning.data.segments import SegmentConfig, slice_segments
from sf_lightning.data.shards import ShardSet
from sf_lightning.training.optimizer import GANOptimizerConfig
from sf_lightning.vocoder.adversary import DiscriminatorConfig, LossConfig
from tests.toys.audio import synthetic_voice
from tests.toys.trainer import QUIET_TRAINER
from tests.toys.vocoder import (
    VOCODER_SETTINGS,
    RepeatedBatch,
    VocoderLosses,
    cut_segments,
    fit_vocoder,
    vocoder_batch,
    vocoder_data,
    vocoder_module,
)


@pytest.mark.parametrize(
    "losses", [pytest.param(LossConfig("single", 45.0), marks=pytest.mark.slow), LossConfig("multi_scale", 15.0)]
)
def test_it_overfits_the_segments_of_a_batch(shards: ShardSet, losses: LossConfig) -> None:
    module = vocoder_module(losses=losses, segments=SegmentConfig(frames=16, per_pack=2))
    batch = module.add_random_draws(vocoder_batch(shards))

    def distance() -> float:
        segments = slice_segments(batch, module.segments.frames, module.mel)
        return float(module.adversary.mel_loss(segments.wave, module.model.decode(segments.mel)).detach())

    before = distance()
    trainer = fit_vocoder(module, RepeatedBatch(batch), 60)
    assert trainer.global_step == 60  # one step per batch, although two optimizers step
    assert distance() < 0.6 * before


def test_the_gradients_of_the_discriminators_are_those_of_their_own_loss(shards: ShardSet) -> None:
    module, other = vocoder_module(), vocoder_module()
    batch = module.add_random_draws(vocoder_batch(shards))
    segments = slice_segments(batch, module.segments.frames, module.mel)
    other.adversary.discriminator_loss(segments.wave, other.model.decode(segments.mel)).backward()
    for part in other.adversary.parts:
        clip_grad_norm_(part.parameters(), other.optimizer.early_clip_norm)
    fit_vocoder(module, RepeatedBatch(batch), 1)
    for (name, ours), alone in zip(module.adversary.named_parameters(), other.adversary.parameters(), strict=True):
        assert not torch.equal(ours, alone), f"{name} has learnt nothing"
        torch.testing.assert_close(ours.grad, alone.grad, msg=f"the generator's pass added to {name}")


@pytest.mark.parametrize(
    ("precision", "frozen", "compile"),
    [
        ("32-true", 0, False),
        pytest.param("32-true", 10, False, marks=pytest.mark.slow),
        ("bf16-mixed", 0, False),
        pytest.param("32-true", 0, True, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_has_identical_losses(
    shards: ShardSet, tmp_path: Path, precision: Any, frozen: int, compile: bool
) -> None:
    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    optimizer = replace(VOCODER_SETTINGS["optimizer"], freeze_steps=frozen)
    one, other = (vocoder_module(optimizer=optimizer, compile=compile) for _ in range(2))
    whole, again = VocoderLosses(), VocoderLosses()
    fit_vocoder(one, vocoder_data(shards), 24, Save(), whole, precision=precision)
    torch.manual_seed(99)
    resume = tmp_path / "middle.ckpt"
    trainer = fit_vocoder(other, vocoder_data(shards), 24, again, ckpt_path=resume, precision=precision)
    assert again.steps == whole.steps[4:] and len(again.steps) == 20 and trainer.global_step == 24
    for name, value in one.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    rates = [optimizer.param_groups[0]["lr"] for optimizer in trainer.optimizers]
    assert rates == [pytest.approx(1e-3 * 0.99**24), pytest.approx(1e-3 * 0.99 ** (24 - frozen))]


def test_the_averaged_generator_follows_the_trained_one(shards: ShardSet) -> None:
    module = vocoder_module(optimizer=replace(VOCODER_SETTINGS["optimizer"], ema_decay=0.0))
    fit_vocoder(module, vocoder_data(shards), 2)
    for mine, other in zip(module.average.parameters(), module.model.parameters(), strict=True):
        torch.testing.assert_close(mine, other)
    module = vocoder_module()
    fit_vocoder(module, vocoder_data(shards), 2)
    pairs = zip(module.average.parameters(), module.model.parameters(), strict=True)
    assert any(not torch.equal(mine, other) for mine, other in pairs)


class Poison(L.Callback):
    """Puts NaN into the waves of the given steps."""

    def __init__(self, steps: set[int]) -> None:
        self.steps = steps

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Batch, index: int) -> None:
        if index in self.steps:
            batch.wave[:] = torch.nan


def test_a_non_finite_step_changes_no_weight_and_is_counted_and_reported(
    shards: ShardSet, caplog: pytest.LogCaptureFixture
) -> None:
    module, notes = vocoder_module(), VocoderLosses()
    weights: list[list[Tensor]] = []

    class WeightRecorder(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            networks = (module.model, module.adversary)
            weights.append([p.detach().clone() for network in networks for p in network.parameters()])

    with caplog.at_level(logging.WARNING):
        trainer = fit_vocoder(module, vocoder_data(shards), 4, Poison({2}), notes, WeightRecorder())
    assert all(torch.equal(a, b) for a, b in zip(weights[1], weights[2], strict=True))
    assert not any(torch.equal(a, b) for a, b in zip(weights[2], weights[3], strict=True))
    assert all(p.isfinite().all() for p in module.parameters())
    assert module.guard.skipped == 1 and trainer.global_step == 4
    lines = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    assert len(lines) == 1 and lines[0].startswith("step 2 skipped: not finite: the loss of ")
    assert any(key in lines[0] for key in notes.steps[2][2] if key)


def test_a_non_finite_gradient_of_the_generator_alone_does_not_undo_the_step_of_the_discriminators(
    shards: ShardSet,
) -> None:
    module = vocoder_module()
    weights: list[list[list[Tensor]]] = []

    class InvalidGeneratorLoss(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Batch, index: int) -> None:
            weight = torch.nan if index == 1 else 1.0
            module.adversary.losses = replace(module.adversary.losses, adversarial_weight=weight)

        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            networks = (module.model, module.adversary)
            weights.append([[p.detach().clone() for p in network.parameters()] for network in networks])

    fit_vocoder(module, vocoder_data(shards), 3, InvalidGeneratorLoss())
    first, skipped, last = weights

    def changed(before: list[Tensor], after: list[Tensor]) -> list[bool]:
        return [not torch.equal(*pair) for pair in zip(before, after, strict=True)]

    assert not any(changed(first[0], skipped[0])) and all(changed(first[1], skipped[1]))
    assert all(changed(skipped[0], last[0]))
    assert module.guard.skipped == 1 and all(p.isfinite().all() for p in module.parameters())


@pytest.mark.parametrize("kind", ["resolutions", "cqt"])
@pytest.mark.parametrize("losses", [LossConfig("single", 45.0), LossConfig("multi_scale", 15.0)])
def test_training_on_silence_has_no_non_finite_step(shards: ShardSet, kind: Any, losses: LossConfig) -> None:
    class Silence(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Batch, index: int) -> None:
            batch.wave[:] = 0

    discriminators, notes = DiscriminatorConfig(kind, periods=(2,), width=1 / 32), VocoderLosses()
    module = vocoder_module(discriminators=discriminators, losses=losses)
    fit_vocoder(module, vocoder_data(shards, lanes=1), 2, Silence(), notes)
    assert module.guard.skipped == 0 and all(p.isfinite().all() for p in module.parameters())
    assert notes.steps[0][0] > 0


def test_stereo_at_another_rate_is_converted_to_mono_at_the_rate_of_the_mel(tmp_path: Path) -> None:
    batches = []
    for name, rate, channels in (("mono", 16000, 1), ("stereo", 48000, 2)):
        audio = tmp_path / name / "voice"
        audio.mkdir(parents=True)
        for number in range(3):
            wave = soxr.resample(synthetic_voice(1.5, seed=number), 16000, rate)
            soundfile.write(audio / f"{number}.wav", np.stack([wave] * channels, 1), rate)
        parts = find_parts(tmp_path / name, 3)
        tokenizer = fit_tokenizer(parts, 8, MelConfig())
        build(parts, tmp_path / f"{name}-set", BuildConfig(tokenizer, shard_samples=3))
        batches.append(vocoder_batch(ShardSet(tmp_path / f"{name}-set")))
    (mono, stereo) = (cut_segments(batch, SegmentConfig(40, 4)) for batch in batches)
    assert batches[0].keys == batches[1].keys
    torch.testing.assert_close(stereo.wave, mono.wave, atol=0.02, rtol=0)
    assert mono.wave.abs().max() > 0.5


def test_too_many_non_finite_steps_in_a_row_stop_the_run(shards: ShardSet) -> None:
    module = vocoder_module(optimizer=GANOptimizerConfig(max_bad_steps=2))
    with pytest.raises(FloatingPointError, match=r"2 steps in a row .* the last one 2, "):
        fit_vocoder(module, vocoder_data(shards), 9, Poison({1, 2, 3}))


def test_gradients_are_clipped_harder_in_the_first_steps(shards: ShardSet) -> None:
    module = vocoder_module(optimizer=GANOptimizerConfig(clip_norm=500, early_clip_norm=1e-3, early_steps=1))
    norms = []

    class NormRecorder(L.Callback):
        def on_train_batch_end(self, trainer: Any, module: Any, *args: Any) -> None:
            norms.append(float(torch.stack([p.grad.norm() for p in module.model.parameters()]).norm()))

    fit_vocoder(module, vocoder_data(shards), 2, NormRecorder())
    assert norms[0] <= 1.001e-3 < norms[1]


def test_the_discriminators_are_frozen_at_first_and_the_generator_has_the_mel_loss_alone(shards: ShardSet) -> None:
    module = vocoder_module(optimizer=replace(VOCODER_SETTINGS["optimizer"], freeze_steps=2, ema_decay=0.0))
    other = vocoder_module()
    batch = module.add_random_draws(vocoder_batch(shards))
    segments = slice_segments(batch, module.segments.frames, module.mel)
    loss = other.adversary.mel_only_losses(segments.wave, other.model.decode(segments.mel)).total
    loss.backward()
    clip_grad_norm_(other.model.parameters(), other.optimizer.early_clip_norm)
    notes, changed = VocoderLosses(), []

    class ChangeRecorder(L.Callback):
        def on_train_batch_end(self, *args: Any) -> None:
            if not changed:
                for ours, alone in zip(module.model.parameters(), other.model.parameters(), strict=True):
                    torch.testing.assert_close(ours.grad, alone.grad)
            pairs = zip(module.adversary.parameters(), other.adversary.parameters(), strict=True)
            changed.append(any(not torch.equal(mine, first) for mine, first in pairs))

    fit_vocoder(module, RepeatedBatch(batch), 4, notes, ChangeRecorder())
    assert changed == [False, False, True, True]
    assert notes.steps[0][:2] == (pytest.approx(float(loss.detach()), rel=1e-5), 0.0) and notes.steps[2][1] > 0


@pytest.mark.slow
def test_compiled_activations_give_the_same_waves_and_gradients() -> None:
    eager, compiled = vocoder_module(), vocoder_module(compile=True)
    mel = torch.randn(2, 20, 80, generator=torch.Generator().manual_seed(0)) - 4
    made = [module.model.decode(mel) for module in (eager, compiled)]
    activations = [layer for layer in compiled.model.modules() if isinstance(layer, SnakeBeta)]
    assert len(activations) == 5 and all(layer._compiled_call_impl is not None for layer in activations)
    assert made[0].abs().max() > 0
    torch.testing.assert_close(made[1], made[0], atol=1e-6, rtol=1e-5)
    for wave in made:
        wave.square().sum().backward()
    for (name, ours), other in zip(compiled.model.named_parameters(), eager.model.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, other.grad, atol=1e-6, rtol=1e-4, msg=name)
    assert compiled.state_dict().keys() == eager.state_dict().keys()


@pytest.mark.gpu
def test_a_resumed_run_on_a_gpu_has_the_losses_of_an_uninterrupted_one(shards: ShardSet, tmp_path: Path) -> None:
    def run(steps: int, notes: VocoderLosses, resume: Path | None) -> L.Trainer:
        more = {"accelerator": "gpu", "devices": 1, "limit_val_batches": 0}
        trainer = L.Trainer(**QUIET_TRAINER | more, max_steps=steps, callbacks=[notes])
        trainer.fit(vocoder_module(), vocoder_data(shards), ckpt_path=resume)
        return trainer

    whole, again = VocoderLosses(), VocoderLosses()
    run(2, VocoderLosses(), None).save_checkpoint(tmp_path / "two.ckpt")
    run(6, whole, None)
    run(6, again, tmp_path / "two.ckpt")
    for ours, other in zip(again.steps, whole.steps[2:], strict=True):
        assert ours[:2] == pytest.approx(other[:2], rel=1e-3) and ours[2] == other[2]
