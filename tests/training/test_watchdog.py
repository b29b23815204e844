"""The watchdog reports which rank hangs, in which step, and where."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from sf_lightning.data.shards import ShardSet
from sf_lightning.training.callbacks.watchdog import Watchdog
from tests.toys.decoder import decoder_data, decoder_module
from tests.toys.trainer import QUIET_TRAINER


class Sleeper(L.Callback):
    """Sleeps in one training step, and in every validation batch."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step + 1 == self.step:
            self.hang()

    def on_validation_batch_start(self, *args: Any) -> None:
        self.hang()

    def hang(self) -> None:
        """Sleeps longer than the watchdog allows."""
        time.sleep(3)


@pytest.mark.parametrize(("step", "expected"), [(14, ["rank 0: step 14 takes longer than 1 s", "hang"]), (99, [])])
def test_a_step_that_hangs_is_reported_with_its_stack_and_a_long_validation_is_not(
    shards: ShardSet, tmp_path: Path, capfd: pytest.CaptureFixture[str], step: int, expected: list[str]
) -> None:
    trainer = L.Trainer(
        **QUIET_TRAINER,
        max_steps=15,
        callbacks=[Watchdog(factor=2, seconds=1), Sleeper(step)],
        val_check_interval=12,
        limit_val_batches=1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(decoder_module(), decoder_data(shards))
    report = capfd.readouterr().err
    assert all(words in report for words in expected)
    assert report.count("takes longer than") == report.count("Timeout (0:00:0") == len(expected[:1])


def test_a_watchdog_that_would_report_every_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"factor is 1, seconds is 60.0: expected more than 1, and more than 0"):
        Watchdog(factor=1)
