"""`slurm/sweep.sbatch` with stand-ins for Slurm's commands: what it runs, and when it requeues its task."""

import os
import subprocess
from pathlib import Path

import pytest


def submit(
    repository: Path, folder: Path, *args: str, code: int = 0, **environment: str
) -> tuple[int, list[str], str, str]:
    """Runs the script as a task of an array; returns its exit code, srun's and scontrol's arguments, and stderr."""
    for name, body in {
        "srun": f'printf "%s\\n" "$@" > {folder}/ran; grep SigIgn: /proc/$$/status > {folder}/mask; exit {code}',
        "scontrol": f"echo $@ > {folder}/requeued",
        "sleep": "exit 0",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_NTASKS": "1"}
    variables = {"PATH": f"{folder}:{os.environ['PATH']}", **job, **environment}
    script = ["bash", str(repository / "slurm" / "sweep.sbatch"), *args]
    process = subprocess.run(script, env=variables, timeout=30, capture_output=True, text=True, check=False)
    ran, requeued = folder / "ran", folder / "requeued"
    return (
        process.returncode,
        ran.read_text().splitlines() if ran.exists() else [],
        requeued.read_text().strip() if requeued.exists() else "",
        process.stderr,
    )


def test_a_task_is_one_worker_that_ignores_early_signals_and_leaves_when_idle(
    repository: Path, tmp_path: Path
) -> None:
    file = "experiments/sweeps/mask_layouts.yaml"
    code, ran, requeued, _ = submit(repository, tmp_path, file, "--trainer.devices=4", "--model.seed=a b")
    worker = ["sf-sweep", file, "--wait=120", "--trainer.devices=4", "--model.seed=a b"]
    assert (code, requeued) == (0, "") and ran[-len(worker) :] == worker
    before = ["env", "-u", "SLURM_NTASKS", "bash", "-c", 'trap "" USR1; exec "$@"', "sf-sweep"]
    assert ran[-len(worker) - len(before) : -len(worker)] == before  # trials are not ranks of the task
    assert int((tmp_path / "mask").read_text().split()[-1], 16) >> 9 & 1  # USR1


def test_a_sweep_of_the_package_is_given_by_name(repository: Path, tmp_path: Path) -> None:
    _, ran, _, _ = submit(repository, tmp_path, "mask_layouts")
    assert ran[-3:] == ["sf-sweep", "mask_layouts", "--wait=120"]


def test_the_id_of_a_sweep_on_wandbs_server_runs_its_agent(repository: Path, tmp_path: Path) -> None:
    _, ran, _, _ = submit(repository, tmp_path, "somebody/sf-lightning/abc123")
    assert ran[-3:] == ["wandb", "agent", "somebody/sf-lightning/abc123"]


@pytest.mark.parametrize(
    ("srun_code", "restarts", "requeues"),
    [(0, 0, False), (2, 0, False), (75, 0, True), (75, 99, True), (137, 19, True), (137, 20, False)],
)
def test_only_the_task_of_a_worker_that_was_stopped_or_killed_is_requeued(
    repository: Path, tmp_path: Path, srun_code: int, restarts: int, requeues: bool
) -> None:
    count = {"SLURM_RESTART_COUNT": str(restarts)}
    exit_code, _, requeued, _ = submit(repository, tmp_path, "s.yaml", code=srun_code, **count)
    assert (exit_code, requeued) == (srun_code, "requeue 7_3" if requeues else "")


@pytest.mark.parametrize(
    ("args", "environment", "message"),
    [
        ((), {}, "no sweep file: sbatch slurm/sweep.sbatch"),
        (("s.yaml",), {"SLURM_NTASKS": "4"}, "--ntasks is 4: expected 1"),
    ],
)
def test_a_mistake_is_one_line(
    repository: Path, tmp_path: Path, args: tuple[str, ...], environment: dict[str, str], message: str
) -> None:
    code, ran, _, err = submit(repository, tmp_path, *args, **environment)
    assert (code, ran) == (2, []) and err.startswith("error: ") and message in err and len(err.splitlines()) == 1
