"""`sf-sweep`: runs a W&B sweep file without W&B's server; workers on any nodes share it through a folder."""

import inspect
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sf_lightning.cli.configs import RECIPES, find_recipe
from sf_lightning.cli.errors import one_line, one_line_errors
from sf_lightning.cli.options import require_positive
from sf_lightning.cli.parser import command_parser
from sf_lightning.sweeps.file import SweepFile
from sf_lightning.sweeps.results import WAIT, write_results
from sf_lightning.sweeps.runner import last_error, run_trial, trial_environment
from sf_lightning.sweeps.trials import Sweep, draw_point, read_trials
from sf_lightning.training import stop

IDLE_SECONDS = 2.0

PARSER_OPTIONS = ("-h", "--help", "--version", "--print_completion")


def sweep(
    file: str,
    dir: str | None = None,
    trials: int | None = None,
    jobs: int = 1,
    wait: float | None = None,
    arguments: Sequence[str] = (),
) -> None:
    """Runs a W&B sweep file without W&B's server; all other options go to sf-fit.

    Start it again, or on other nodes with the same folder, to share the trials: workers run waiting trials, resume
    those whose worker was stopped or killed, and repeat failed ones. Results are written to results.csv,
    results.md and frontier.png of the folder.

    Args:
        file: Sweep file, or the name of one that comes with the package, such as `mask_layouts`.
        dir: Folder of the sweep, shared by all workers; by default `sweeps/NAME`.
        trials: Number of trials; by default the file's `run_cap`, or all points of a grid.
        jobs: Number of trials that this worker runs at the same time.
        wait: Seconds to keep running when no trial is left to start, in order to resume trials that other workers
            abandon; by default until all trials have ended.
    """
    require_positive(trials=trials, jobs=jobs)
    sweep_file = SweepFile(find_recipe(file, "FILE", RECIPES / "sweeps"))
    folder = Path(dir or f"sweeps/{sweep_file.name}")
    shared = Sweep(sweep_file, folder, arguments)
    _check_arguments(shared)
    shared.join(trials)
    failures: list[str] = []
    threads = [threading.Thread(target=_run_trials, args=(shared, wait, failures)) for _ in range(jobs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # signal handlers run between two joins
            thread.join(1.0)
    _print_results(folder)
    if failures:
        raise RuntimeError(f"{failures[0]}" + (f"; and {len(failures) - 1} more" if failures[1:] else ""))


def _check_arguments(sweep: Sweep) -> None:
    """Checks the arguments of one trial with `sf-fit`, and raises ValueError, before anything is written."""
    for argument in sweep.arguments:
        name = argument.partition("=")[0].removeprefix("--")
        if name in sweep.file.definition["parameters"] or name in ("trainer.default_root_dir", "ckpt_path"):
            raise ValueError(f"{argument}: the sweep sets this option for each trial; leave it out")
    if read_trials(sweep.folder):  # checked when the sweep was started
        return
    point = sweep.file.points[0] if sweep.file.points else draw_point(sweep.file, 0, [])
    command = sweep.file.command([*sweep.arguments, *sweep.file.arguments(point), "--print_config"])
    environment = trial_environment(sweep.file.name, 0)
    try:
        process = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ValueError(f"{sweep.file.path}: command {' '.join(command[:3])} cannot be run: {error}") from error
    if process.returncode:
        raise ValueError(f"{sweep.file.path}: {last_error(process.stderr)}")


def _run_trials(sweep: Sweep, wait: float | None, failures: list[str]) -> None:
    """Runs trials until none is left; adds a line to `failures` for each that fails."""
    try:
        last_end = time.monotonic()
        while not stop.REQUESTED.is_set():
            if (claimed := sweep.claim()) is None:
                running = any(trial.state == "running" for trial in sweep.trials)
                if not running or (wait is not None and time.monotonic() - last_end >= wait):
                    return
                stop.REQUESTED.wait(IDLE_SECONDS)
                continue
            trial, lock = claimed
            print(f"trial {trial.number} starts: {' '.join(sweep.file.arguments(trial.parameters))}", flush=True)
            trial = run_trial(sweep, trial, lock)
            last_end = time.monotonic()
            state = "stopped" if trial.state == "running" else trial.state
            detail = trial.error if trial.value is None else f"{sweep.file.metric} {trial.value:.4f}"
            print(f"trial {trial.number} is {state}" + (f": {detail}" if detail else ""), flush=True)
            write_results(sweep.folder)
            if trial.state == "failed":
                failures.append(f"trial {trial.number}: {trial.error}")
                if not any(trial.state in ("complete", "pruned") for trial in sweep.trials):
                    return  # the other trials would fail in the same way
    except Exception as error:  # the boundary of the thread
        failures.append(one_line(error))


def _print_results(folder: Path) -> None:
    """Writes the results and prints the frontier, the number of trials in each state, and which files to open."""
    results = write_results(folder)
    for trial in results.frontier:
        wait, quality = trial.metrics[WAIT], trial.metrics[results.quality]
        print(f"{wait:.0f} ms: {trial.label}, {results.quality} {quality:.4f}", flush=True)
    states = [trial.state for trial in results.trials]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    Console().print(
        f"{counts}; see {folder}/frontier.png and results.md", soft_wrap=True, highlight=False, markup=False
    )


@one_line_errors
def main(args: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = command_parser("sf-sweep", sweep, as_positional=True, skip={"arguments"})
    names = {*PARSER_OPTIONS, *(f"--{name}" for name in inspect.signature(sweep).parameters)}
    own, further = list[str](), list[str]()
    target = own
    for word in sys.argv[1:] if args is None else args:
        if word.startswith("-"):
            target = own if word.partition("=")[0] in names else further
        target.append(word)
    sweep(**vars(parser.parse_args(own)), arguments=further)
