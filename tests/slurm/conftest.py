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
        pytest.skip("only root on Debian can start a Slurm cluster")
    options = {"capture_output": True, "text": True}
    was_up = subprocess.run([SCRIPT, "env"], **options).returncode == 0
    if not was_up:
        # Without pipes, because the daemons would keep them open.
        subprocess.run([SCRIPT, "up"], check=True, timeout=300)
    line = subprocess.run([SCRIPT, "env"], check=True, **options).stdout
    yield Cluster(line.strip().partition("SLURM_CONF=")[2], tmp_path_factory.mktemp("logs"))
    if not was_up:
        subprocess.run([SCRIPT, "down"], check=True)


@pytest.fixture
def cluster(_cluster: Cluster) -> Iterator[Cluster]:
    """Returns the cluster with both nodes free; cancels the jobs that a failed test leaves."""
    yield _cluster
    if left := _cluster.run("squeue", "--noheader", "--format=%A").split():
        _cluster.run("scancel", *left)
