"""Throughput: what a log says of speed is what was done in the time of training. No test asserts a timing."""

import csv
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

from sf_lightning.data.packing import Batch
from sf_lightning.data.shards import ShardSet
from sf_lightning.model.flops import flops_per_frame
from sf_lightning.training import loader
from sf_lightning.training.callbacks import throughput
from sf_lightning.training.callbacks.throughput import Throughput, collective_wait_ms, measured_flops
from tests.toys.decoder import decoder_batch, decoder_data, decoder_module
from tests.toys.vocoder import fit_vocoder, vocoder_data, vocoder_module

KEYS = ("audio_seconds_per_second", "padding_share", "data_wait_share", "mfu", "peak_memory_gib")
PACK_SECONDS, STEP_SECONDS, PEAK_FLOPS = 0.5, 2.0, 1e9
WINDOW_SECONDS = 2 * (STEP_SECONDS + 2 * PACK_SECONDS)


class Clock:
    """A clock that goes only when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def told_time() -> Iterator[Clock]:
    """A clock by which a pack takes half a second to come; and a device of known peak."""
    clock, packs = Clock(), loader.LaneDataset.__iter__

    def slow(dataset: loader.LaneDataset) -> Iterator[Batch]:
        for pack in packs(dataset):
            clock.now += PACK_SECONDS
            yield pack

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loader.LaneDataset, "__iter__", slow)
        patch.setattr(loader, "perf_counter", clock)
        patch.setattr(throughput, "perf_counter", clock)
        patch.setattr(throughput, "peak_flops", lambda device, dtype: PEAK_FLOPS)
        yield clock


class Work(L.Callback):
    """Lets each batch take two seconds, and keeps which of its frames are valid."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.valid: list[Tensor] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, index: int) -> None:
        self.clock.now += STEP_SECONDS
        self.valid.append(batch.blocks.valid)


class Interruptions(L.Callback):
    """Lets validation and saving take ages; saves in validation and after the third step."""

    def __init__(self, clock: Clock, path: Path) -> None:
        self.clock, self.path = clock, path
        self.validated = self.saved = 0

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == 3:
            trainer.save_checkpoint(self.path)

    def on_validation_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        self.clock.now += 1000
        self.validated += 1

    def on_validation_end(self, trainer: L.Trainer, module: Any) -> None:
        trainer.save_checkpoint(self.path)

    def on_save_checkpoint(self, *_: Any) -> None:
        self.clock.now += 500
        self.saved += 1


