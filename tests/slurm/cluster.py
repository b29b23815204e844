"""Submits, watches and signals jobs of the test cluster."""

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
        configuration: Path of the cluster's `slurm.conf`.
        folder: Folder of the logs of jobs.
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
        """Runs a Slurm command and returns its standard output."""
        options = {"cwd": self.root, "env": self.environment | environment, "text": True, "timeout": 60}
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, **options).stdout

    def submit(self, script: str | Path, *args: str, options: tuple[str, ...] = (), **environment: str) -> int:
        """Submits a job script with arguments and options of sbatch, and returns the job's id."""
        sbatch = ("sbatch", "--parsable", f"--output={self.logs}/%A.%a.log", *options)
        return int(self.run(*sbatch, str(script), *args, **environment))

    def show(self, job: int, field: str) -> list[str]:
        """Returns a field of a job from `scontrol show`; for an array, of all its tasks."""
        return re.findall(rf"\b{field}=(\S*)", self.run("scontrol", "show", "--oneliner", "job", str(job)))

    def wait_for(self, job: int, state: str, timeout: float = 60) -> None:
        """Waits until a job, or every task of an array, is in a state; fails if it has ended in another."""
        self.until(lambda: set(self.show(job, "JobState")) == {state}, job, timeout)

    def until(self, condition: Callable[[], bool], job: int, timeout: float = 60) -> None:
        """Waits until a condition holds; fails when the job has ended or the time is up."""
        deadline = time.monotonic() + timeout
        while True:
            states = set(self.show(job, "JobState"))
            if condition():
                return
            if states <= FINAL or time.monotonic() > deadline:
                pytest.fail(f"job {job} is {' and '.join(states)}; its log:\n{self.log(job)}")
            time.sleep(0.2)

    def restarts(self, job: int) -> int:
        """Returns how often a job was requeued."""
        return max(int(count) for count in self.show(job, "Restarts"))

    def signal(self, job: int, name: str = "USR1") -> None:
        """Signals the ranks of a job, as Slurm does before a time limit or a preemption."""
        self.run("scancel", f"--signal={name}", str(job))

    def signal_rank(self, job: int, rank: int, signum: int) -> None:
        """Signals all processes of one rank, as the Slurm daemon of its node does."""
        wanted = {f"SLURM_JOB_ID={job}".encode(), f"SLURM_PROCID={rank}".encode()}
        for path in Path("/proc").glob("[0-9]*/environ"):
            # Processes may end in the meantime.
            with contextlib.suppress(OSError):
                if wanted <= set(path.read_bytes().split(b"\0")):
                    os.kill(int(path.parent.name), signum)

    def requeue(self, job: int) -> None:
        """Requeues a job, as after the failure of a node."""
        self.run("scontrol", "requeue", str(job))

    def log(self, job: int) -> str:
        """Returns the log of a job; for an array, of all its tasks."""
        return "".join(path.read_text() for path in sorted(self.logs.glob(f"{job}.*.log")))
