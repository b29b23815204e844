"""Runs a trial: `sf-fit` as a process with its own folder, whose metrics are read while it trains.

Whatever happens to the process, the worker continues; if the worker dies, another one resumes the trial.
"""

import math
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

from sf_lightning.sweeps.trials import LOG, Sweep, Trial
from sf_lightning.training import stop

POLL_SECONDS = 0.5
STOP_SECONDS = 120.0
"""How long a trial may take to save its state when it is asked to stop."""
MAX_KILLS = 3
"""How often the process of a trial may be killed before the trial counts as failed."""


def run_trial(sweep: Sweep, trial: Trial, lock: IO[bytes]) -> Trial:
    """Runs a claimed trial to its end or until this worker is asked to stop, records the result, releases the lock.

    Returns:
        The trial as it is now; still "running" if this worker was asked to stop.
    """
    kills = 0
    with lock:
        while trial.state == "running" and not stop.REQUESTED.is_set():
            code = _run_process(sweep, trial, lock)
            if code is None:
                trial = replace(trial, state="pruned")
            elif code < 0 or code > 128:
                kills += 1
                if kills == MAX_KILLS:
                    error = f"killed {kills} times, the last time with exit code {code}: {last_error(trial.output)}"
                    trial = replace(trial, state="failed", error=error)
            elif code != stop.EXIT_CODE:
                trial = _finished(sweep, trial, code)
        if trial.state != "running":
            trial.write_result()
    return trial


def _run_process(sweep: Sweep, trial: Trial, lock: IO[bytes]) -> int | None:
    """Runs the process of a trial until it ends; returns its exit code, or None if the trial is pruned."""
    args = [*sweep.arguments, *sweep.file.arguments(trial.parameters)]
    args += [f"--trainer.default_root_dir={trial.folder}", "--ckpt_path=last"]
    seen = len(trial.logged(sweep.file.metric))
    with (trial.folder / LOG).open("ab") as log:
        process = subprocess.Popen(
            sweep.file.command(args),
            env=trial_environment(sweep.file.name, trial.number),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C reaches the worker alone, which lets the trial save its state
            pass_fds=(lock.fileno(),),  # if this worker is killed, no other one resumes a trial that still trains
        )
    try:
        while process.poll() is None:
            if stop.REQUESTED.wait(POLL_SECONDS):
                _stop(process)
                return stop.EXIT_CODE
            values = trial.logged(sweep.file.metric)
            if not _passes_rungs(sweep, trial, values, seen):
                _stop(process)
                return None
            seen = len(values)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # with ranks and loaders that outlived it
        process.wait()
    return process.returncode


def _passes_rungs(sweep: Sweep, trial: Trial, values: Sequence[float], seen: int) -> bool:
    """Returns whether a trial continues past the rungs that it has reached after its first `seen` values."""
    halving, metric = sweep.file.halving, sweep.file.metric
    rung = halving.first if halving else math.inf
    while halving and rung <= len(values):
        value = values[int(rung) - 1]
        if rung > seen and math.isfinite(value):
            logs = [other.logged(metric) for other in sweep.trials if other.number != trial.number]
            others = [log[int(rung) - 1] for log in logs if len(log) >= rung]
            if not halving.keeps(value, [other for other in others if math.isfinite(other)], sweep.file.maximize):
                return False
        rung *= halving.eta
    return True


def _finished(sweep: Sweep, trial: Trial, code: int) -> Trial:
    """Returns a trial whose process has ended by itself: complete, or failed."""
    metric, metrics = sweep.file.metric, trial.metrics
    if code:
        return replace(trial, state="failed", error=last_error(trial.output))
    if metric not in metrics:
        names = ", ".join(name for name in metrics if "/" in name) or "no metrics"
        error = (
            f"{metric} is not in {trial.folder}/csv/metrics.csv, which has {names}; expected a callback of the "
            "recipe to log it, and a validation within the steps of the run"
        )
        return replace(trial, state="failed", error=error)
    if not math.isfinite(metrics[metric]):
        return replace(trial, state="failed", error=f"the last value of {metric} is {metrics[metric]}")
    return replace(trial, state="complete", value=metrics[metric])


def trial_environment(name: str, number: int) -> Mapping[str, str]:
    """Returns the environment of a trial: finds `sf-fit`, groups W&B's runs, and hides the worker's Slurm task."""
    dropped = ("SLURM_", "PMI_", "PMIX_", "WANDB_RUN_ID", "WANDB_SWEEP_ID")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(dropped)}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return kept | {"PATH": path, "WANDB_RUN_GROUP": name, "WANDB_NAME": f"{name}-{number:03d}"}


def _stop(process: subprocess.Popen) -> None:
    """Asks a process to save its state and waits until it has, or for `STOP_SECONDS`."""
    process.send_signal(signal.SIGUSR1)
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)


def last_error(output: str) -> str:
    """Returns the last error line of a program's output, or else its last line."""
    lines = [line for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or ["no output"])[-1].removeprefix("error: ")