def logged(
    folder: Path, shards: ShardSet, *callbacks: L.Callback, ours: Throughput | None = None, **change: Any
) -> list[dict[str, float]]:
    """Fits four steps of two packs, logs every second; returns the rows of the CSV that tell the throughput."""
    given = {
        "accelerator": "cpu",
        "max_steps": 4,
        "log_every_n_steps": 2,
        "num_sanity_val_steps": 0,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    logger = CSVLogger(folder, name="csv")
    trainer = L.Trainer(logger=logger, callbacks=[ours or Throughput(), *callbacks], **(given | change))
    trainer.fit(decoder_module(), decoder_data(shards))
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    filled = [{name: float(value) for name, value in row.items() if value} for row in rows]
    return [row for row in filled if any(name.startswith("throughput/") for name in row)]


def test_a_vocoder_s_speech_is_that_of_its_segments(shards: ShardSet) -> None:
    class Logged(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            found.update(trainer.callback_metrics)

    found: dict[str, Tensor] = {}
    with told_time() as clock:
        callbacks = (Throughput(), Work(clock), Logged())
        fit_vocoder(vocoder_module(), vocoder_data(shards, lanes=2), 2, *callbacks, log_every_n_steps=2)
    # Two segments of 16 frames of each lane.
    seconds = STEP_SECONDS + 2 * PACK_SECONDS
    assert float(found["throughput/audio_seconds_per_second"]) == pytest.approx(2 * 2 * 0.16 / seconds)
    assert float(found["throughput/data_wait_share"]) == pytest.approx(2 * PACK_SECONDS / seconds)
    assert "throughput/mfu" not in found


def of(rows: list[dict[str, float]], name: str) -> list[float]:
    """One number of every row."""
    return [row[f"throughput/{name}"] for row in rows]


Run = tuple[list[dict[str, float]], list[Tensor]]


@pytest.fixture(scope="module")
def run(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """The rows of a run by the clock, and which frames of each of its batches were valid."""
    with told_time() as clock:
        work = Work(clock)
        return logged(tmp_path_factory.mktemp("run"), shards, work), work.valid


def test_a_run_logs_five_finite_numbers_beside_its_loss(shards: ShardSet, tmp_path: Path) -> None:
    rows = logged(tmp_path, shards)
    assert [row["step"] for row in rows] == [1, 3]
    for row in rows:
        assert {name for name in row if name.startswith("throughput/")} == {f"throughput/{name}" for name in KEYS}
        assert "train/loss" in row and all(math.isfinite(value) for value in row.values())
        assert all(0 <= row[f"throughput/{name}"] <= 1 for name in ("padding_share", "data_wait_share"))
        assert min(row[f"throughput/{name}"] for name in ("audio_seconds_per_second", "mfu", "peak_memory_gib")) > 0


def test_the_rate_times_the_seconds_is_the_speech_trained_on(run: Run) -> None:
    rows, valid = run
    consumed = [sum(int(each.sum()) for each in valid[i : i + 2]) for i in (0, 2)]
    assert [100 * rate * WINDOW_SECONDS for rate in of(rows, "audio_seconds_per_second")] == pytest.approx(consumed)


def test_the_padding_share_is_that_of_the_packs(run: Run) -> None:
    rows, valid = run
    shares = [float((~torch.cat(valid[i : i + 2])).float().mean()) for i in (0, 2)]
    assert of(rows, "padding_share") == pytest.approx(shares, abs=1e-6) and max(shares) > 0


def test_the_waiting_share_is_what_the_loader_waited(run: Run) -> None:
    assert of(run[0], "data_wait_share") == pytest.approx([2 * 2 * PACK_SECONDS / WINDOW_SECONDS] * 2)


def test_mfu_is_useful_work_over_what_the_device_could_do(run: Run) -> None:
    rows, valid = run
    each = 3 * flops_per_frame(decoder_module().model.dit)
    useful = [each * int(torch.cat(valid[i : i + 2]).sum()) for i in (0, 2)]
    assert of(rows, "mfu") == pytest.approx([work / WINDOW_SECONDS / PEAK_FLOPS for work in useful])


def test_with_accumulated_gradients_a_step_is_all_of_its_batches_and_mfu_halves_when_the_peak_doubles(
    run: Run, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with told_time() as clock:
        monkeypatch.setattr(throughput, "peak_flops", lambda device, dtype: 2 * PEAK_FLOPS)
        rows = logged(tmp_path, shards, Work(clock), accumulate_grad_batches=2, max_steps=2, log_every_n_steps=1)
    for name in ("audio_seconds_per_second", "padding_share", "data_wait_share"):
        assert of(rows, name) == pytest.approx(of(run[0], name)), name
    assert of(rows, "mfu") == pytest.approx([mfu / 2 for mfu in of(run[0], "mfu")])


def test_validation_and_checkpoints_are_no_training_time(run: Run, shards: ShardSet, tmp_path: Path) -> None:
    with told_time() as clock:
        pauses = Interruptions(clock, tmp_path / "some.ckpt")
        every = {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
        rows = logged(tmp_path, shards, Work(clock), pauses, **every)
    assert (pauses.validated, pauses.saved) == (2, 3)
    for name in KEYS[:-1]:
        assert of(rows, name) == pytest.approx(of(run[0], name)), name


def test_the_host_waits_for_a_gpu_only_at_logs_and_memory_is_the_peak_between_them(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnCuda(Throughput):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            super().on_train_start(trainer, pl_module)
            self.device = torch.device("cuda")

    told: list[str] = []
    peaks = iter([3 * 2**30, 2 * 2**30])
    monkeypatch.setattr(throughput, "peak_flops", lambda device, dtype: told.append(str(dtype)) or PEAK_FLOPS)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: told.append("wait"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(peaks))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: told.append("forget"))
    assert of(logged(tmp_path, shards, ours=OnCuda(), precision="bf16-mixed"), "peak_memory_gib") == [3, 2]
    assert told == ["torch.bfloat16", *["wait", "forget"] * 2]  # its peak is that of the precision of the run


def test_measuring_the_peak_of_a_device_leaves_the_draws_of_the_run_alone() -> None:
    before = torch.get_rng_state()
    peak = measured_flops(torch.device("cpu"), torch.float32, seconds=0.01)
    assert math.isfinite(peak) and peak > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_knows_its_valid_frames_on_any_device(shards: ShardSet) -> None:
    batch = decoder_batch(shards)
    assert batch.num_frames == int(batch.blocks.valid.sum()) < batch.blocks.valid.numel()
    assert batch.to("meta").num_frames == batch.num_frames


def _late(rank: int, meet: Path, told: Path) -> None:
    """Takes some steps of DDP, the second rank each a fifth of a second late; writes what it waited."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    model = DistributedDataParallel(nn.Linear(8, 8))
    for _ in range(5):
        time.sleep(0.2 * rank)
        model(torch.randn(4, 8)).sum().backward()
    (told / str(rank)).write_text(str(collective_wait_ms(model)))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_of_two_ranks_the_late_one_waits_least_for_gradients(tmp_path: Path) -> None:
    multiprocessing.spawn(_late, (tmp_path / "meet", tmp_path), nprocs=2)
    waited, late = (float((tmp_path / rank).read_text()) for rank in "01")
    assert waited > 100 > late >= 0
    assert collective_wait_ms(nn.Linear(8, 8)) is None
