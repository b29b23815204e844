"""Sharded weights (FSDP2, HSDP): losses of one process, checkpoints for any number of ranks, the same export."""

import contextlib
import json
import os
import pickle
import socket
import time
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import multiprocessing

from sf_lightning.data.shards import ShardSet
from sf_lightning.streaming.loading import load_pretrained
from sf_lightning.training import stop
from sf_lightning.training.callbacks.last_checkpoint import LastCheckpoint
from sf_lightning.training.callbacks.preemption import Preemption, stop_if_requested
from sf_lightning.training.saving import newest_checkpoint
from sf_lightning.training.sharding import ShardedStrategy
from tests.toys.decoder import RankLosses, decoder_data, decoder_module, example_velocity
from tests.toys.hostile import Payload


class StopAt(L.Callback):
    """Requests a stop in a given step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Requests the stop."""
        if trainer.global_step == self.step - 1:
            stop.REQUESTED.set()


class StopInValidation(L.Callback):
    """Stops the run in the first validation, in inference mode, as a validation that decodes does."""

    @torch.inference_mode()
    def on_validation_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Requests the stop and exits."""
        stop.REQUESTED.set()
        stop_if_requested(trainer)


def rank(
    number: int,
    world: int,
    port: int,
    folder: Path,
    shards: ShardSet,
    strategy: str,
    steps: int,
    validate: dict[str, Any],
) -> None:
    """Trains as one rank to step `steps` of six, or to the first validation if 0; resumes from a checkpoint."""
    torch.set_num_threads(1)
    devices = 2 if strategy == "hsdp" else 1  # per node
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "LOCAL_RANK": str(number % devices)}
    os.environ |= {"NODE_RANK": str(number // devices), "WORLD_SIZE": str(world)}
    trainer = L.Trainer(
        accelerator="cpu",
        num_nodes=world // devices,
        devices=devices,
        strategy=strategy,
        max_steps=6,
        max_epochs=-1,
        gradient_clip_val=1.0,
        num_sanity_val_steps=0,
        **(validate or {"limit_val_batches": 0}),
        callbacks=[
            RankLosses(folder),
            StopAt(steps) if steps else StopInValidation(),
            Preemption(),
            LastCheckpoint(),
        ],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    with contextlib.suppress(SystemExit):
        trainer.fit(
            decoder_module(),
            decoder_data(shards, lanes=4, val_clips=5),
            ckpt_path=newest_checkpoint(folder / "checkpoints"),
        )


def train(
    folder: Path, shards: ShardSet, world: int, steps: int, strategy: str = "fsdp2", **validate: Any
) -> list[float]:
    """Trains on `world` ranks and returns the losses of all steps so far."""
    folder.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    arguments = (world, port, folder, shards, strategy, steps, validate)
    ranks = multiprocessing.start_processes(rank, arguments, world, join=False, start_method="forkserver")
    assert ranks is not None
    deadline = time.monotonic() + 180
    while not ranks.join(timeout=1):  # returns whenever one rank has ended
        if time.monotonic() > deadline:
            for process in ranks.processes:
                process.kill()
            pytest.fail("ranks wait for each other")
    return [json.loads(line)["loss"] for line in (folder / "rank0.jsonl").read_text().splitlines()]


def test_sharded_training_has_the_losses_of_one_process_and_resumes_with_one_rank_and_with_hsdp(
    shards: ShardSet, tmp_path: Path
) -> None:
    one = train(tmp_path / "one", shards, 1, 6, "auto")
    run = tmp_path / "sharded"
    train(run, shards, 2, 0, val_check_interval=2, check_val_every_n_epoch=None)
    saved = newest_checkpoint(run / "checkpoints")
    assert saved is not None and saved.is_dir() and len([*saved.glob("*.distcp")]) == 2
    train(run, shards, 1, 4)
    sharded = train(run, shards, 4, 6, "hsdp")
    # Adam amplifies the rounding of gradients that are almost zero, whatever the ranks and without a resume too.
    torch.testing.assert_close(sharded, one, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(sharded[:5], one[:5], atol=1e-5, rtol=1e-5)
    assert len([*(run / "checkpoints").iterdir()]) == 1


def test_no_code_in_a_sharded_checkpoint_runs_when_a_run_resumes(tmp_path: Path) -> None:
    strategy = ShardedStrategy()
    strategy.broadcast = lambda path, source=0: path  # type: ignore[method-assign, assignment]
    strategy._lightning_module = L.LightningModule()
    strategy.model = torch.nn.Linear(2, 1)
    folder = tmp_path / "bad.ckpt"
    folder.mkdir()
    torch.save({"global_step": 1}, folder / "meta.pt")
    (folder / ".metadata").write_bytes(pickle.dumps(Payload(tmp_path / "ran")))
    with pytest.raises(ValueError, match=r"bad.ckpt/.metadata does not describe .*, which is refused"):
        strategy.load_checkpoint(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_sharded_checkpoint_exports_as_an_unsharded_one(shards: ShardSet, tmp_path: Path) -> None:
    checkpoints = []
    for strategy in ("ddp", "fsdp2"):
        train(tmp_path / strategy, shards, 2, 3, strategy)
        saved = newest_checkpoint(tmp_path / strategy / "checkpoints")
        assert saved is not None and saved.is_dir() == (strategy == "fsdp2")
        checkpoints.append(saved)
    whole, parts = (load_pretrained(path) for path in checkpoints)
    assert whole.description == parts.description and whole.description.weights.step == 3
    # Weights are not compared: biases before a norm have zero gradients, and Adam scales their rounding errors up.
    torch.testing.assert_close(example_velocity(parts.model), example_velocity(whole.model), atol=1e-6, rtol=1e-6)


def test_ranks_with_different_numbers_of_validation_batches_stop_at_the_same_step(
    shards: ShardSet, tmp_path: Path
) -> None:
    # One rank has three of the five clips, in more packs than the other rank.
    train(tmp_path, shards, 2, 5, "ddp", val_check_interval=2, check_val_every_n_epoch=None)
    ranks = [(tmp_path / f"rank{number}.jsonl").read_text().splitlines() for number in (0, 1)]
    assert len(ranks[0]) == len(ranks[1]) == 5
    saved = newest_checkpoint(tmp_path / "checkpoints")
    assert saved and torch.load(saved, weights_only=True)["global_step"] == 5
