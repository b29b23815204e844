"""Steps with a non-finite gradient: no weight changes, the clips are named, and too many in a row stop the run."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from sf_lightning.data.packing import Batch
from sf_lightning.data.shards import ShardSet
from sf_lightning.training.guard import NonFiniteGuard
from sf_lightning.training.optimizer import OptimizerConfig
from tests.toys.decoder import decoder_batch, decoder_data, decoder_module, fit_decoder


class Poison(L.Callback):
    """Puts NaN into the waves of one block at the given steps; records the weights after every step."""

    def __init__(self, steps: set[int], block: int = 3) -> None:
        self.steps, self.block = steps, block
        self.weights: list[torch.Tensor] = []
        self.poisoned: list[str] = []

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Batch, index: int) -> None:
        """Puts NaN into the batch."""
        if trainer.global_step in self.steps:
            batch.wave[self.block] = float("nan")
            self.poisoned.append(batch.keys[batch.blocks.utterance[self.block]])

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, *args: Any) -> None:
        """Records the weights."""
        self.weights.append(module.model.dit.to_velocity.weight.detach().clone())


def test_a_non_finite_step_changes_no_weight_and_the_next_step_does(
    shards: ShardSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    poison, module = Poison({2, 4}), decoder_module()
    with caplog.at_level(logging.WARNING):
        fit_decoder(tmp_path, module, decoder_data(shards, lanes=1), 6, more_callbacks=[poison])
    before, skipped, after = poison.weights[1], poison.weights[2], poison.weights[3]
    assert torch.equal(before, skipped) and not torch.equal(skipped, after)
    assert torch.equal(poison.weights[3], poison.weights[4]) and not torch.equal(*poison.weights[4:])
    assert all(p.isfinite().all() for p in module.model.parameters())
    assert all(p.isfinite().all() for p in module.average.parameters())
    assert module.guard.skipped == 2
    lines = [record.getMessage() for record in caplog.records if "skipped" in record.getMessage()]
    for line, step, key in zip(lines, (2, 4), poison.poisoned, strict=True):
        assert line.startswith(f"step {step} skipped: not finite: the loss of") and key in line


def test_the_guard_does_not_change_the_weights_of_a_finite_run(shards: ShardSet, tmp_path: Path) -> None:
    unguarded, guarded = decoder_module(), decoder_module()
    unguarded.guard.guard_step = lambda *_: None  # type: ignore[method-assign]
    fit_decoder(tmp_path / "a", unguarded, decoder_data(shards), 3)
    fit_decoder(tmp_path / "b", guarded, decoder_data(shards), 3)
    for mine, other in zip(unguarded.model.parameters(), guarded.model.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_too_many_non_finite_steps_in_a_row_stop_the_run_and_name_the_option(
    shards: ShardSet, tmp_path: Path
) -> None:
    module = decoder_module(optimizer=OptimizerConfig(warmup_steps=2, max_bad_steps=3))
    with pytest.raises(FloatingPointError, match=r"3 steps in a row .* the last one 4, .*max_bad_steps above 3"):
        fit_decoder(tmp_path, module, decoder_data(shards, lanes=1), 9, more_callbacks=[Poison({0, 2, 3, 4, 5})])


def test_a_non_finite_gradient_of_a_finite_loss_names_all_clips(
    shards: ShardSet, caplog: pytest.LogCaptureFixture
) -> None:
    module, batch = decoder_module(), decoder_batch(shards)
    optimizer = torch.optim.AdamW([torch.zeros(1)], fused=True)
    with caplog.at_level(logging.WARNING):
        module.guard.add_losses(torch.zeros(len(batch.blocks)), batch.blocks.utterance, batch.keys)
        module.guard.guard_step(optimizer, torch.tensor(torch.inf), 7)
        module.guard.check_last_step()
    assert caplog.records[0].getMessage() == (
        f"step 7 skipped: not finite: the gradient (of {', '.join(key for key in batch.keys if key)})"
    )


def test_with_accumulated_gradients_the_clip_with_the_non_finite_loss_is_named(
    shards: ShardSet, caplog: pytest.LogCaptureFixture
) -> None:
    guard, batch = NonFiniteGuard(5), decoder_batch(shards)
    optimizer = torch.optim.AdamW([torch.zeros(1)], fused=True)
    losses = torch.zeros(len(batch.blocks))
    bad = batch.packs[0].num_blocks  # the first block of the second pack
    other = replace(batch, keys=[f"other {key}" for key in batch.keys])
    with caplog.at_level(logging.WARNING):
        guard.add_losses(losses, batch.blocks.utterance, batch.keys)
        poisoned = losses.index_fill(0, torch.tensor([bad]), torch.nan)
        guard.add_losses(poisoned, other.blocks.utterance, other.keys)
        guard.guard_step(optimizer, torch.tensor(torch.nan), 3)
        guard.check_last_step()
    key = other.keys[other.packs[0].num_utterances]
    assert caplog.records[0].getMessage() == f"step 3 skipped: not finite: the loss of {key}"
