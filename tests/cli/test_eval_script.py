"""The job script `slurm/eval.sbatch`, with `srun` and `scontrol` replaced by scripts."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest


@pytest.fixture
def job(tmp_path: Path) -> dict[str, str]:
    """Returns the environment of a job whose `srun` records its arguments and runs until the file `end` exists."""
    for name, body in {
        "srun": f'echo "$@" > {tmp_path}/ran; while [ ! -e {tmp_path}/end ]; do /bin/sleep 0.05; done; exit 3',
        "scontrol": f'echo "$@" > {tmp_path}/told; [ ! -e {tmp_path}/refuses ]',
        "sleep": "exit 0",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"}


def start(repository: Path, folder: Path, job: dict[str, str], *args: str) -> subprocess.Popen:
    """Starts the script, and waits until its step runs."""
    script = subprocess.Popen(
        ["bash", repository / "slurm" / "eval.sbatch", *args], env=job, stderr=subprocess.PIPE
    )
    while not (folder / "ran").exists() or not (folder / "ran").read_text():
        assert script.poll() is None
        time.sleep(0.02)
    return script


@pytest.mark.parametrize(
    ("gpus", "given", "expected"),
    [("1", [], " --device=cuda"), ("0", [], ""), ("1", ["--device", "cpu"], " --device cpu")],
)
def test_arguments_are_passed_to_sf_eval_and_a_gpu_is_used_if_present(
    repository: Path, tmp_path: Path, job: dict[str, str], gpus: str, given: list[str], expected: str
) -> None:
    with start(repository, tmp_path, job | {"SLURM_GPUS_ON_NODE": gpus}, "--out=a b", *given) as script:
        (tmp_path / "end").touch()
        assert script.wait(30) == 3
    assert (tmp_path / "ran").read_text() == f"--export=ALL --cpus-per-task=8 sf-eval --out=a b{expected}\n"
    assert not (tmp_path / "told").exists()


@pytest.mark.parametrize("refuses", [False, True])
def test_the_job_is_requeued_before_its_time_limit_and_the_step_keeps_running(
    repository: Path, tmp_path: Path, job: dict[str, str], refuses: bool
) -> None:
    if refuses:
        (tmp_path / "refuses").touch()
    array = {"SLURM_ARRAY_JOB_ID": "6", "SLURM_ARRAY_TASK_ID": "3"}
    with start(repository, tmp_path, job | array, "--out=a") as script:
        script.send_signal(signal.SIGUSR1)
        while not (tmp_path / "told").exists():
            time.sleep(0.02)
        assert (tmp_path / "told").read_text() in ("requeue 6_3\n", "")
        assert script.poll() is None
        (tmp_path / "end").touch()
        assert script.wait(30) == 3
    assert (tmp_path / "told").read_text() == "requeue 6_3\n"
