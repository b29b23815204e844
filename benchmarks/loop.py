"""Overhead per step of sf-fit over a plain PyTorch loop with the same network, batches, precision and updates.

    python benchmarks/loop.py --shards shards/demo [--json]
    python benchmarks/loop.py --shards shards/demo --data.pack_frames=96    # shorter steps, less noise

`sf-fit` builds everything from the demo recipe and any further options; only the training loop differs. The plain
loop draws the batch's noise, computes loss and gradients, clips them, and updates weights, schedule and averages
with the module's code, and nothing else. The next variant uses Lightning's Trainer; the loggers and callbacks of
the run are then added one by one, up to the complete run of `sf-fit` without validation. All variants must end
with the same loss.

A step lasts from one batch to the next. The result is the median over windows of `log_every_n_steps` steps for
each position in the window, averaged over positions, so that steps that log count with their frequency. The
variants alternate, and the fastest run of each counts. The first round, in which scoring processes start, is left
out if there are more. The progress bar is drawn to /dev/null as if to a terminal.
"""

import argparse
import contextlib
import json
import logging
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import lightning as L
import torch
import wandb
from lightning.pytorch.callbacks import LearningRateMonitor
from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from sf_lightning.cli.fit import FitCLI
from sf_lightning.cli.fit import main as sf_fit
from sf_lightning.data.packing import Batch
from sf_lightning.training.callbacks.last_checkpoint import LastCheckpoint
from sf_lightning.training.callbacks.preemption import Preemption
from sf_lightning.training.callbacks.progress import ProgressBar
from sf_lightning.training.callbacks.throughput import Throughput
from sf_lightning.training.datamodule import ShardDataModule
from sf_lightning.training.ema import move_average
from sf_lightning.training.loader import StepLoader
from sf_lightning.training.loggers import ResumableCSVLogger, ResumableWandbLogger
from sf_lightning.training.module import StreamFlowModule

CONFIG = Path(__file__).parents[1] / "experiments" / "demo.yaml"
PARTS = (
    ResumableCSVLogger,
    ResumableWandbLogger,
    Preemption,
    Throughput,
    LearningRateMonitor,
    ProgressBar,
    LastCheckpoint,
)
"""Loggers and callbacks in the order in which they are added; the last variant also has all others of the run."""
WINDOW = int(OmegaConf.load(CONFIG).trainer.log_every_n_steps)
VARIANTS = ("plain loop", "Trainer and module", *(f"+ {part.__name__}" for part in PARTS), "as in sf-fit")

Fit = Callable[[L.Trainer, StreamFlowModule, ShardDataModule], float]


def run_plain_loop(trainer: L.Trainer, module: StreamFlowModule, data: ShardDataModule) -> float:
    """Trains without Lightning, with the trainer's settings; returns the last loss."""
    trainer.strategy.connect(module)
    module.trainer = data.trainer = trainer
    data.setup("fit")
    device = trainer.strategy.root_device
    module.to(device).train()
    configured = module.configure_optimizers()
    optimizer, schedule = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    batches = iter(data.train_dataloader())
    loss = torch.zeros(())
    for step in range(1, trainer.max_steps + 1):
        batch = next(batches).to(device, non_blocking=True)
        optimizer.zero_grad()
        with trainer.precision_plugin.train_step_context():
            loss = module._losses(module.model, batch, module._random_draws(batch)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.model.parameters(), trainer.gradient_clip_val or float("inf"))
        optimizer.step()
        schedule.step()
        move_average(module.average, module.model, step, module.optimizer.ema_decay)
    return float(loss)


def with_parts(count: int | None) -> Fit:
    """Returns a function that trains with Lightning and the first `count` of `PARTS`, or with all for None."""

    def fit(trainer: L.Trainer, module: StreamFlowModule, data: ShardDataModule) -> float:
        if count is not None:
            trainer.loggers = [logger for logger in trainer.loggers if isinstance(logger, PARTS[:count])]
            trainer.callbacks = [part for part in trainer.callbacks if isinstance(part, PARTS[:count])]
        trainer.fit(module, datamodule=data)
        return float(trainer.callback_metrics["train/loss"])

    return fit


def run(fit: Fit, shards: Path, windows: int, options: list[str]) -> tuple[float, float]:
    """Trains a run of `sf-fit` with `fit`, without output; returns seconds per step and the last loss."""
    times: list[float] = []
    losses: list[float] = []
    batches = StepLoader.__iter__

    def timed_batches(loader: StepLoader) -> Iterator[Batch]:
        for batch in batches(loader):
            times.append(time.perf_counter())
            yield batch

    def fit_instead(cli: FitCLI, model: StreamFlowModule, datamodule: ShardDataModule, **_: Any) -> None:
        losses.append(fit(cli.trainer, model, datamodule))

    counted = (windows + 1) * WINDOW  # the first window warms up
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as devnull,
        contextlib.redirect_stdout(devnull),
        contextlib.redirect_stderr(devnull),
        patch.object(StepLoader, "__iter__", timed_batches),
        patch.object(FitCLI, "fit", fit_instead, create=True),
    ):
        given = {"data.train": shards / "train", "data.val": shards / "dev", "trainer.default_root_dir": folder}
        given |= {"trainer.limit_val_batches": 0, "trainer.max_steps": counted + 1}
        sf_fit([f"--config={CONFIG}", *(f"--{name}={value}" for name, value in given.items()), *options])
        wandb.finish()
    steps = torch.tensor(times).double().diff()[WINDOW:counted]
    return float(steps.view(windows, WINDOW).median(0).values.mean()), losses[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True, help="folder with the shard sets `train` and `dev`")
    parser.add_argument("--windows", type=int, default=5, help="number of windows of `log_every_n_steps` steps")
    parser.add_argument("--repeats", type=int, default=5, help="number of runs of each variant; the fastest counts")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    args, given = parser.parse_known_args()
    # Full tracebacks; the progress bar in color as on a terminal; W&B without network.
    os.environ |= {"SF_TRACEBACK": "1", "FORCE_COLOR": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    fits = [run_plain_loop, *(with_parts(count) for count in range(len(PARTS) + 1)), with_parts(None)]
    best, losses = [float("inf")] * len(fits), [0.0] * len(fits)
    for repeat in range(args.repeats):
        for number, fit in enumerate(fits):
            seconds, losses[number] = run(fit, args.shards, args.windows, given)
            best[number] = seconds if repeat < 2 else min(best[number], seconds)
    if max(losses) - min(losses) > 1e-3 * abs(losses[0]):
        raise RuntimeError(f"the variants differ: their last losses are {losses}")
    table = Table("variant", "ms per step", "this part, ms", "overhead over the plain loop")
    previous = best[0]
    for name, seconds in zip(VARIANTS, best, strict=True):
        cells = (seconds, seconds - previous)
        table.add_row(name, *(f"{1000 * cell:.2f}" for cell in cells), f"{seconds / best[0] - 1:.1%}")
        previous = seconds
    console = Console(width=110, force_terminal=False)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    console.print(f"{device} of {os.cpu_count()} CPU cores, torch {torch.__version__}; last losses {losses}")
    console.print(table)
    if args.json:
        results = {
            name.removeprefix("+ "): round(1000 * seconds, 3) for name, seconds in zip(VARIANTS, best, strict=True)
        }
        print(json.dumps({"overhead": round(best[-1] / best[0] - 1, 4), "ms": results}))


if __name__ == "__main__":
    main()
