"""What `slurm/eval.sbatch` runs, and what it does near its end; no cluster, `srun` and `scontrol` are made here."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """The environment of a job, in which `srun` says what it was told and waits for a file, `end`."""
    for name, body in {
        "srun": f'echo "$@" > {tmp_path}/ran; while [ ! -e {tmp_path}/end ]; do /bin/sleep 0.05; done; exit 3',
        "scontrol": f'echo "$@" > {tmp_path}/told; [ ! -e {tmp_path}/refuses ]',
        "sleep": "exit 0",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}


def begin(repository: Path, folder: Path, job: dict[str, str], *args: str) -> subprocess.Popen:
    """Runs the script, and waits until its step runs."""
    script = subprocess.Popen(
        ["bash", repository / "slurm" / "eval.sbatch", *args], env=job, stderr=subprocess.PIPE
    )
    while not (folder / "ran").exists() or not (folder / "ran").read_text():
        assert script.poll() is None
        time.sleep(0.02)
    return script


@pytest.mark.parametrize(
    ("gpus", "given", "wanted"),
    [("1", [], " --device=cuda"), ("0", [], ""), ("1", ["--device", "cpu"], " --device cpu")],
)
def test_arguments_are_those_of_sf_eval_and_a_gpu_is_used_where_there_is_one(
    repository: Path, tmp_path: Path, job: dict[str, str], gpus: str, given: list[str], wanted: str
) -> None:
    with begin(repository, tmp_path, job | {"SLURM_GPUS_ON_NODE": gpus}, "--out=a b", *given) as script:
        (tmp_path / "end").touch()
        assert script.wait(30) == 3
    assert (tmp_path / "ran").read_text() == f"--export=ALL --cpus-per-task=8 sf-eval --out=a b{wanted}\n"
    assert not (tmp_path / "told").exists()


@pytest.mark.parametrize("refuses", [False, True])
def test_near_its_end_it_is_requeued_and_what_runs_is_not_ended(
    repository: Path, tmp_path: Path, job: dict[str, str], refuses: bool
) -> None:
    if refuses:
        (tmp_path / "refuses").touch()
    array = {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "3"}
    with begin(repository, tmp_path, job | array, "--out=a") as script:
        script.send_signal(signal.SIGUSR1)
        while not (tmp_path / "told").exists():
            time.sleep(0.02)
        assert (tmp_path / "told").read_text() in ("requeue 6_3\n", "")
        assert script.poll() is None
        (tmp_path / "end").touch()
        assert script.wait(30) == 3
    assert (tmp_path / "told").read_text() == "requeue 6_3\n"
