"""The job script `slurm/fit.sbatch`, with `srun` and `scontrol` replaced by scripts."""

import os
import subprocess
from pathlib import Path

import pytest

JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
}


def submit(repository: Path, folder: Path, ended: int, requeue: str, *args: str, **more: str) -> tuple[int, str]:
    """Runs the script in a job whose ranks exit with `ended`; returns its exit code and `scontrol`'s arguments."""
    record = folder / "record"
    for name, body in {
        "srun": f'echo "$@" > {folder}/ran; exit {ended}',
        "scontrol": f"echo $@ > {record}; {requeue}",
        "sleep": "exit 0",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **JOB, **more}
    script = ["bash", str(repository / "slurm" / "fit.sbatch"), "--config=a.yaml", *args]
    code = subprocess.run(script, env=environment, timeout=30, stderr=subprocess.DEVNULL, check=False).returncode
    return code, record.read_text().strip() if record.exists() else ""


@pytest.mark.parametrize(
    ("ended", "restarts", "requeued"),
    [(0, 0, False), (1, 0, False), (75, 0, True), (75, 99, True), (137, 19, True), (137, 20, False)],
)
def test_a_job_is_requeued_if_it_was_stopped_or_killed(
    repository: Path, tmp_path: Path, ended: int, restarts: int, requeued: bool
) -> None:
    more = {"SLURM_RESTART_COUNT": str(restarts)}
    assert submit(repository, tmp_path, ended, "exit 0", **more) == (ended, "requeue 7" if requeued else "")
    assert ("--ckpt_path=last" in (tmp_path / "ran").read_text()) == (restarts > 0)


def test_a_job_that_cannot_requeue_itself_keeps_exit_code_75(repository: Path, tmp_path: Path) -> None:
    for folder, fails in (("refused", "exit 1"), ("missing", "exit 127")):
        (tmp_path / folder).mkdir()
        assert submit(repository, tmp_path / folder, 75, fails)[0] == 75


def test_a_task_of_an_array_requeues_only_itself(repository: Path, tmp_path: Path) -> None:
    # The last task of an array has the array's id as its job id.
    more = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3"}
    assert submit(repository, tmp_path, 75, "exit 0", **more) == (75, "requeue 7_3")


def test_a_checkpoint_that_a_requeued_job_would_not_use_is_refused(repository: Path, tmp_path: Path) -> None:
    for args in (["--ckpt_path=a.ckpt"], ["--ckpt_path", "a.ckpt"]):
        assert submit(repository, tmp_path, 0, "exit 0", *args)[0] == 2
        assert not (tmp_path / "ran").exists()
    assert submit(repository, tmp_path, 0, "exit 0", "--ckpt_path=last")[0] == 0
