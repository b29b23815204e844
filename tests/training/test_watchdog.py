"""The watchdog: who hangs, in which step, and where."""

import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest

from sf_lightning.data.shards import ShardSet
from sf_lightning.training.callbacks.watchdog import Watchdog
from tests.toys.decoder import decoder_data, decoder_module
from tests.toys.trainer import QUIET_TRAINER


class Sleeps(L.Callback):
    """Stands still in a step, and in a validation."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """In that step."""
        if trainer.global_step + 1 == self.step:
            self.stand_still()

    def on_validation_batch_start(self, *args: Any) -> None:
        """In each of its batches."""
        self.stand_still()

    def stand_still(self) -> None:
        """Longer than the watchdog waits."""
        time.sleep(3)


@pytest.mark.parametrize(
    ("step", "told"), [(14, ["rank 0: step 14 takes longer than 1 s", "stand_still"]), (99, [])]
)
def test_a_step_that_hangs_is_told_with_its_stack_and_a_long_validation_is_not(
    shards: ShardSet, tmp_path: Path, capfd: pytest.CaptureFixture[str], step: int, told: list[str]
) -> None:
    trainer = L.Trainer(
        **QUIET_TRAINER,
        max_steps=15,
        callbacks=[Watchdog(factor=2, seconds=1), Sleeps(step)],
        val_check_interval=12,
        limit_val_batches=1,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        default_root_dir=tmp_path,
    )
    trainer.fit(decoder_module(), decoder_data(shards))
    said = capfd.readouterr().err
    assert all(words in said for words in told)
    assert said.count("takes longer than") == len(told[:1])


def test_a_watchdog_that_would_bark_at_every_step_is_refused() -> None:
    with pytest.raises(ValueError, match=r"factor 1, seconds 60.0: wanted more than 1, and more than 0"):
        Watchdog(factor=1)
