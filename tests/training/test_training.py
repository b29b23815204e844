"""Training: averaged weights, self-contained checkpoints, runs that resume bit-exactly."""

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn

from sf_lightning.data.lanes import LaneState
from sf_lightning.data.packing import Batch, PackShape, pack_clips
from sf_lightning.data.shards import ShardSet
from sf_lightning.model.layout import Layout
from sf_lightning.training.base import require_matching_checkpoint
from sf_lightning.training.ema import move_average
from sf_lightning.training.module import StreamFlowModule
from tests.toys.decoder import DecoderLosses, decoder_batch, decoder_data, decoder_module, fit_decoder
from tests.toys.networks import SMALL_DIT, randomize_weights
from tests.toys.shards import make_lane
from tests.toys.trainer import QUIET_TRAINER


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_resumed_run_has_the_clips_and_the_first_loss_of_an_uninterrupted_one(
    shards: ShardSet, tmp_path: Path, num_workers: int
) -> None:
    workers = {"num_workers": num_workers}
    whole = fit_decoder(tmp_path / "whole", decoder_module(), decoder_data(shards, **workers), 9).steps
    first = fit_decoder(tmp_path / "cut", decoder_module(), decoder_data(shards, **workers), 4).steps
    module = decoder_module()
    # Resumed with the total of nine steps, as after a run of nine steps was killed in its fifth.
    rest = fit_decoder(
        tmp_path / "rest",
        module,
        decoder_data(shards, **workers),
        9,
        ckpt_path=tmp_path / "cut" / "last.ckpt",
    ).steps
    assert [keys for _, keys in first + rest] == [keys for _, keys in whole]
    assert first[0][0] == whole[0][0]


def test_a_run_resumed_from_a_checkpoint_has_exactly_the_losses_of_an_uninterrupted_one(
    shards: ShardSet, tmp_path: Path
) -> None:
    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 4:
                trainer.save_checkpoint(tmp_path / "middle.ckpt")

    losses = DecoderLosses()
    more = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "max_steps": 9}
    more |= {"accelerator": "cpu", "limit_val_batches": 0, "enable_checkpointing": False}
    L.Trainer(callbacks=[Save(), losses], **more).fit(decoder_module(), decoder_data(shards))
    module, again = decoder_module(), DecoderLosses()
    torch.manual_seed(99)
    L.Trainer(callbacks=[again], **more).fit(module, decoder_data(shards), ckpt_path=tmp_path / "middle.ckpt")
    assert again.steps == losses.steps[4:]


def test_a_checkpoint_without_a_newer_setting_is_resumed_with_its_default(shards: ShardSet) -> None:
    module = decoder_module()
    checkpoint = {"format": 1, "hyper_parameters": copy.deepcopy(dict(module.hparams))}
    del checkpoint["hyper_parameters"]["layout"]["placement"]
    require_matching_checkpoint(checkpoint, module)
    checkpoint["hyper_parameters"]["layout"]["gone"] = 3
    with pytest.raises(ValueError, match=r"--ckpt_path: its layout.gone is unknown to this version"):
        require_matching_checkpoint(checkpoint, module)


def test_a_checkpoint_loads_without_other_files_and_with_its_averages(shards: ShardSet, tmp_path: Path) -> None:
    module = decoder_module()
    fit_decoder(tmp_path, module, decoder_data(shards), 3)
    again = StreamFlowModule.load_from_checkpoint(tmp_path / "last.ckpt")
    assert again.hparams == module.hparams
    assert again.model.layout == module.model.layout and again.decode == module.decode
    assert again.tokenizer_digest == shards.manifest.tokenizer.digest
    for name, value in module.model.named_parameters():
        assert torch.equal(dict(again.model.named_parameters())[name], value)
    for name, value in module.average.named_parameters():
        assert torch.equal(dict(again.average.named_parameters())[name], value)
    assert not torch.equal(again.model.dit.to_velocity.weight, again.average.dit.to_velocity.weight)
    assert again.decoder().model is again.average


def test_the_loss_of_a_step_is_the_mean_of_the_losses_of_its_packs(shards: ShardSet) -> None:
    module = decoder_module()
    randomize_weights(module.model)
    both = decoder_batch(shards)
    alone = []
    for number in range(2):
        shape = PackShape(8, 24, 4, 8, shards.manifest.mel)
        one = Batch.from_packs(
            [next(pack_clips(make_lane(shards, number, 2).draw_clips(LaneState()), shape, number))]
        )
        alone.append(module._losses(module.model, one, module._random_draws(one)).mean())
    together = module._losses(module.model, both, module._random_draws(both)).mean()
    torch.testing.assert_close(together, (alone[0] + alone[1]) / 2, atol=1e-5, rtol=1e-5)


def test_random_draws_follow_the_pack_not_the_order_of_calls(shards: ShardSet) -> None:
    module, batch = decoder_module(), decoder_batch(shards)
    first = module._random_draws(batch)
    torch.rand(100)
    again = module._random_draws(batch)
    assert torch.equal(first.x_0, again.x_0) and torch.equal(first.t, again.t)
    other = copy.deepcopy(batch)
    other.packs = [type(key)(key.num_blocks, key.num_utterances, key.lane, key.pack + 1) for key in batch.packs]
    assert not torch.equal(module._random_draws(other).x_0, first.x_0)


