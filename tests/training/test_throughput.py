"""Throughput: logged rates are work over training time, by a simulated clock. No test asserts a timing."""

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
    """A clock that only the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@contextmanager
def simulated_time() -> Iterator[Clock]:
    """Installs a clock by which loading a pack takes half a second, and a device of known peak FLOP/s."""
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


class TrainingStep(L.Callback):
    """Advances the clock by two seconds per batch, and records which of its frames are valid."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.valid: list[Tensor] = []

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Batch, index: int) -> None:
        self.clock.now += STEP_SECONDS
        self.valid.append(batch.blocks.valid)


class Interruptions(L.Callback):
    """Advances the clock by minutes in validation and saving; saves in validation and after the third step."""

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


def throughput_rows(
    folder: Path, shards: ShardSet, *callbacks: L.Callback, callback: Throughput | None = None, **change: Any
) -> list[dict[str, float]]:
    """Trains four steps of two packs, logs every second step, and returns the CSV rows with throughput."""
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
    trainer = L.Trainer(logger=logger, callbacks=[callback or Throughput(), *callbacks], **(given | change))
    trainer.fit(decoder_module(), decoder_data(shards))
    with open(Path(logger.log_dir) / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    filled = [{name: float(value) for name, value in row.items() if value} for row in rows]
    return [row for row in filled if any(name.startswith("throughput/") for name in row)]


def test_the_trained_audio_of_a_vocoder_is_that_of_its_segments(shards: ShardSet) -> None:
    class MetricRecorder(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            found.update(trainer.callback_metrics)

    found: dict[str, Tensor] = {}
    with simulated_time() as clock:
        callbacks = (Throughput(), TrainingStep(clock), MetricRecorder())
        fit_vocoder(vocoder_module(), vocoder_data(shards, lanes=2), 2, *callbacks, log_every_n_steps=2)
    # Two lanes with two segments of 16 frames each.
    seconds = STEP_SECONDS + 2 * PACK_SECONDS
    assert float(found["throughput/audio_seconds_per_second"]) == pytest.approx(2 * 2 * 0.16 / seconds)
    assert float(found["throughput/data_wait_share"]) == pytest.approx(2 * PACK_SECONDS / seconds)
    assert "throughput/mfu" not in found


def column(rows: list[dict[str, float]], name: str) -> list[float]:
    """Returns one throughput metric of every row."""
    return [row[f"throughput/{name}"] for row in rows]


Run = tuple[list[dict[str, float]], list[Tensor]]


@pytest.fixture(scope="module")
def run(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Returns the rows of a run with the simulated clock, and the valid frames of each of its batches."""
    with simulated_time() as clock:
        work = TrainingStep(clock)
        return throughput_rows(tmp_path_factory.mktemp("run"), shards, work), work.valid


def test_a_run_logs_five_finite_metrics_beside_its_loss(shards: ShardSet, tmp_path: Path) -> None:
    rows = throughput_rows(tmp_path, shards)
    assert [row["step"] for row in rows] == [1, 3]
    for row in rows:
        assert {name for name in row if name.startswith("throughput/")} == {f"throughput/{name}" for name in KEYS}
        assert "train/loss" in row and all(math.isfinite(value) for value in row.values())
        assert all(0 <= row[f"throughput/{name}"] <= 1 for name in ("padding_share", "data_wait_share"))
        assert min(row[f"throughput/{name}"] for name in ("audio_seconds_per_second", "mfu", "peak_memory_gib")) > 0


def test_the_rate_times_the_seconds_is_the_duration_of_the_trained_audio(run: Run) -> None:
    rows, valid = run
    consumed = [sum(int(frames.sum()) for frames in valid[i : i + 2]) for i in (0, 2)]
    rates = column(rows, "audio_seconds_per_second")
    assert [100 * rate * WINDOW_SECONDS for rate in rates] == pytest.approx(consumed)


def test_the_padding_share_equals_that_of_the_packs(run: Run) -> None:
    rows, valid = run
    shares = [float((~torch.cat(valid[i : i + 2])).float().mean()) for i in (0, 2)]
    assert column(rows, "padding_share") == pytest.approx(shares, abs=1e-6) and max(shares) > 0


def test_the_data_wait_share_equals_the_loading_time(run: Run) -> None:
    assert column(run[0], "data_wait_share") == pytest.approx([2 * 2 * PACK_SECONDS / WINDOW_SECONDS] * 2)


def test_mfu_is_the_flops_of_valid_frames_over_the_peak_of_the_device(run: Run) -> None:
    rows, valid = run
    frame_flops = 3 * flops_per_frame(decoder_module().model.dit)
    useful = [frame_flops * int(torch.cat(valid[i : i + 2]).sum()) for i in (0, 2)]
    assert column(rows, "mfu") == pytest.approx([work / WINDOW_SECONDS / PEAK_FLOPS for work in useful])


def test_with_accumulated_gradients_all_batches_of_a_step_count_and_mfu_is_relative_to_the_peak(
    run: Run, shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with simulated_time() as clock:
        monkeypatch.setattr(throughput, "peak_flops", lambda device, dtype: 2 * PEAK_FLOPS)
        rows = throughput_rows(
            tmp_path, shards, TrainingStep(clock), accumulate_grad_batches=2, max_steps=2, log_every_n_steps=1
        )
    for name in ("audio_seconds_per_second", "padding_share", "data_wait_share"):
        assert column(rows, name) == pytest.approx(column(run[0], name)), name
    assert column(rows, "mfu") == pytest.approx([mfu / 2 for mfu in column(run[0], "mfu")])


def test_training_time_excludes_validation_and_checkpoints(run: Run, shards: ShardSet, tmp_path: Path) -> None:
    with simulated_time() as clock:
        interruptions = Interruptions(clock, tmp_path / "interrupted.ckpt")
        validation = {"limit_val_batches": 1, "val_check_interval": 2, "check_val_every_n_epoch": None}
        rows = throughput_rows(tmp_path, shards, TrainingStep(clock), interruptions, **validation)
    assert (interruptions.validated, interruptions.saved) == (2, 3)
    for name in KEYS[:-1]:
        assert column(rows, name) == pytest.approx(column(run[0], name)), name


def test_a_gpu_is_synchronized_only_for_logs_and_memory_is_the_peak_between_them(
    shards: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class OnCuda(Throughput):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            super().on_train_start(trainer, pl_module)
            self.device = torch.device("cuda")

    calls: list[str] = []
    peaks = iter([3 * 2**30, 2 * 2**30])
    monkeypatch.setattr(throughput, "peak_flops", lambda device, dtype: calls.append(str(dtype)) or PEAK_FLOPS)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: calls.append("synchronize"))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(peaks))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: calls.append("reset"))
    rows = throughput_rows(tmp_path, shards, callback=OnCuda(), precision="bf16-mixed")
    assert column(rows, "peak_memory_gib") == [3, 2]
    assert calls == ["torch.bfloat16", *["synchronize", "reset"] * 2]  # the peak of the run's precision


def test_measuring_the_peak_of_a_device_does_not_change_the_random_state() -> None:
    before = torch.get_rng_state()
    peak = measured_flops(torch.device("cpu"), torch.float32, seconds=0.01)
    assert math.isfinite(peak) and peak > 0
    assert torch.equal(torch.get_rng_state(), before)


def test_a_batch_has_its_number_of_valid_frames_on_any_device(shards: ShardSet) -> None:
    batch = decoder_batch(shards)
    assert batch.num_frames == int(batch.blocks.valid.sum()) < batch.blocks.valid.numel()
    assert batch.to("meta").num_frames == batch.num_frames


def _train_with_delay(rank: int, rendezvous: Path, folder: Path) -> None:
    """Runs five DDP steps, each 0.2 s later on the second rank, and writes the collective wait time."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    model = DistributedDataParallel(nn.Linear(8, 8))
    for _ in range(5):
        time.sleep(0.2 * rank)
        model(torch.randn(4, 8)).sum().backward()
    (folder / str(rank)).write_text(str(collective_wait_ms(model)))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_the_slower_of_two_ranks_waits_less_for_gradients(tmp_path: Path) -> None:
    multiprocessing.spawn(_train_with_delay, (tmp_path / "rendezvous", tmp_path), nprocs=2)
    waited, late = (float((tmp_path / rank).read_text()) for rank in "01")
    assert waited > 100 > late >= 0
    assert collective_wait_ms(nn.Linear(8, 8)) is None
