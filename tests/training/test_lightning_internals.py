"""Each private part of Lightning that the package uses still exists and does what the package expects of it."""

import inspect
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy

from sf_lightning.data.shards import ShardSet
from sf_lightning.training import lightning_internals as internals
from sf_lightning.training.loggers import ResumableCSVLogger, ResumableWandbLogger
from tests.toys.decoder import decoder_data, decoder_module
from tests.toys.trainer import QUIET_TRAINER


def run(shards: ShardSet, *callbacks: L.Callback, steps: int = 4, **settings: Any) -> None:
    """Trains some steps, with a validation after every second one."""
    intervals = {"val_check_interval": 2, "check_val_every_n_epoch": None, "num_sanity_val_steps": 0}
    trainer = L.Trainer(**QUIET_TRAINER | intervals | settings, max_steps=steps, callbacks=[*callbacks])
    trainer.fit(decoder_module(), decoder_data(shards))


def test_is_accumulating_is_true_after_all_but_the_last_batch_of_a_step(shards: ShardSet) -> None:
    found = []

    class Ask(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            found.append(internals.is_accumulating(trainer))

    run(shards, Ask(), steps=2, accumulate_grad_batches=3, limit_val_batches=0)
    assert found == [True, True, False] * 2


def test_a_pending_validation_is_stored_as_started(shards: ShardSet, tmp_path: Path) -> None:
    found = []

    class Store(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
            pending = internals.store_pending_validation(trainer, checkpoint, interrupted=False)
            loops = checkpoint["loops"]["fit_loop"]
            total = loops["epoch_loop.batch_progress"]["total"]
            started = loops["epoch_loop.val_loop.batch_progress"]["total"]["started"]
            found.append((pending, started, total["completed"] == total["processed"]))

    run(shards, Store(), limit_val_batches=1)
    assert found == [(False, 0, False), (True, 1, True)] * 2


def test_a_validation_runs_after_the_last_step_and_rows_have_the_step_that_was_set(
    shards: ShardSet, tmp_path: Path
) -> None:
    logger, validated = ResumableCSVLogger(str(tmp_path)), []

    class Steps(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
            internals.set_logged_step(trainer, 70 + trainer.global_step)

        def on_validation_end(self, trainer: L.Trainer, *args: Any) -> None:
            validated.append((trainer.global_step, trainer.validating))

        def on_fit_end(self, trainer: L.Trainer, *args: Any) -> None:
            internals.run_validation(trainer)
            assert trainer.training

    run(shards, Steps(), steps=3, logger=logger, log_every_n_steps=1, limit_val_batches=1)
    rows = (tmp_path / "csv" / "metrics.csv").read_text().splitlines()
    columns = rows[0].split(",")
    trained = [dict(zip(columns, row.split(","), strict=True)) for row in rows[1:]]
    assert [row["step"] for row in trained if row["train/loss"]] == ["70", "71", "72"]
    assert validated == [(2, True), (3, True)]


def test_the_training_loop_broadcasts_sigterm_by_the_method_that_is_replaced() -> None:
    assert "self._broadcast_sigterm_tensor()" in inspect.getsource(_TrainingEpochLoop.advance)


def test_the_mesh_has_the_sizes_that_were_set() -> None:
    strategy = ModelParallelStrategy()
    assert {"_data_parallel_size", "_tensor_parallel_size"} <= vars(strategy).keys()
    internals.set_mesh_sizes(strategy, 2, 4)
    source = inspect.getsource(ModelParallelStrategy.setup_environment)
    assert "self._data_parallel_size, self._tensor_parallel_size, self.world_size" in source


@pytest.mark.parametrize("finds", [True, False])
def test_ddp_tells_whether_it_finds_unused_parameters(finds: bool) -> None:
    assert internals.finds_unused_parameters(DDPStrategy(find_unused_parameters=finds)) is finds
    assert not internals.finds_unused_parameters(SingleDeviceStrategy("cpu"))


def test_the_private_methods_that_are_overridden_are_still_called() -> None:
    assert "self._get_train_description(" in inspect.getsource(RichProgressBar)
    assert "self._parse_ckpt_path()" in inspect.getsource(LightningCLI.__init__)


def test_lightning_passes_an_unset_anonymous_setting_to_wandb_which_is_dropped(tmp_path: Path) -> None:
    assert "anonymous" in WandbLogger(save_dir=tmp_path)._wandb_init
    assert "anonymous" not in ResumableWandbLogger(str(tmp_path))._wandb_init
