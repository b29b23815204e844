"""Jobs that are preempted, killed or lose a node, on a real cluster: they go on as if nothing had been."""

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
    """The table of a run, but for times."""
    with (run / "csv" / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if value and not name.startswith(TIMES)} for row in table]


def stop(cluster: Cluster, job: int, chance: random.Random) -> None:
    """Asks a job to stop: both ranks at once, or one after the other, or one alone."""
    way = chance.randrange(3)
    if way == 0:
        cluster.signal(job)
        return
    first = chance.randrange(2)
    cluster.signal_rank(job, first, signal.SIGUSR1)
    if way == 1:
        time.sleep(chance.uniform(0, 0.5))
        cluster.signal_rank(job, 1 - first, signal.SIGUSR1)


def is_done(cluster: Cluster, job: int) -> bool:
    """Whether a job is over."""
    return set(cluster.show(job, "JobState")) <= FINAL


def has_restarted(cluster: Cluster, job: int, times: int) -> bool:
    """Whether a job runs, or is done, after so many restarts."""
    return is_done(cluster, job) or (
        cluster.restarts(job) == times and set(cluster.show(job, "JobState")) == {"RUNNING"}
    )


def works(cluster: Cluster, job: int, run: Path, since: float) -> bool:
    """Whether a job has written to its table since then, or is done."""
    table = run / "csv" / "metrics.csv"
    return is_done(cluster, job) or (table.is_file() and table.stat().st_mtime > since)


def preempt(cluster: Cluster, job: int, run: Path, times: int, chance: random.Random) -> int:
    """Stops a job so often, at random moments, and waits for its end; returns how often it came in time."""
    for stopped in range(times):
        cluster.until(partial(has_restarted, cluster, job, stopped), job, timeout=120)
        # One in three in the start, the rest in training, validation and saving, however long the start takes.
        if stopped % 3 != 2:
            cluster.until(partial(works, cluster, job, run, time.time()), job, timeout=240)
        time.sleep(chance.uniform(0, 8))
        if is_done(cluster, job):
            return stopped
        stop(cluster, job, chance)
        cluster.until(partial(has_restarted, cluster, job, stopped + 1), job, timeout=120)
    cluster.wait_for(job, "COMPLETED", timeout=240 + 60 * times)
    return times


@pytest.mark.parametrize("times", [1, pytest.param(25, marks=pytest.mark.slow)])
def test_jobs_that_are_preempted_at_random_moments_have_the_table_of_those_that_are_not(
    cluster: Cluster, shards: ShardSet, tmp_path: Path, times: int
) -> None:
    both = ("ddp", "fsdp2")
    twins = [submit(cluster, shards, tmp_path / f"{each}-twin", each, 240 + 60 * times) for each in both]
    jobs = [submit(cluster, shards, tmp_path / each, each, 240 + 60 * times) for each in both]
    with ThreadPoolExecutor() as pool:
        waiting = [
            pool.submit(preempt, cluster, job, tmp_path / each, times, random.Random(job))
            for each, job in zip(both, jobs, strict=True)
        ]
        stopped = [each.result() for each in waiting]
    for each, twin, job, count in zip(both, twins, jobs, stopped, strict=True):
        cluster.wait_for(twin, "COMPLETED", timeout=240)
        assert cluster.restarts(job) in (count, count - 1)  # the last signal may have come too late
        assert count > times // 2, "it was too quick to be stopped"
        assert rows(tmp_path / each) == rows(tmp_path / f"{each}-twin")


@pytest.mark.slow
def test_a_job_goes_on_from_its_last_checkpoint_when_a_rank_is_killed_and_when_a_node_fails(
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
