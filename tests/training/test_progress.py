"""The progress bar."""

from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import RichProgressBar

from sf_lightning.data.shards import ShardSet
from sf_lightning.training.callbacks.progress import ProgressBar
from tests.toys.decoder import decoder_data, decoder_module
from tests.toys.trainer import QUIET_TRAINER


@pytest.mark.parametrize("every", [3, 0])
def test_the_bar_reads_numbers_from_the_device_no_more_often_than_loggers_do(
    shards: ShardSet, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture, every: int
) -> None:
    original, read = RichProgressBar.get_metrics, []

    def record(self: RichProgressBar, trainer: L.Trainer, module: L.LightningModule) -> dict[str, Any]:
        if trainer.training:
            read.append(trainer.global_step)
        return original(self, trainer, module)

    monkeypatch.setattr(RichProgressBar, "get_metrics", record)
    given = QUIET_TRAINER | {"enable_progress_bar": True, "limit_val_batches": 0, "log_every_n_steps": every}
    # A step takes two batches, after each of which the bar moves.
    trainer = L.Trainer(**given, max_steps=7, accumulate_grad_batches=2, callbacks=[bar := ProgressBar()])
    trainer.fit(decoder_module(), decoder_data(shards))
    assert read == ([0, 3, 6] if every else [])
    assert ("train/loss" in bar._metrics) == bool(every) and "v_num" not in bar._metrics
    shown = capsys.readouterr().out
    assert "Training" in shown and "Epoch" not in shown
