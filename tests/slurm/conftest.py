"""A Slurm cluster of two nodes."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.cluster import SCRIPT, Cluster


@pytest.fixture(scope="session")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if os.geteuid() or not Path("/etc/debian_version").is_file():
        pytest.skip("a Slurm cluster is brought up by root on Debian alone")
    say = {"capture_output": True, "text": True}
    was_up = subprocess.run([SCRIPT, "env"], **say).returncode == 0
    if not was_up:
        # No pipes: its daemons would keep them open.
        subprocess.run([SCRIPT, "up"], check=True, timeout=300)
    line = subprocess.run([SCRIPT, "env"], check=True, **say).stdout
    yield Cluster(line.strip().partition("SLURM_CONF=")[2], tmp_path_factory.mktemp("logs"))
    if not was_up:
        subprocess.run([SCRIPT, "down"], check=True)


@pytest.fixture
def cluster(_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, with both nodes free; jobs that a failed test has left are cancelled."""
    yield _cluster
    if left := _cluster.run("squeue", "--noheader", "--format=%A").split():
        _cluster.run("scancel", *left)
