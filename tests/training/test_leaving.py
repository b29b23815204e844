"""A command with two ranks on one machine that is asked to stop: its exit code."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sf_lightning.data.shards import ShardSet
from tests.toys.cli import logged_arguments


@pytest.mark.slow
def test_two_ranks_that_are_asked_to_stop_exit_with_75_even_if_sigterm_follows(
    shards: ShardSet, tmp_path: Path, repository: Path
) -> None:
    more = [
        "--trainer.max_steps=100000",
        "--trainer.accelerator=cpu",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
    ]
    script = tmp_path / "fit.py"  # Lightning starts the second rank with the file of the first
    script.write_text("from sf_lightning.cli.start import main; main()")
    command = [sys.executable, str(script), *logged_arguments(shards.folder, tmp_path, *more)]
    process = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 240
    while not (tmp_path / "checkpoints" / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGUSR1)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("stopped as requested"):
            time.sleep(0.3)
            process.send_signal(signal.SIGTERM)
            break
    process.communicate(timeout=60)
    assert process.returncode == 75
