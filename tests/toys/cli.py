"""Command lines of small runs, and the error of a command that must fail."""

import multiprocessing
import os
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from sf_lightning.data.shards import ShardSet

DEMO = Path(__file__).parents[2] / "experiments" / "demo.yaml"
VOCODER_RECIPE = DEMO.with_name("vocoder_small.yaml")
FIT = [str(Path(sys.executable).with_name("sf-fit"))]

TOY_DECODER = [
    "--model.layout={num_layers: 2, backward: [0], forward: [1]}",
    "--model.dit={width: 32, num_heads: 2, token_width: 16, speaker_width: 8, vocabulary: 50}",
    "--model.speaker={channels: 8, crop_seconds: 0.5}",
    "--model.decode.steps=2",
    "--model.vocoder.iterations=4",
    "--data.pack_frames=192",
    "--data.val_clips=3",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.precision=32-true",
    "--trainer.max_steps=4",
    "--trainer.val_check_interval=2",
    "--trainer.log_every_n_steps=1",
]


def decoder_arguments(shards: ShardSet, run: Path, *more: str) -> list[str]:
    """Returns the arguments of a four-step decoder run with the demo recipe."""
    paths = [f"--data.train={shards.folder}", f"--data.val={shards.folder}", f"--trainer.default_root_dir={run}"]
    return ["--config", str(DEMO), *TOY_DECODER, *paths, *more]


TOY_VOCODER = [
    "--model.generator={upsample_rates: [10, 16], upsample_kernel_sizes: [20, 32], channels: 16}",
    "--model.generator.kernel_sizes=[3]",
    "--model.generator.dilations=[1]",
    "--model.discriminators={kind: resolutions, periods: [2], width: 0.03125}",
    "--model.segments={frames: 16, per_pack: 2}",
    "--model.compile=false",
]


TOY_VOCODER_RUN = [
    *TOY_VOCODER,
    "--model.losses={mel: single, mel_weight: 45}",
    "--model.optimizer.freeze_steps=1",
    "--data.pack_frames=96",
    "--data.val_clips=2",
    "--data.num_workers=0",
    "--trainer.accelerator=cpu",
    "--trainer.val_check_interval=2",
    "--trainer.log_every_n_steps=1",
    "--trainer.limit_val_batches=1",
]


def vocoder_arguments(shards: ShardSet, run: Path, *more: str) -> list[str]:
    """Returns the arguments of a short vocoder run with the small recipe."""
    paths = [f"--data.train={shards.folder}", f"--data.val={shards.folder}", f"--trainer.default_root_dir={run}"]
    return ["--config", str(VOCODER_RECIPE), *TOY_VOCODER_RUN, *paths, *more]


def logged_arguments(shards: Path | str, run: Path, *more: str) -> list[str]:
    """Returns the arguments of a decoder run that logs every step to CSV and saves a checkpoint every three."""
    return [
        f"--config={DEMO}",
        f"--data.train={shards}",
        f"--data.val={shards}",
        f"--trainer.default_root_dir={run}",
        "--data.pack_frames=192",
        "--data.lanes=2",
        "--data.val_clips=2",
        "--model.layout={num_layers: 2, block_size: 24, backward: [0], forward: [1]}",
        "--model.dit={width: 32, num_heads: 2, token_width: 16, speaker_width: 8, vocabulary: 50}",
        "--model.speaker={channels: 8, crop_seconds: 0.25}",
        "--model.optimizer.warmup_steps=2",
        "--trainer.precision=32-true",
        "--trainer.limit_val_batches=0",
        "--trainer.log_every_n_steps=1",
        "--trainer.enable_progress_bar=false",
        "--trainer.logger=[{class_path: sf_lightning.training.loggers.ResumableCSVLogger}]",
        "--trainer.callbacks=[{class_path: sf_lightning.training.callbacks.last_checkpoint.LastCheckpoint, "
        "init_args: {every_n_train_steps: 3}}]",
        *more,
    ]


def error_line(capsys: pytest.CaptureFixture, command, *args: str) -> str:
    """Runs a command that must exit with status 2 and a single error line, and returns that line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_status:
        command(list(args))
    lines = capsys.readouterr().err.strip().splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert exit_status.value.code == 2 and len(errors) == 1 and "Traceback" not in "\n".join(lines), lines
    return errors[0]


def _run_command(main: Callable[[list[str]], None], arguments: list[str]) -> None:
    """Runs a command in this process without its standard output."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    main(arguments)


def start_command(main: Callable[[list[str]], None], arguments: list[str]) -> BaseProcess:
    """Starts a command in a process of its own, forked from one that has imported it (see conftest.py)."""
    process = multiprocessing.get_context("forkserver").Process(target=_run_command, args=(main, arguments))
    process.start()
    return process


def finish(process: BaseProcess) -> None:
    """Waits until a command ends, which must succeed within three minutes."""
    process.join(180)
    assert process.exitcode == 0
