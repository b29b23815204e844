"""Speed of a run in its logs: speech per second, padding, waiting for data, use of the device, memory.

Lightning's own `ThroughputMonitor` waits for the device at every step, assumes batches of equal size, and does not
measure loaders; only its table of devices is used here.
"""

import resource
from dataclasses import dataclass
from time import perf_counter
from typing import Any, cast

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from sf_lightning.data.packing import Batch
from sf_lightning.model.flops import flops_per_frame
from sf_lightning.training.base import ShardModule
from sf_lightning.training.datamodule import ShardDataModule
from sf_lightning.training.module import StreamFlowModule

TRAINING_PASSES = 3
"""A training step costs one forward pass and a backward pass of twice as much."""

DTYPES = {"bf16": torch.bfloat16, "16": torch.float16, "32": torch.float32, "64": torch.float64}
"""Data type of matrix products, by the trainer's precision before the dash."""


@dataclass
class _Window:
    """Counts since the last log: batches; trained, valid and all frames; seconds of training and of waiting."""

    num_batches: int = 0
    num_trained: int = 0
    num_valid: int = 0
    num_frames: int = 0
    seconds: float = 0.0
    waited: float = 0.0


class Throughput(L.Callback):
    """Logs, beside the loss and at its cadence, means over the steps since the last log.

    - `throughput/audio_seconds_per_second`: seconds of speech trained on per second; for a vocoder, of its
      segments.
    - `throughput/padding_share`: padded frames over all frames of the batches.
    - `throughput/data_wait_share`: share of the time in which the loop waits for the loader.
    - `throughput/mfu`: model FLOPs utilization, 3 x `flops_per_frame` x valid frames over the operations that the
      device could have done in that time (`peak_flops`). Padding and recomputed activations lower it; speaker
      encoder and mel are not counted. For decoders only.
    - `throughput/peak_memory_gib`: on CUDA the peak of allocated memory since the last log, validation included;
      elsewhere the peak resident set of the process since its start.

    The clock runs in training only, not in validation or while a checkpoint is saved (except a weights-only one,
    about which Lightning notifies no callback). The host waits for the device only when the clock is read or
    stopped. The values are those of rank zero's device. With several ranks, `rank_R/step_ms` and
    `rank_R/data_wait_ms` tell which rank is slow and whether its loader is the cause. With DDP,
    `rank_R/collective_wait_ms` is the time in which a rank waited for gradients that computing did not hide, in the
    last step that DDP has timed: each of the first ten, then one in a hundred. The slow rank is the one that waits
    least.
    """

    def __init__(self) -> None:
        self._since: float | None = None  # time of the last reading; None while the clock is stopped

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Computes the cost of a frame and the peak of the device, and opens the first window."""
        assert isinstance(pl_module, ShardModule)
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(datamodule, ShardDataModule)
        self.datamodule, self.device = datamodule, pl_module.device
        self.frame_rate, self.flops_per_frame = pl_module.clip_requirements.mel.frame_rate, 0.0
        if isinstance(pl_module, StreamFlowModule):
            self.flops_per_frame = flops_per_frame(pl_module.model.dit, datamodule.shape.num_blocks)
        dtype = DTYPES.get(str(trainer.precision).split("-")[0], torch.float32)
        self.peak_flops = peak_flops(self.device, dtype) if self.flops_per_frame else 0.0
        self._window, self._logged_step = _Window(), trainer.global_step
        self._since, self._waited = None, datamodule.data_wait_seconds

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Starts a stopped clock, from the time at which the loader was asked for the batch."""
        if self._since is None:
            self._since = perf_counter() - (self.datamodule.data_wait_seconds - self._waited)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Counts the frames of a batch; at a logged step, logs and opens the next window."""
        self._window.num_batches += 1
        self._window.num_valid += batch.num_frames
        self._window.num_trained += cast(ShardModule, pl_module).num_trained_frames(batch)
        self._window.num_frames += batch.blocks.valid.numel()
        step, cadence = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        # With accumulated gradients many batches end at the same step.
        if cadence and step % cadence == 0 and step != self._logged_step:
            self._read_clock()
            pl_module.log_dict({f"throughput/{name}": value for name, value in self._means().items()})
            if trainer.world_size > 1:
                pl_module.log_dict(self._rank_times(pl_module, collective_wait_ms(trainer.strategy.model)))
            self._window, self._logged_step = _Window(), step

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops the clock; the next batch starts it again, after any checkpoint that follows validation."""
        self._stop_clock()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stops the clock."""
        self._stop_clock()

    def _stop_clock(self) -> None:
        self._read_clock()
        self._since = None

    def _read_clock(self) -> None:
        if self._since is None:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now, waited = perf_counter(), self.datamodule.data_wait_seconds
        self._window.seconds += now - self._since
        self._window.waited += waited - self._waited
        self._since, self._waited = now, waited

    def _means(self) -> dict[str, float]:
        window = self._window
        means = {
            "audio_seconds_per_second": window.num_trained / self.frame_rate / window.seconds,
            "padding_share": 1 - window.num_valid / window.num_frames,
            "data_wait_share": window.waited / window.seconds,
            "peak_memory_gib": _peak_memory(self.device) / 2**30,
        }
        if self.flops_per_frame:
            useful_flops = TRAINING_PASSES * self.flops_per_frame * window.num_valid
            means["mfu"] = useful_flops / (window.seconds * self.peak_flops)
        return means

    def _rank_times(self, pl_module: L.LightningModule, collective_wait: float | None) -> dict[str, float]:
        """Returns milliseconds per batch on each rank, and those of waiting for data and for collectives."""
        window = self._window
        own = [1000 * seconds / window.num_batches for seconds in (window.seconds, window.waited)]
        if collective_wait is not None:
            own.append(collective_wait)
        gathered = pl_module.all_gather(torch.tensor(own, device=self.device))
        assert isinstance(gathered, torch.Tensor)
        names = ("step_ms", "data_wait_ms", "collective_wait_ms")[: len(own)]
        return {
            f"rank_{rank}/{name}": value
            for rank, values in enumerate(gathered.tolist())
            for name, value in zip(names, values, strict=True)
        }


def collective_wait_ms(model: nn.Module | None) -> float | None:
    """Returns milliseconds that a rank waited for gradients in the last step that DDP timed.

    None without DDP; NaN while DDP has timed no step, or if a version of it uses other names.
    """
    if not isinstance(model, DistributedDataParallel):
        return None
    times = model._get_ddp_logging_data()  # in nanoseconds
    names = ("backward_comm_time", "backward_compute_comm_overlap_time")
    total, hidden = (float(times.get(name, "nan")) for name in names)
    return (total - hidden) / 1e6


def _peak_memory(device: torch.device) -> int:
    """Returns bytes, and on CUDA resets the peak."""
    if device.type != "cuda":
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the peak floating point operations per second of a device in `dtype`.

    The vendor's figure for a GPU in Lightning's table; the result of `measured_flops` for any other device.
    """
    return get_available_flops(device, dtype) or measured_flops(device, dtype)


def measured_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Returns the operations per second of the fastest of several products of large square matrices.

    Args:
        device: Device to measure.
        dtype: Data type of the matrices.
        seconds: Duration of the measurement; the last product is finished.
    """
    size = 2048 if device.type == "cpu" else 8192  # the smaller one does not fill a GPU
    # A separate generator leaves the random state of the run unchanged.
    random = torch.Generator(device).manual_seed(0)
    matrix = torch.randn(size, size, generator=random, device=device, dtype=dtype)
    best, end = float("inf"), perf_counter() + seconds
    while perf_counter() < end:
        started = perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        best = min(best, perf_counter() - started)
    return 2 * size**3 / best
