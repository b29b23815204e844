"""What `slurm/sweep.sbatch` runs, and does when its worker has ended; no cluster, its commands are made here."""

import os
import subprocess
from pathlib import Path

import pytest


def submit(
    repository: Path, folder: Path, *args: str, ended: int = 0, **more: str
) -> tuple[int, list[str], str, str]:
    """Runs the script in a task of an array; returns exit code, what ran, what was requeued and what was said."""
    for name, body in {
        "srun": f'printf "%s\\n" "$@" > {folder}/ran; grep SigIgn: /proc/$$/status > {folder}/mask; exit {ended}',
        "scontrol": f"echo $@ > {folder}/told",
        "sleep": "exit 0",
    }.items():
        (folder / name).write_text(f"#!/bin/sh\n{body}\n")
        (folder / name).chmod(0o755)
    job = {"SLURM_JOB_ID": "9", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_NTASKS": "1"}
    environment = {"PATH": f"{folder}:{os.environ['PATH']}", **job, **more}
    script = ["bash", str(repository / "slurm" / "sweep.sbatch"), *args]
    done = subprocess.run(script, env=environment, timeout=30, capture_output=True, text=True, check=False)
    ran, told = folder / "ran", folder / "told"
    return (
        done.returncode,
        ran.read_text().splitlines() if ran.exists() else [],
        told.read_text().strip() if told.exists() else "",
        done.stderr,
    )


def test_a_task_is_one_worker_that_ignores_early_signals_and_waits_for_no_other(
    repository: Path, tmp_path: Path
) -> None:
    file = "experiments/sweeps/mask_layouts.yaml"
    code, ran, told, _ = submit(repository, tmp_path, file, "--trainer.devices=4", "--model.seed=a b")
    worker = ["sf-sweep", file, "--stay=false", "--trainer.devices=4", "--model.seed=a b"]
    assert (code, told) == (0, "") and ran[-len(worker) :] == worker
    before = ["env", "-u", "SLURM_NTASKS", "bash", "-c", 'trap "" USR1; exec "$@"', "sf-sweep"]
    assert ran[-len(worker) - len(before) : -len(worker)] == before  # ranks of trials are no tasks
    assert int((tmp_path / "mask").read_text().split()[-1], 16) >> 9 & 1  # USR1


def test_the_id_of_a_sweep_of_wandbs_server_runs_its_agent(repository: Path, tmp_path: Path) -> None:
    _, ran, _, _ = submit(repository, tmp_path, "somebody/sf-lightning/abc123")
    assert ran[-3:] == ["wandb", "agent", "somebody/sf-lightning/abc123"]


@pytest.mark.parametrize(
    ("ended", "restarts", "requeued"),
    [(0, 0, False), (2, 0, False), (75, 0, True), (75, 99, True), (137, 19, True), (137, 20, False)],
)
def test_a_worker_that_was_stopped_or_killed_begins_again_alone(
    repository: Path, tmp_path: Path, ended: int, restarts: int, requeued: bool
) -> None:
    more = {"SLURM_RESTART_COUNT": str(restarts)}
    code, _, told, _ = submit(repository, tmp_path, "s.yaml", ended=ended, **more)
    assert (code, told) == (ended, "requeue 7_3" if requeued else "")


@pytest.mark.parametrize(
    ("args", "more", "said"),
    [
        ((), {}, "no sweep: sbatch slurm/sweep.sbatch"),
        (("s.yaml",), {"SLURM_NTASKS": "4"}, "--ntasks is 4: a worker is one task"),
    ],
)
def test_what_does_not_fit_is_one_line(
    repository: Path, tmp_path: Path, args: tuple[str, ...], more: dict[str, str], said: str
) -> None:
    code, ran, _, err = submit(repository, tmp_path, *args, **more)
    assert (code, ran) == (2, []) and err.startswith("error: ") and said in err and len(err.splitlines()) == 1
