"""A vocoder that trains in milliseconds, and its data."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import lightning as L
import torch

from sf_lightning.audio.mel import MelConfig, MelSpectrogram
from sf_lightning.data.lanes import LaneState
from sf_lightning.data.packing import Batch, PackShape, pack_clips
from sf_lightning.data.segments import BLOCK_FRAMES, SegmentConfig, Segments, draw_starts, slice_segments
from sf_lightning.data.shards import ShardSet
from sf_lightning.training.datamodule import ShardDataModule
from sf_lightning.training.optimizer import GANOptimizerConfig
from sf_lightning.training.vocoder_module import VocoderModule
from sf_lightning.vocoder.adversary import DiscriminatorConfig, LossConfig
from sf_lightning.vocoder.generator import GeneratorConfig
from tests.toys.shards import make_lane
from tests.toys.trainer import QUIET_TRAINER

VOCODER_SETTINGS: dict[str, Any] = {
    "generator": GeneratorConfig((10, 16), (20, 32), channels=16, kernel_sizes=(3,), dilations=(1,)),
    "discriminators": DiscriminatorConfig("resolutions", periods=(2, 3), width=1 / 32),
    "losses": LossConfig("single", mel_weight=45.0),
    "segments": SegmentConfig(frames=16, per_pack=2),
    "optimizer": GANOptimizerConfig(learning_rate=1e-3, decay=0.99, ema_decay=0.9),
}
"""Arguments of a vocoder module whose training step takes tens of milliseconds."""


def vocoder_module(**change: Any) -> VocoderModule:
    """Returns a small vocoder module with fixed initial weights."""
    torch.manual_seed(0)
    return VocoderModule(**(VOCODER_SETTINGS | change))


def vocoder_data(shards: ShardSet, **change: Any) -> ShardDataModule:
    """Returns a data module with packs of 96 frames and two lanes."""
    given = {"pack_frames": 96, "lanes": 2, "val_clips": 2, "num_workers": 0}
    folder = str(shards.folder)
    return ShardDataModule(folder, folder, **(given | change))


class RepeatedBatch:
    """Yields one batch endlessly."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.batch


def vocoder_batch(shards: ShardSet, packs: int = 1, lane: int = 0) -> Batch:
    """Returns the first packs of a lane as one batch."""
    shape = PackShape(8, BLOCK_FRAMES, 4, 8, shards.manifest.mel)
    stream = pack_clips(make_lane(shards, lane, 2, crop_samples=0).draw_clips(LaneState()), shape, lane)
    return Batch.from_packs([next(stream) for _ in range(packs)])


class VocoderLosses(L.Callback):
    """Records both losses and the clip keys of every step in `steps`."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, float, list[str]]] = []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, index: int) -> None:
        self.steps.append((float(outputs["loss"]), float(outputs["discriminator_loss"]), batch.keys))


def fit_vocoder(
    module: VocoderModule, datamodule: Any, steps: int, *callbacks: L.Callback, **more: Any
) -> L.Trainer:
    """Trains for `steps` steps and returns the trainer."""
    resume = more.pop("ckpt_path", None)
    trainer = L.Trainer(
        **QUIET_TRAINER,
        max_steps=steps,
        callbacks=[*callbacks],
        limit_val_batches=0,
        **more,
    )
    trainer.fit(module, datamodule, ckpt_path=resume)
    return trainer


def cut_segments(batch: Batch, config: SegmentConfig, seed: int = 0) -> Segments:
    """Returns the segments of a batch, with the default mel spectrogram."""
    return slice_segments(
        replace(batch, starts=draw_starts(batch, config, seed)), config.frames, MelSpectrogram(MelConfig())
    )
