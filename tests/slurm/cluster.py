"""Jobs of the test cluster: submitted, watched, signalled."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("cluster.sh")
FINAL = {"COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "OUT_OF_MEMORY", "BOOT_FAIL"}


class Cluster:
    """Submits jobs from the repository's root, watches and signals them.

    Args:
        configuration: Its `slurm.conf`.
        folder: Where jobs write their logs.
    """

    def __init__(self, configuration: str, folder: Path) -> None:
        self.root, self.logs = SCRIPT.parents[2], folder
        self.environment = os.environ | {
            "SLURM_CONF": configuration,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(self.root),
            "OMP_NUM_THREADS": "1",
            "WANDB_MODE": "offline",
        }

    def run(self, *command: str, **environment: str) -> str:
        """Runs a command of Slurm's and returns what it says."""
        say = {"cwd": self.root, "env": self.environment | environment, "text": True, "timeout": 60}
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, **say).stdout

    def submit(self, script: str | Path, *args: str, options: tuple[str, ...] = (), **environment: str) -> int:
        """Submits a job script with arguments, and options of sbatch's; returns the job's id."""
        sbatch = ("sbatch", "--parsable", f"--output={self.logs}/%A.%a.log", *options)
        return int(self.run(*sbatch, str(script), *args, **environment))

    def show(self, job: int, field: str) -> list[str]:
        """What Slurm knows of a job under a name; of an array, of each of its tasks."""
        return re.findall(rf"\b{field}=(\S*)", self.run("scontrol", "show", "--oneliner", "job", str(job)))

    def wait_for(self, job: int, state: str, timeout: float = 60) -> None:
        """Waits until a job, or each task of an array, is in a state; one that has ended in another has failed."""
        self.until(lambda: set(self.show(job, "JobState")) == {state}, job, timeout)

    def until(self, condition: Callable[[], bool], job: int, timeout: float = 60) -> None:
        """Waits for what a job is to bring about, but no longer than it lives."""
        deadline = time.monotonic() + timeout
        while True:
            states = set(self.show(job, "JobState"))
            if condition():
                return
            if states <= FINAL or time.monotonic() > deadline:
                pytest.fail(f"job {job} is {' and '.join(states)}; its log:\n{self.log(job)}")
            time.sleep(0.2)

    def restarts(self, job: int) -> int:
        """How often a job was requeued."""
        return max(int(count) for count in self.show(job, "Restarts"))

    def signal(self, job: int, name: str = "USR1") -> None:
        """Signals the ranks of a job, as Slurm itself does before a time limit or a preemption."""
        self.run("scancel", f"--signal={name}", str(job))

    def signal_rank(self, job: int, rank: int, signum: int) -> None:
        """Signals all processes of one rank, as the Slurm of its node does."""
        wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode()}
        for path in Path("/proc").glob("[0-9]*/environ"):
            # Those that end meanwhile need no signal.
            with contextlib.suppress(OSError):
                if wanted <= set(path.read_bytes().split(b"\0")):
                    os.kill(int(path.parent.name), signum)

    def requeue(self, job: int) -> None:
        """Has a job begin again, as after the failure of a node."""
        self.run("scontrol", "requeue", str(job))

    def log(self, job: int) -> str:
        """What a job has written; of an array, all of its tasks."""
        return "".join(path.read_text() for path in sorted(self.logs.glob(f"{job}.*.log")))
