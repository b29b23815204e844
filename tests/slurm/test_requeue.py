"""Jobs on a real cluster: preempted, killed, or with a failed node, they log the table of an uninterrupted job."""

import csv
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from sf_lightning.data.shards import ShardSet
from tests.slurm.cluster import FINAL, Cluster
from tests.toys.cli import logged_arguments

pytestmark = pytest.mark.slurm

TIMES = ("latency/", "val/seconds")
"""Columns that are never the same twice."""

CALLBACKS = "sf_lightning.training.callbacks"


def submit(cluster: Cluster, shards: ShardSet, run: Path, strategy: str, steps: int) -> int:
    """Submits a small run on two nodes, with a validation every 40 steps and a checkpoint every 25."""
    args = logged_arguments(
        shards.folder,
        run,
        "--trainer.accelerator=cpu",
        f"--trainer.strategy={strategy}",
        f"--trainer.max_steps={steps}",
        "--trainer.val_check_interval=40",
        "--trainer.limit_val_batches=1.0",
        f"--trainer.callbacks=[{{class_path: {CALLBACKS}.streaming_validation.StreamingValidation}}, "
        f"{{class_path: {CALLBACKS}.last_checkpoint.LastCheckpoint, init_args: {{every_n_train_steps: 25}}}}]",
    )
    options = ("--nodes=2", "--gpus-per-node=0", "--ntasks-per-node=1", "--cpus-per-task=1")
    return cluster.submit("slurm/fit.sbatch", *args, options=options)


def rows(run: Path) -> list[dict[str, str]]:
    """Returns the rows of a run's table without times."""
    with (run / "csv" / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if value and not name.startswith(TIMES)} for row in table]


def stop(cluster: Cluster, job: int, chance: random.Random) -> None:
    """Asks a job to stop: both ranks at once, one after the other, or only one, at random."""
    mode = chance.randrange(3)
    if mode == 0:
        cluster.signal(job)
        return
    first = chance.randrange(2)
    cluster.signal_rank(job, first, signal.SIGUSR1)
    if mode == 1:
        time.sleep(chance.uniform(0, 0.5))
        cluster.signal_rank(job, 1 - first, signal.SIGUSR1)


def is_done(cluster: Cluster, job: int) -> bool:
    """Returns whether a job has ended."""
    return set(cluster.show(job, "JobState")) <= FINAL


def has_restarted(cluster: Cluster, job: int, times: int) -> bool:
    """Returns whether a job runs after `times` restarts, or has ended."""
    return is_done(cluster, job) or (
        cluster.restarts(job) == times and set(cluster.show(job, "JobState")) == {"RUNNING"}
    )


def has_logged(cluster: Cluster, job: int, run: Path, since: float) -> bool:
    """Returns whether a job has written to its table after the time `since`, or has ended."""
    table = run / "csv" / "metrics.csv"
    return is_done(cluster, job) or (table.is_file() and table.stat().st_mtime > since)


def preempt(cluster: Cluster, job: int, run: Path, times: int, chance: random.Random) -> int:
    """Stops a job up to `times` times at random moments and waits for its end; returns the number of stops."""
    for stopped in range(times):
        cluster.until(partial(has_restarted, cluster, job, stopped), job, timeout=120)
        # A third of the stops happen during startup, the others in training, validation or saving.
        if stopped % 3 != 2:
            cluster.until(partial(has_logged, cluster, job, run, time.time()), job, timeout=240)
        time.sleep(chance.uniform(0, 8))
        if is_done(cluster, job):
            return stopped
        stop(cluster, job, chance)
        cluster.until(partial(has_restarted, cluster, job, stopped + 1), job, timeout=120)
    cluster.wait_for(job, "COMPLETED", timeout=600 + 60 * times)
    return times


@pytest.mark.parametrize(
    ("times", "strategies"), [(1, ["fsdp2"]), pytest.param(25, ["ddp", "fsdp2"], marks=pytest.mark.slow)]
)
def test_jobs_preempted_at_random_moments_have_the_table_of_uninterrupted_jobs(
    cluster: Cluster, shards: ShardSet, tmp_path: Path, times: int, strategies: list[str]
) -> None:
    twins = [submit(cluster, shards, tmp_path / f"{name}-twin", name, 120 + 60 * times) for name in strategies]
    jobs = [submit(cluster, shards, tmp_path / name, name, 120 + 60 * times) for name in strategies]
    with ThreadPoolExecutor() as pool:
        futures = [
            pool.submit(preempt, cluster, job, tmp_path / name, times, random.Random(job))
            for name, job in zip(strategies, jobs, strict=True)
        ]
        stopped = [future.result() for future in futures]
    for name, twin, job, count in zip(strategies, twins, jobs, stopped, strict=True):
        cluster.wait_for(twin, "COMPLETED", timeout=600)
        assert cluster.restarts(job) in (count, count - 1)  # the job may have ended before the last signal
        assert count > times // 2, "it was too quick to be stopped"
        assert rows(tmp_path / name) == rows(tmp_path / f"{name}-twin")


@pytest.mark.slow
def test_a_job_resumes_from_its_last_checkpoint_after_a_killed_rank_and_after_a_failed_node(
    cluster: Cluster, shards: ShardSet, tmp_path: Path
) -> None:
    twin, run = tmp_path / "twin", tmp_path / "run"
    jobs = [submit(cluster, shards, folder, "fsdp2", 150) for folder in (twin, run)]
    saved = run / "checkpoints"
    cluster.until(lambda: any(saved.glob("last-*.ckpt")), jobs[1], timeout=120)
    cluster.signal_rank(jobs[1], 1, signal.SIGKILL)
    cluster.until(lambda: has_restarted(cluster, jobs[1], 1), jobs[1], timeout=90)
    cluster.wait_for(jobs[0], "COMPLETED", timeout=180)
    before = {*saved.glob("last-*.ckpt")}
    cluster.until(lambda: {*saved.glob("last-*.ckpt")} != before, jobs[1], timeout=120)
    cluster.run("scontrol", "update", "nodename=node2", "state=down", "reason=test")
    cluster.run("scontrol", "update", "nodename=node2", "state=resume")
    cluster.wait_for(jobs[1], "COMPLETED", timeout=180)
    assert cluster.restarts(jobs[1]) == 2
    assert rows(run) == rows(twin)
