"""What sf-fit's loop costs a step over a bare PyTorch loop: the same network, batches, precision and updates.

    python benchmarks/loop.py --shards shards/demo [--json]
    python benchmarks/loop.py --shards shards/demo --data.pack_frames=96    # parts of short steps: less noise

`sf-fit` itself makes everything from experiments/demo.yaml and any further options; only what is then done with
it is another here. The bare loop draws, computes the loss, goes backward, clips, steps optimizer and schedule,
moves the average, with the module's own pieces, and does nothing else. Then comes Lightning's Trainer, and one
more of the run's loggers and callbacks at a time, until the run is that of `sf-fit` without validation. Every way
must arrive at the loss of the others.

A step lasts from one batch that is handed over to the next. The cost of a way is the median over windows of
`log_every_n_steps` steps, at each place of the window, and the mean over places: so steps that log count as often
as they come. The ways are taken in turn, several times, and the fastest of each counts; the first round does not if
there are more, for processes that score speech start in it. The progress bar draws to /dev/null as to a terminal.
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
"""Of a run, in the order in which they are added; with the last of `WAYS` comes whatever else it has."""
WINDOW = int(OmegaConf.load(CONFIG).trainer.log_every_n_steps)
WAYS = ("bare loop", "Trainer and module", *(f"+ {part.__name__}" for part in PARTS), "as sf-fit makes it")

Fit = Callable[[L.Trainer, StreamFlowModule, ShardDataModule], float]


def bare(trainer: L.Trainer, module: StreamFlowModule, data: ShardDataModule) -> float:
    """A run without Lightning: of the trainer only settings are read. Returns the last loss."""
    trainer.strategy.connect(module)
    module.trainer = data.trainer = trainer
    data.setup("fit")
    device = trainer.strategy.root_device
    module.to(device).train()
    made = module.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    batches = iter(data.train_dataloader())
    loss = torch.zeros(())
    for step in range(1, trainer.max_steps + 1):
        batch = next(batches).to(device, non_blocking=True)
        optimizer.zero_grad()
        with trainer.precision_plugin.train_step_context():
            loss = module._losses(module.model, batch, module._draw(batch)).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(module.model.parameters(), trainer.gradient_clip_val or float("inf"))
        optimizer.step()
        schedule.step()
        move_average(module.average, module.model, step, module.optimizer.ema_decay)
    return float(loss)


def with_parts(count: int | None) -> Fit:
    """A run of Lightning's with the first of `PARTS`; with None, with everything that it was given."""

    def fit(trainer: L.Trainer, module: StreamFlowModule, data: ShardDataModule) -> float:
        if count is not None:
            trainer.loggers = [each for each in trainer.loggers if isinstance(each, PARTS[:count])]
            trainer.callbacks = [each for each in trainer.callbacks if isinstance(each, PARTS[:count])]
        trainer.fit(module, datamodule=data)
        return float(trainer.callback_metrics["train/loss"])

    return fit


def run(fit: Fit, shards: Path, windows: int, options: list[str]) -> tuple[float, float]:
    """Has `sf-fit` make a run and `fit` do it, quietly; returns seconds of a step and the last loss."""
    times: list[float] = []
    losses: list[float] = []
    batches = StepLoader.__iter__

    def ticking(loader: StepLoader) -> Iterator[Batch]:
        for batch in batches(loader):
            times.append(time.perf_counter())
            yield batch

    def instead(cli: FitCLI, model: StreamFlowModule, datamodule: ShardDataModule, **_: Any) -> None:
        losses.append(fit(cli.trainer, model, datamodule))

    counted = (windows + 1) * WINDOW  # the first window warms up
    with (
        tempfile.TemporaryDirectory() as folder,
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
        patch.object(StepLoader, "__iter__", ticking),
        patch.object(FitCLI, "fit", instead, create=True),
    ):
        given = {"data.train": shards / "train", "data.val": shards / "dev", "trainer.default_root_dir": folder}
        given |= {"trainer.limit_val_batches": 0, "trainer.max_steps": counted + 1}
        sf_fit([f"--config={CONFIG}", *(f"--{name}={value}" for name, value in given.items()), *options])
        wandb.finish()
    steps = torch.tensor(times).double().diff()[WINDOW:counted]
    return float(steps.view(windows, WINDOW).median(0).values.mean()), losses[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=Path, required=True, help="folder of the sets `train` and `dev`")
    parser.add_argument("--windows", type=int, default=5, help="windows of `log_every_n_steps` steps of a run")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each way, of which the fastest counts")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args, given = parser.parse_known_args()
    # Errors in full; the bar is drawn as it is to people, and W&B waits for nobody.
    os.environ |= {"SF_TRACEBACK": "1", "FORCE_COLOR": "1", "WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")
    fits = [bare, *(with_parts(count) for count in range(len(PARTS) + 1)), with_parts(None)]
    best, losses = [float("inf")] * len(fits), [0.0] * len(fits)
    for repeat in range(args.repeats):
        for number, fit in enumerate(fits):
            seconds, losses[number] = run(fit, args.shards, args.windows, given)
            best[number] = seconds if repeat < 2 else min(best[number], seconds)
    if max(losses) - min(losses) > 1e-3 * abs(losses[0]):
        raise RuntimeError(f"the ways do not do the same: their last losses are {losses}")
    table = Table("way", "ms a step", "this part, ms", "over the bare loop")
    previous = best[0]
    for name, seconds in zip(WAYS, best, strict=True):
        cells = (seconds, seconds - previous)
        table.add_row(name, *(f"{1000 * each:.2f}" for each in cells), f"{seconds / best[0] - 1:.1%}")
        previous = seconds
    console = Console(width=110, force_terminal=False)
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{torch.get_num_threads()} threads"
    console.print(f"{device} of {os.cpu_count()} CPU cores, torch {torch.__version__}; last losses {losses}")
    console.print(table)
    if args.json:
        results = {name.removeprefix("+ "): round(1000 * each, 3) for name, each in zip(WAYS, best, strict=True)}
        print(json.dumps({"overhead": round(best[-1] / best[0] - 1, 4), "ms": results}))


if __name__ == "__main__":
    main()
