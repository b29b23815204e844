"""Sweeps over a program that stands in for `sf-fit`, and workers as processes."""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from sf_lightning.sweeps.results import Results

PROGRAM = Path(__file__).with_name("fake_fit.py")


def sweep_file(folder: Path, name: str = "toy", **changes: Any) -> Path:
    """Writes a sweep file over three rates of progress and returns its path."""
    content = {
        "name": name,
        "method": "grid",
        "metric": {"name": "streamed_within_500_ms/stoi", "goal": "maximize"},
        "program": str(PROGRAM),
        "parameters": {"rate": {"values": [1, 3, 2]}, "layout": {"value": "{backward: 2, forward: 1}"}},
    }
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def first_steps(folder: Path, number: int) -> list[int]:
    """Returns the step from which each process of a trial started or resumed."""
    return [int(line) for line in (Results(folder).trials[number].folder / "starts").read_text().split()]


def start_worker(file: Path, folder: Path, *more: str) -> subprocess.Popen:
    """Starts `sf-sweep` as a process."""
    command = [sys.executable, "-c", "from sf_lightning.cli.start import sweep; sweep()"]
    return subprocess.Popen(
        [*command, str(file), f"--dir={folder}", *more], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_until(condition: Callable[[], bool], seconds: float = 240) -> None:
    """Returns when a condition holds; fails after some seconds."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes(folder: Path) -> list[int]:
    """Returns the ids of the processes that have a folder on their command line."""
    commands = {path.parent.name: path for path in Path("/proc").glob("[0-9]*/cmdline")}
    return [int(number) for number, path in commands.items() if str(folder).encode() in _content(path)]


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # ended in the meantime
        return b""
