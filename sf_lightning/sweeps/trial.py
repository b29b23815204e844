"""One trial: `sf-fit` in a process and a folder of its own, whose log is read while it grows.

So whatever happens to a trial, its worker goes on, and where a worker dies another one continues the trial.
"""

import csv
import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import optuna
from optuna.trial import TrialState

from sf_lightning.sweeps.study import Lease, Sweep, trial_folder
from sf_lightning.training import stop

POLL_SECONDS = 0.5
STOP_SECONDS = 120.0
"""How long a trial that is asked to stop may take to save itself."""
MAX_KILLS = 3
"""How often a trial may be killed before it has failed."""
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


@dataclass(frozen=True)
class Outcome:
    """How a trial ended.

    Attributes:
        kind: "complete"; "pruned"; "failed"; "stopped", to be continued; or "lost" to another worker.
        value: What it is judged by, if it is complete.
        why: What went wrong, if it failed.
    """

    kind: Literal["complete", "pruned", "failed", "stopped", "lost"]
    value: float = math.nan
    why: str = ""


def run_trial(sweep: Sweep, trial: optuna.Trial, lease: Lease) -> Outcome:
    """Runs a trial to its end, from where it stands, and enters the end in the journal."""
    outcome = Outcome("stopped")
    while outcome.kind == "stopped" and not stop.REQUESTED.is_set():
        outcome = _run_once(sweep, trial, lease)
    if outcome.kind == "lost" or not lease.renew(0):
        return Outcome("lost")
    if outcome.kind == "complete":
        sweep.study.tell(trial.number, outcome.value)
    elif outcome.kind == "pruned":
        sweep.study.tell(trial.number, state=TrialState.PRUNED)
    elif outcome.kind == "failed":
        trial.set_user_attr("why", outcome.why)
        sweep.study.tell(trial.number, state=TrialState.FAIL)
    lease.give_up()
    return outcome


def _run_once(sweep: Sweep, trial: optuna.Trial, lease: Lease) -> Outcome:
    """Runs a trial until its process ends, or is asked to."""
    folder = trial_folder(sweep.folder, trial.number)
    args = [*sweep.arguments, *sweep.file.arguments(trial.params)]
    args += [f"--trainer.default_root_dir={folder}", "--ckpt_path=last"]
    with (folder / "log.txt").open("ab") as log:
        process = subprocess.Popen(
            sweep.file.command(args),
            env=environment(sweep.file.name, trial.number),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the worker, which lets the trial save itself
            preexec_fn=_die_with_parent,
        )
    try:
        while process.poll() is None:
            if stop.REQUESTED.wait(POLL_SECONDS):
                _stop(process, sweep, lease)
                return Outcome("stopped")
            if not lease.renew(sweep.patience / 8):
                return Outcome("lost")
            _report(trial, folder, sweep.file.metric)
            if trial.should_prune():
                _stop(process, sweep, lease)
                return Outcome("pruned")
    finally:
        _kill(process)  # its ranks and loaders, where it has died before them
    _report(trial, folder, sweep.file.metric)
    return _judged(sweep, trial, folder, process.returncode)


def _judged(sweep: Sweep, trial: optuna.Trial, folder: Path, code: int) -> Outcome:
    """What became of a trial whose process ended by itself."""
    if code == stop.EXIT_CODE:
        return Outcome("stopped")
    if code < 0 or code > 128:
        kills = trial.user_attrs.get("kills", 0) + 1
        trial.set_user_attr("kills", kills)
        if kills < MAX_KILLS:
            return Outcome("stopped")
        return Outcome("failed", why=f"killed {kills} times, the last time with {code}: {_last_words(folder)}")
    if code:
        return Outcome("failed", why=_last_words(folder))
    values = last_values(folder)
    value = values.get(sweep.file.metric, math.nan)
    if sweep.file.metric not in values:
        near = ", ".join(name for name in values if "/" in name) or "no rows"
        return Outcome(
            "failed",
            why=f"{sweep.file.metric} is not in {folder}/csv/metrics.csv, which has {near}: does a callback of the "
            "recipe log it, and is there a validation within the steps of the run?",
        )
    if not math.isfinite(value):
        return Outcome("failed", why=f"{sweep.file.metric} is {value} in the end")
    return Outcome("complete", value)


def _report(trial: optuna.Trial, folder: Path, metric: str) -> None:
    """Tells the pruner what is new in the log; as W&B does it counts values of the metric, not steps."""
    known = trial.study.get_trials(deepcopy=False)[trial.number].intermediate_values
    for count, value in enumerate(logged(folder, metric), 1):
        if count not in known and math.isfinite(value):
            trial.report(value, count)


def rows(folder: Path) -> list[dict[str, str]]:
    """The rows of a run's table, without one that is only half there: it may be written just now."""
    try:
        with (folder / "csv" / "metrics.csv").open(newline="") as file:
            return [row for row in csv.DictReader(file) if None not in row and None not in row.values()]
    except FileNotFoundError:
        return []


def logged(folder: Path, metric: str) -> list[float]:
    """All values of a metric in a run's table, in order."""
    return [float(row[metric]) for row in rows(folder) if row.get(metric)]


def last_values(folder: Path) -> dict[str, float]:
    """The last value of each metric in a run's table."""
    return {name: float(value) for row in rows(folder) for name, value in row.items() if value}


def environment(name: str, number: int) -> Mapping[str, str]:
    """Where `sf-fit` is found, and how W&B groups it; a trial is no task of the step that its worker is."""
    others = ("SLURM_", "PMI_", "PMIX_", "WANDB_RUN_ID", "WANDB_SWEEP_ID")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(others)}
    here = f"{Path(sys.executable).parent}{os.pathsep}{kept.get('PATH', os.defpath)}"
    return kept | {"PATH": here, "WANDB_RUN_GROUP": name, "WANDB_NAME": f"{name}-{number:03d}"}


def _die_with_parent() -> None:
    """Has the kernel kill this process when its worker is gone, however: two must never write in one folder."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _stop(process: subprocess.Popen, sweep: Sweep, lease: Lease) -> None:
    """Asks a trial to save itself and waits until it has."""
    process.send_signal(signal.SIGUSR1)
    deadline = time.monotonic() + STOP_SECONDS
    while process.poll() is None and time.monotonic() < deadline and lease.renew(sweep.patience / 8):
        time.sleep(0.1)
    _kill(process)


def _kill(process: subprocess.Popen) -> None:
    """Ends what is left of a trial, its ranks and loaders too."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    process.wait()


def _last_words(folder: Path) -> str:
    """The line with which a run ended."""
    lines = (folder / "log.txt").read_text(errors="replace").splitlines()
    said = [line for line in lines if line.strip()]
    errors = [line for line in said if line.startswith("error: ")]
    return (errors or said or ["it said nothing"])[-1].removeprefix("error: ")
