"""How fast a run is, in its log: speech per second, padding, waiting for data, use of the device, memory.

Lightning's own `ThroughputMonitor` waits for the device at every step, takes all batches for equally large,
and knows nothing of loaders; only its table of devices is used here.
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
"""In what a precision of the trainer multiplies, by its name before the dash."""


@dataclass
class _Window:
    """What was done since the last log: batches, frames learnt, valid and all, seconds of training and waiting."""

    num_batches: int = 0
    num_learnt: int = 0
    num_valid: int = 0
    num_frames: int = 0
    seconds: float = 0.0
    waited: float = 0.0


class Throughput(L.Callback):
    """Logs, beside the loss and at its cadence, means over the steps since the last log.

    - `throughput/audio_seconds_per_second`: valid speech trained on per second; of a vocoder, its segments.
    - `throughput/padding_share`: padded frames over all frames of the batches.
    - `throughput/data_wait_share`: share of the time in which the loop stood still for the loader.
    - `throughput/mfu`: model FLOPs utilisation, 3 x `flops_per_frame` x valid frames over what the device could
      have multiplied in that time (`peak_flops`). Work on padding and work done twice (recomputed
      activations) are no useful work, so both lower it; speaker encoder and mel are not counted. Of decoders only.
    - `throughput/peak_memory_gib`: on CUDA the most memory that was allocated since the last log, validation
      included; elsewhere the peak resident set of the process since its start.

    Time is that of training: the clock stands still in validation and while a checkpoint is saved (but for
    one of weights alone, of which Lightning tells no callback). The host waits for the device only where the
    clock is read: at a log and where it stops. These numbers are of one device, the one of rank zero, whose
    loggers write; where there are several ranks, `rank_R/step_ms` and `rank_R/data_wait_ms` tell which of them
    is slow, and whether its loader is to blame. Under DDP `rank_R/collective_wait_ms` says how long a rank stood
    still for gradients of the others that computing did not hide, in the last step that DDP itself has timed: each
    of the first ten, then one in a hundred. The slow rank is the one that waits least.
    """

    def __init__(self) -> None:
        self._since: float | None = None  # when the clock was last read; None while it stands still

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Finds what a frame costs and what the device can do, and opens the first window."""
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
        """Starts the clock if it stands still, as of when the loader was asked for a batch."""
        if self._since is None:
            self._since = perf_counter() - (self.datamodule.data_wait_seconds - self._waited)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Counts the frames of a batch; at a step that is logged, logs and opens the next window."""
        self._window.num_batches += 1
        self._window.num_valid += batch.num_frames
        self._window.num_learnt += cast(ShardModule, pl_module).num_trained_frames(batch)
        self._window.num_frames += batch.blocks.valid.numel()
        step, cadence = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        # With accumulated gradients many batches end at the same step.
        if cadence and step % cadence == 0 and step != self._logged_step:
            self._read_clock()
            pl_module.log_dict({f"throughput/{name}": value for name, value in self._means().items()})
            if trainer.world_size > 1:
                pl_module.log_dict(self._of_ranks(pl_module, collective_wait_ms(trainer.strategy.model)))
            self._window, self._logged_step = _Window(), step

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops the clock; the next batch starts it again, after any checkpoint of the end of validation."""
        self._stop_clock()

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Stops the clock, likewise."""
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
            "audio_seconds_per_second": window.num_learnt / self.frame_rate / window.seconds,
            "padding_share": 1 - window.num_valid / window.num_frames,
            "data_wait_share": window.waited / window.seconds,
            "peak_memory_gib": _peak_memory(self.device) / 2**30,
        }
        if self.flops_per_frame:
            useful_flops = TRAINING_PASSES * self.flops_per_frame * window.num_valid
            means["mfu"] = useful_flops / (window.seconds * self.peak_flops)
        return means

    def _of_ranks(self, pl_module: L.LightningModule, collective_wait: float | None) -> dict[str, float]:
        """Milliseconds of a batch on each rank, and those of them in which it stood still, and for what."""
        window = self._window
        each = [1000 * seconds / window.num_batches for seconds in (window.seconds, window.waited)]
        if collective_wait is not None:
            each.append(collective_wait)
        everyone = pl_module.all_gather(torch.tensor(each, device=self.device))
        assert isinstance(everyone, torch.Tensor)
        names = ("step_ms", "data_wait_ms", "collective_wait_ms")[: len(each)]
        return {
            f"rank_{rank}/{name}": value
            for rank, values in enumerate(everyone.tolist())
            for name, value in zip(names, values, strict=True)
        }


def collective_wait_ms(model: nn.Module | None) -> float | None:
    """Returns how long a rank waited for gradients in the last step that DDP timed.

    None where there is no DDP; NaN while it has timed none, or if another version of it names its times otherwise.
    """
    if not isinstance(model, DistributedDataParallel):
        return None
    times = model._get_ddp_logging_data()  # in nanoseconds
    names = ("backward_comm_time", "backward_compute_comm_overlap_time")
    all_of_it, hidden = (float(times.get(name, "nan")) for name in names)
    return (all_of_it - hidden) / 1e6


def _peak_memory(device: torch.device) -> int:
    """Returns bytes, and on CUDA forgets the peak."""
    if device.type != "cuda":
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # Linux counts in KiB
    peak = torch.cuda.max_memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    return peak


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the floating point operations a second of which a device is capable in `dtype`.

    For a GPU that Lightning's table knows, what its maker says; for any other device, a CPU above all, what
    `measured_flops` finds.
    """
    return get_available_flops(device, dtype) or measured_flops(device, dtype)


def measured_flops(device: torch.device, dtype: torch.dtype, seconds: float = 0.3) -> float:
    """Returns the operations a second of the best of several large products of square matrices.

    Args:
        device: What multiplies.
        dtype: Of the matrices.
        seconds: How long to try; a product that has begun is finished.
    """
    size = 2048 if device.type == "cpu" else 8192  # a GPU is done with the smaller before it is busy
    # A generator of its own: the random draws of the run stay what they are.
    random = torch.Generator(device).manual_seed(0)
    matrix = torch.randn(size, size, generator=random, device=device, dtype=dtype)
    best, end = float("inf"), perf_counter() + seconds
    while perf_counter() < end:
        began = perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for the device
        best = min(best, perf_counter() - began)
    return 2 * size**3 / best
