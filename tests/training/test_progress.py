"""The progress bar."""

from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import RichProgressBar

from sf_lightning.data.shards import ShardSet
from sf_lightning.training.callbacks.progress import ProgressBar
from tests.helpers import QUIET
from tests.training.test_training import data, small_module


def test_the_bar_reads_numbers_from_the_device_no_more_often_than_loggers_do(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, read = RichProgressBar.get_metrics, []

    def note(self: RichProgressBar, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        read.append(trainer.global_step)
        return theirs(self, trainer, module)

    monkeypatch.setattr(RichProgressBar, "get_metrics", note)
    given = QUIET | {"enable_progress_bar": True, "limit_val_batches": 0, "log_every_n_steps": 3, "max_steps": 7}
    L.Trainer(**given, callbacks=[bar := ProgressBar()]).fit(small_module(), data(shards))
    assert {3, 6} <= {*read} <= {0, 3, 6, 7}
    assert "train/loss" in bar._read
