"""Several ranks train as one does: same global batches and losses, and checkpoints with the states of all lanes."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from sf_lightning.data.build import build
from sf_lightning.data.build_config import BuildConfig
from sf_lightning.data.corpus import CorpusPart, FilesPart
from sf_lightning.data.packing import Batch
from sf_lightning.data.shards import ShardSet
from sf_lightning.tokens.load import load_tokenizer
from tests.toys.decoder import RankLosses, decoder_data, decoder_module
from tests.toys.trainer import QUIET_TRAINER

pytestmark = pytest.mark.usefixtures("time_limit")


def make_trainer(world: int, steps: int, callback: L.Callback, folder: Path) -> L.Trainer:
    """Returns a quiet trainer on `world` CPU ranks."""
    return L.Trainer(
        **QUIET_TRAINER,
        devices=world,
        strategy="ddp_fork" if world > 1 else "auto",
        max_steps=steps,
        callbacks=[callback],
        limit_val_batches=0,
        default_root_dir=folder,
    )


def train(
    folder: Path, shards: ShardSet, world: int, steps: int, resume: Path | None = None, **change: Any
) -> list[dict]:
    """Trains on `world` ranks, saves, and returns loss and clip keys of all ranks for every step."""
    folder.mkdir()
    trainer = make_trainer(world, steps, RankLosses(folder), folder)
    trainer.callbacks.append(SaveAt(steps, folder / "last.ckpt"))  # type: ignore[attr-defined]
    trainer.fit(decoder_module(), decoder_data(shards, **change), ckpt_path=resume)
    ranks = [
        [json.loads(line) for line in (folder / f"rank{rank}.jsonl").read_text().splitlines()]
        for rank in range(world)
    ]
    return [
        {"loss": parts[0]["loss"], "keys": sorted(key for part in parts for key in part["keys"])}
        for parts in zip(*ranks, strict=True)
    ]


def test_any_number_of_ranks_has_the_global_batches_and_losses_of_one_also_after_a_resume(
    shards: ShardSet, tmp_path: Path
) -> None:
    one = train(tmp_path / "one", shards, 1, 5, lanes=4)
    two = train(tmp_path / "two", shards, 2, 2, lanes=4, num_workers=2)
    # Saved by two ranks, resumed by four.
    four = train(tmp_path / "four", shards, 4, 5, tmp_path / "two" / "last.ckpt", lanes=4, val_clips=4)
    assert len(one) == 5 and [step["keys"] for step in one] == [step["keys"] for step in two + four]
    torch.testing.assert_close([s["loss"] for s in one], [s["loss"] for s in two + four], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("samples", [[0, 1, 4], [9]])
def test_empty_shards_and_fewer_shards_than_workers_do_not_deadlock(
    shards: ShardSet, tmp_path: Path, samples: list[int]
) -> None:
    audio = sorted((Path(shards.folder).parent / "audio").rglob("*.wav"))
    parts: list[CorpusPart] = [
        FilesPart(f"shard-{i:06d}", audio[0].parents[1], tuple(audio[:n])) for i, n in enumerate(samples)
    ]
    tokenizer = load_tokenizer(Path(shards.folder).parent / "kmeans-50.npz")
    build(parts, tmp_path / "set", BuildConfig(tokenizer, shard_samples=10))
    steps = train(tmp_path / "run", ShardSet(tmp_path / "set"), 2, 6, lanes=4, num_workers=2)
    assert len(steps) == 6 and all(math.isfinite(step["loss"]) for step in steps)


class SaveAt(L.Callback):
    """Saves a checkpoint after a given step."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        """Saves."""
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_checkpoint_of_two_ranks_has_the_state_of_every_lane(shards: ShardSet, tmp_path: Path) -> None:
    # The save after a resume matters: by then each rank also has restored states of the other rank's lanes.
    resume = None
    for step in (2, 4):
        path = tmp_path / f"step-{step}.ckpt"
        trainer = make_trainer(2, step + 1, SaveAt(step, path), tmp_path)
        trainer.fit(decoder_module(), decoder_data(shards), ckpt_path=resume)
        states = torch.load(path, weights_only=True)["ShardDataModule"]["states"]
        assert {lane: state["pack"] for lane, state in states.items()} == {0: step, 1: step}
        resume = path


class Poison(RankLosses):
    """Puts NaN into the second rank's waves in the second step; writes sums of weights per step, and warnings."""

    def on_fit_start(self, trainer: L.Trainer, *args: Any) -> None:
        """Writes the rank's warnings to a file."""
        handler = logging.FileHandler(self.folder / f"warnings{trainer.global_rank}.txt")
        logging.getLogger("sf_lightning").addHandler(handler)

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Batch, index: int) -> None:
        """Puts NaN into the batch."""
        if trainer.global_rank == 1 and trainer.global_step == 1:
            batch.wave[0] = float("nan")

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Batch, index: int) -> None:
        """Appends a line."""
        raw = float(sum(p.detach().double().abs().sum() for p in module.model.parameters()))
        average = float(sum(p.double().abs().sum() for p in module.average.parameters()))
        line = json.dumps({"raw": raw, "average": average, "skipped": module.guard.skipped, "key": batch.keys[0]})
        with (self.folder / f"rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(line + "\n")


def test_a_nan_on_one_rank_skips_the_step_on_both_and_rank_0_names_the_clip(
    shards: ShardSet, tmp_path: Path
) -> None:
    make_trainer(2, 4, Poison(tmp_path), tmp_path).fit(decoder_module(), decoder_data(shards))
    first, second = (
        [json.loads(line) for line in (tmp_path / f"rank{rank}.jsonl").read_text().splitlines()] for rank in (0, 1)
    )
    for mine, other in zip(first, second, strict=True):
        assert mine["raw"] == other["raw"] and mine["average"] == other["average"]
        assert mine["skipped"] == other["skipped"]
    weights = [step["raw"] for step in first]
    assert weights[0] == weights[1] != weights[2] and all(map(math.isfinite, weights))
    assert first[-1]["skipped"] == 1
    by_rank = [(tmp_path / f"warnings{rank}.txt").read_text() for rank in (0, 1)]
    assert by_rank == [f"step 1 skipped: not finite: the loss of {second[1]['key']}\n", ""]
