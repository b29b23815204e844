"""The job scripts on a real cluster: ranks on two nodes train as one process, array tasks build one set."""

import contextlib
import csv
import json
import os
import signal
from pathlib import Path

import pytest
import torch

from sf_lightning.data.shards import ShardSet
from sf_lightning.sweeps.results import Results
from tests.slurm.cluster import Cluster
from tests.toys.cli import logged_arguments
from tests.toys.sweep import sweep_file

pytestmark = pytest.mark.slurm

LOGGERS = (
    "--trainer.logger=[{class_path: sf_lightning.training.loggers.ResumableWandbLogger, "
    "init_args: {project: test}}, {class_path: sf_lightning.training.loggers.ResumableCSVLogger}]"
)


def test_two_and_four_ranks_on_two_nodes_have_the_losses_of_one_process_and_one_run_folder(
    cluster: Cluster, shards: ShardSet, tmp_path: Path
) -> None:
    jobs = {}
    for nodes, tasks in ((1, 1), (2, 1), (2, 2)):
        run = tmp_path / f"ranks-{nodes * tasks}"
        run.mkdir()
        recorder = f"{{class_path: tests.toys.decoder.RankLosses, init_args: {{folder: {run}}}}}"
        last = "{class_path: sf_lightning.training.callbacks.last_checkpoint.LastCheckpoint}"
        speed = "{class_path: sf_lightning.training.callbacks.throughput.Throughput}"
        more = [
            "--trainer.accelerator=cpu",
            "--trainer.max_steps=50",
            "--model.predict=velocity",
            # Where a gradient is 0, Adam scales rounding errors up: differences grow with the learning rate.
            "--model.optimizer.learning_rate=1e-5",
            "--data.lanes=4",
            "--data.val_clips=4",
            f"--trainer.callbacks=[{recorder}, {speed}, {last}]",
        ]
        args = logged_arguments(shards.folder, run, *more, LOGGERS)
        options = (f"--nodes={nodes}", f"--ntasks-per-node={tasks}", "--gpus-per-node=0", "--cpus-per-task=1")
        jobs[run] = cluster.submit("slurm/fit.sbatch", *args, options=options)
    losses = []
    for run, job in jobs.items():
        cluster.wait_for(job, "COMPLETED", timeout=240)
        rows = [json.loads(line) for line in (run / "rank0.jsonl").read_text().splitlines()]
        losses.append([row["loss"] for row in rows])
        assert [row["step"] for row in rows] == [*range(1, 51)]
    for several in losses[1:]:
        torch.testing.assert_close(several, losses[0], atol=1e-5, rtol=0)
    assert (run / "rank3.jsonl").is_file() and (run / "checkpoints" / "last.ckpt").is_file()
    assert len([*run.glob("wandb/offline-run-*")]) == 1
    (table,) = run.rglob("metrics.csv")
    with table.open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    names = [f"rank_{rank}/{name}" for rank in range(4) for name in ("step_ms", "collective_wait_ms")]
    assert len(rows) == 50 and all(float(row[name]) > 0 for row in rows[1:] for name in names)


def test_the_tasks_of_an_array_write_the_bytes_of_a_single_build(
    cluster: Cluster, shards: ShardSet, tmp_path: Path
) -> None:
    folder = Path(shards.folder).parent
    args = [f"--audio={folder / 'audio'}", f"--tokenizer={folder / 'kmeans-50.npz'}", "--shard_samples=5"]
    job = cluster.submit(
        "slurm/shards.sbatch", *args, f"--out={tmp_path / 'set'}", options=("--array=1-3", "--cpus-per-task=1")
    )
    cluster.wait_for(job, "COMPLETED", timeout=180)
    built, single = ({p.name: p.read_bytes() for p in Path(f).iterdir()} for f in (tmp_path / "set", shards.folder))
    assert built.pop("build.json") and single.pop("build.json")  # the arguments of the build, which differ
    assert built == single


