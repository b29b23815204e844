"""A decoder that trains in milliseconds, and its data."""

import json
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from sf_lightning.data.lanes import LaneState
from sf_lightning.data.packing import Batch, PackShape, pack_clips
from sf_lightning.data.shards import ShardSet
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.layout import Layout
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import StreamFlow
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.training.datamodule import ShardDataModule
from sf_lightning.training.module import StreamFlowModule
from sf_lightning.training.optimizer import OptimizerConfig
from sf_lightning.vocoder.config import VocoderConfig
from tests.toys.audio import synthetic_voice
from tests.toys.networks import SMALL_DIT
from tests.toys.shards import make_lane
from tests.toys.trainer import QUIET_TRAINER


def decoder_module(**change: Any) -> StreamFlowModule:
    """Returns a decoder module whose training step takes milliseconds."""
    given = {
        "layout": Layout(2, 24, (0,), (1,)),
        "dit": SMALL_DIT,
        "speaker": SpeakerConfig(channels=8, crop_seconds=0.25),
        "optimizer": OptimizerConfig(learning_rate=1e-3, warmup_steps=2, ema_decay=0.9),
        "decode": DecodeConfig(steps=2),
        "vocoder": VocoderConfig(iterations=2),
    }
    torch.manual_seed(0)
    return StreamFlowModule(**(given | change))


def decoder_data(shards: ShardSet, **change: Any) -> ShardDataModule:
    """Returns a data module with packs of eight blocks and two lanes."""
    given = {"pack_frames": 192, "lanes": 2, "val_clips": 2, "num_workers": 0}
    folder = str(shards.folder)
    return ShardDataModule(folder, folder, **(given | change))


class DecoderLosses(L.Callback):
    """Records the loss and the clip keys of every step in `steps`."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, list[str]]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, index: int) -> None:
        self.steps.append((float(outputs["loss"]), batch.keys))


def fit_decoder(
    folder: Path, module: StreamFlowModule, datamodule: ShardDataModule, steps: int, **more: Any
) -> DecoderLosses:
    """Trains for `steps` steps, saves `folder/last.ckpt` and returns the recorded losses."""
    losses, resume = DecoderLosses(), more.pop("ckpt_path", None)
    callbacks = [losses, *more.pop("more_callbacks", [])]
    trainer = L.Trainer(
        **QUIET_TRAINER,
        max_steps=steps,
        callbacks=callbacks,
        num_sanity_val_steps=0,
        limit_val_batches=0,
        gradient_clip_val=1.0,
        default_root_dir=folder,
        **more,
    )
    trainer.fit(module, datamodule, ckpt_path=resume)
    trainer.save_checkpoint(folder / "last.ckpt")
    return losses


def decoder_batch(shards: ShardSet, lanes: int = 2) -> Batch:
    """Returns the first batch of a run."""
    shape = PackShape(8, 24, 4, 8, shards.manifest.mel)
    streams = [pack_clips(make_lane(shards, n, lanes).draw_clips(LaneState()), shape, n) for n in range(lanes)]
    return Batch.from_packs([next(stream) for stream in streams])


class RankLosses(L.Callback):
    """Appends each step's mean loss over ranks, and the clip keys of this rank, to `folder/rank<N>.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Batch, index: int) -> None:
        loss = float(trainer.strategy.reduce(outputs["loss"].detach().clone(), reduce_op="mean"))
        line = json.dumps({"step": trainer.global_step, "loss": loss, "keys": batch.keys})
        with (self.folder / f"rank{trainer.global_rank}.jsonl").open("a") as file:
            file.write(line + "\n")


@torch.inference_mode()
def example_velocity(model: StreamFlow) -> Tensor:
    """Returns the velocity that a model predicts for a fixed random input."""
    random = torch.Generator().manual_seed(0)
    blocks = Blocks.from_lengths([30, 48], 24)
    x = torch.randn(len(blocks), 24, 80, generator=random)
    tokens = torch.randint(0, 50, (len(blocks), 6), generator=random)
    speaker = model.encode_speaker(torch.from_numpy(np.stack([synthetic_voice(0.25), synthetic_voice(0.25, 200)])))
    kept = torch.zeros(2, dtype=torch.bool)
    condition = model.condition(tokens, speaker, blocks, kept, kept)
    return model.velocity(x, torch.tensor([0.3, 0.8]), condition, blocks)
