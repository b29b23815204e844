"""A vocoder on several ranks: the weights of one rank, and no deadlock."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import lightning as L
import pytest
import torch

from sf_lightning.data.shards import ShardSet
from tests.toys.vocoder import VOCODER_SETTINGS, fit_vocoder, vocoder_data, vocoder_module

pytestmark = pytest.mark.usefixtures("time_limit")


class SaveWeights(L.Callback):
    """Writes the trained weights to a file, since ranks share no memory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            torch.save(module.state_dict(), self.path)


def test_two_ranks_train_the_weights_of_one(shards: ShardSet, tmp_path: Path) -> None:
    made = partial(vocoder_module, optimizer=replace(VOCODER_SETTINGS["optimizer"], freeze_steps=1))
    fit_vocoder(made(), vocoder_data(shards), 3, SaveWeights(tmp_path / "1.pt"))
    ranks = {"devices": 2, "strategy": "ddp_fork_find_unused_parameters_true"}  # old weight norms cannot be pickled
    fit_vocoder(made(), vocoder_data(shards), 3, SaveWeights(tmp_path / "2.pt"), **ranks)
    one, two, fresh = torch.load(tmp_path / "1.pt"), torch.load(tmp_path / "2.pt"), vocoder_module().state_dict()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, atol=1e-5, rtol=1e-4)
    assert any(not torch.equal(value, fresh[name]) for name, value in one.items())


def test_a_strategy_that_would_deadlock_is_refused_before_training(shards: ShardSet) -> None:
    with pytest.raises(Exception, match=r"with 2 processes: expected ddp_find_unused_parameters_true"):
        fit_vocoder(vocoder_module(), vocoder_data(shards), 1, devices=2, strategy="ddp_fork")