def test_sf_fit_gets_the_sizes_of_the_job_ignores_early_signals_and_resumes_after_a_requeue(
    cluster: Cluster, tmp_path: Path
) -> None:
    fit = tmp_path / "sf-fit"
    fit.write_text(
        f'#!/bin/sh\necho "told $*"\ngrep SigIgn: /proc/$$/status\ntouch {tmp_path}/begun.$SLURM_PROCID\n'
        f"while [ ! -e {tmp_path}/end ]; do sleep 0.1; done\n"
    )
    fit.chmod(0o755)
    options = ("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=2")
    path = f"{tmp_path}:{cluster.environment['PATH']}"
    job = cluster.submit("slurm/fit.sbatch", "--config", "a b.yaml", options=options, PATH=path)
    cluster.until(lambda: len([*tmp_path.glob("begun.*")]) == 4, job)
    cluster.signal(job, "USR1")
    cluster.requeue(job)
    (tmp_path / "end").touch()
    cluster.wait_for(job, "COMPLETED")
    assert cluster.restarts(job) == 1
    lines = [line.strip() for line in cluster.log(job).splitlines()]
    assert not any("User defined signal" in line for line in lines)
    for rank in range(4):
        first, again = (line for line in lines if line.startswith(f"{rank}: told"))
        assert first == f"{rank}: told --config a b.yaml --trainer.num_nodes=2 --trainer.devices=2"
        assert again == f"{first} --ckpt_path=last"
        masks = [int(line.split()[-1], 16) for line in lines if line.startswith(f"{rank}: SigIgn")]
        assert len(masks) == 2 and all(mask >> (signal.SIGUSR1 - 1) & 1 for mask in masks)


def test_inconsistent_job_options_end_in_one_line(cluster: Cluster) -> None:
    two = ("--nodes=2", "--cpus-per-task=1", "--gpus-per-node=2")
    refused = {
        ("fit", "", *two, "--ntasks-per-node=1"): "--ntasks-per-node=1, but each node has 2 GPUs",
        ("fit", "", *two, "--ntasks-per-node=2", "--ntasks=3"): "3 tasks are not --ntasks-per-node=2 on each of 2",
        ("fit", "--trainer.devices=1", *two, "--ntasks-per-node=2"): "Slurm sets nodes and devices",
        ("shards", "", "--array=2-3", "--cpus-per-task=1"): "expected all slices, use --array=1-N",
    }
    jobs = {
        cluster.submit(f"slurm/{script}.sbatch", argument, options=tuple(options)): line
        for (script, argument, *options), line in refused.items()
    }
    for job, line in jobs.items():
        cluster.wait_for(job, "FAILED")
        printed = cluster.log(job).splitlines()
        assert all(text.startswith("error: ") and line in text for text in printed) and printed


def test_an_array_of_workers_shares_a_sweep_and_resumes_the_trial_of_a_killed_worker(
    cluster: Cluster, tmp_path: Path
) -> None:
    parameters = {"rate": {"values": [1, 2, 3]}, "pause": {"value": 0.5}, "steps": {"value": 8}}
    file, folder = sweep_file(tmp_path, parameters=parameters), tmp_path / "sweep"
    options = ("--array=1-2", "--gpus-per-node=0", "--cpus-per-task=1")
    job = cluster.submit("slurm/sweep.sbatch", str(file), f"--dir={folder}", options=options)
    checkpoint = folder / "trials" / "000" / "checkpoints" / "last"
    cluster.until(checkpoint.is_file, job)
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            ours = str(folder).encode() in (path / "cmdline").read_bytes()
            if ours and (path / "comm").read_text().startswith("sf-sweep"):
                os.kill(int(path.name), signal.SIGKILL)
                break
    cluster.wait_for(job, "COMPLETED", timeout=240)
    results = Results(folder)
    assert [trial.state for trial in results.trials] == ["complete"] * 3
    assert [trial.value for trial in results.complete] == [24.0, 16.0, 8.0]