def test_it_overfits_one_batch(shards: ShardSet) -> None:
    module = decoder_module(layout=Layout(2, 24, (0,), (1,)), dit=replace(SMALL_DIT, width=64, token_width=32))
    batch = decoder_batch(shards)
    optimizer = torch.optim.Adam(module.model.parameters(), lr=3e-3)
    fixed = module._fixed_draws(batch, 0)
    before = float(module._losses(module.model, batch, fixed).detach().mean())
    for _ in range(60):
        optimizer.zero_grad()
        loss = module._losses(module.model, batch, fixed).mean()
        loss.backward()
        optimizer.step()
    assert float(loss) < 0.5 * before


def test_the_average_follows_the_weights() -> None:
    average, current = nn.Linear(2, 1, bias=False), nn.Linear(2, 1, bias=False)
    nn.init.zeros_(average.weight)
    nn.init.ones_(current.weight)
    move_average(average, current, step=1, decay=0.5)  # in the first step the average has weight 2 / 11
    assert float(average.weight[0, 0]) == pytest.approx(9 / 11)
    move_average(average, current, step=100, decay=0.5)
    assert float(average.weight[0, 0]) == pytest.approx(10 / 11)
    assert float(current.weight[0, 0]) == 1.0


@pytest.mark.parametrize(("limit", "norm"), [(None, 5.0), (0, 5.0), (1.0, 1.0)])
def test_gradients_are_clipped_by_norm_and_a_limit_of_zero_disables_it(limit: float | None, norm: float) -> None:
    module = decoder_module()
    module.log = lambda *args, **kwargs: None  # type: ignore[method-assign]
    module.guard.guard_step = lambda *args: None  # type: ignore[method-assign]
    module.trainer = L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    weight = module.model.dit.to_velocity.weight
    weight.grad = torch.zeros_like(weight)
    weight.grad[0, :2] = torch.tensor([3.0, 4.0])
    module.configure_gradient_clipping(torch.optim.SGD([weight], 1.0), limit, None)
    assert float(weight.grad.norm()) == pytest.approx(norm, rel=1e-4)


def test_clipping_by_value_is_refused() -> None:
    by_value = L.Trainer(**QUIET_TRAINER, max_steps=1, gradient_clip_algorithm="value")
    with pytest.raises(ValueError, match=r"--trainer.gradient_clip_algorithm is value: expected norm"):
        decoder_module().check(by_value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dit": replace(SMALL_DIT, width=128)}, r"--model.dit: the checkpoint has width \d+, this run has 128"),
        ({"layout": Layout(2, 24, (0,), (0,))}, "--model.layout: the checkpoint has forward .1., this run has .0."),
    ],
)
def test_a_checkpoint_of_another_network_is_refused(
    shards: ShardSet, tmp_path: Path, change: dict, message: str
) -> None:
    fit_decoder(tmp_path, decoder_module(), decoder_data(shards), 1)
    with pytest.raises(ValueError, match=message):
        fit_decoder(
            tmp_path / "again", decoder_module(**change), decoder_data(shards), 2, ckpt_path=tmp_path / "last.ckpt"
        )


@pytest.mark.parametrize(
    ("module", "change", "message"),
    [
        ({"tokenizer": "s3"}, {}, "tokenizer kmeans, the model requires s3"),
        ({"dit": replace(SMALL_DIT, vocabulary=60)}, {}, "vocabulary 50, the model requires 60"),
        ({}, {"pack_frames": 10}, "pack_frames is 10: expected at least a block of 24"),
        ({}, {"lanes": 24}, "23 samples for 24 lanes"),
        (
            {},
            {"val_clips": 0},
            r"has 0 readable clips, with --data.val_clips=0: expected one or more for each of 1",
        ),
    ],
)
def test_data_that_does_not_fit_the_model_is_refused_before_training(
    shards: ShardSet, tmp_path: Path, module: dict, change: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        fit_decoder(tmp_path, decoder_module(**module), decoder_data(shards, **change), 1)


def test_initial_weights_trained_on_another_tokenizer_cause_a_warning(
    shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fit_decoder(tmp_path, decoder_module(), decoder_data(shards), 1)
    for digest, words in ((shards.manifest.tokenizer.digest, 0), ("another", 1)):
        module = decoder_module(init_from=str(tmp_path / "last.ckpt"))
        module.tokenizer_digest = digest
        module.load_initial_weights()
        assert caplog.text.count("the data has tokens of another") == words
        assert module.initialized_from == "last.ckpt (averaged weights of step 1)"


def test_training_on_tokens_of_another_tokenizer_file_is_refused(shards: ShardSet, tmp_path: Path) -> None:
    module = decoder_module()
    module.tokenizer_digest = "another"
    with pytest.raises(ValueError, match="the model requires digest another: use clips tokenized with"):
        fit_decoder(tmp_path, module, decoder_data(shards), 1)
