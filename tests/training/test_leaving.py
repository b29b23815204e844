"""A whole command of two ranks on one machine that is asked to stop: what it says to whoever started it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sf_lightning.data.shards import ShardSet
from tests.toys.cli import logged_arguments


@pytest.mark.slow
def test_two_ranks_that_are_asked_to_stop_say_75_and_srun_killing_one_of_them_changes_nothing(
    shards: ShardSet, tmp_path: Path, repository: Path
) -> None:
    more = [
        "--trainer.max_steps=100000",
        "--trainer.accelerator=cpu",
        "--trainer.devices=2",
        "--trainer.strategy=ddp",
    ]
    script = tmp_path / "fit.py"  # Lightning starts the second rank by the name of the first's file
    script.write_text("from sf_lightning.cli.start import main; main()")
    command = [sys.executable, str(script), *logged_arguments(shards.folder, tmp_path, *more)]
    begun = subprocess.Popen(command, cwd=repository, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    deadline = time.monotonic() + 240
    while not (tmp_path / "checkpoints" / "last.ckpt").is_file() and time.monotonic() < deadline:
        time.sleep(0.1)
    begun.send_signal(signal.SIGUSR1)
    assert begun.stdout is not None
    for line in begun.stdout:
        if line.startswith("stopped as requested"):
            time.sleep(0.3)
            begun.send_signal(signal.SIGTERM)
            break
    begun.communicate(timeout=60)
    assert begun.returncode == 75
