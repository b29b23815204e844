"""`sf-sweep`: a sweep file of W&B without its server; workers on any nodes that see one folder share it."""

import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from sf_lightning.cli.configs import RECIPES, find_recipe
from sf_lightning.cli.errors import one_line, one_line_errors
from sf_lightning.cli.options import require_positive
from sf_lightning.cli.parser import command_parser
from sf_lightning.sweeps.file import SweepFile
from sf_lightning.sweeps.results import WAIT, Results, write_results
from sf_lightning.sweeps.study import JOURNAL, Sweep
from sf_lightning.sweeps.trial import environment, run_trial
from sf_lightning.training import stop

IDLE_SECONDS = 2.0

OPTIONS = ("-h", "--help", "--version", "--print_completion", "--dir", "--trials", "--jobs", "--stay", "--patience")
"""Of this command; all others are those of sf-fit."""


def sweep(
    file: str,
    dir: str | None = None,
    trials: int | None = None,
    jobs: int = 1,
    stay: bool = True,
    patience: float = 60.0,
    arguments: Sequence[str] = (),
) -> None:
    """Runs a sweep file of W&B without its server, with Optuna; further arguments are those of sf-fit.

    Started again, or started elsewhere on the same folder, it goes on with what is there: trials that wait, trials
    whose worker is gone, trials that have failed. It ends with results.csv, results.md and frontier.png.

    Args:
        file: Sweep file, or the name of one that comes with the package, such as `mask_layouts`.
        dir: Folder of the sweep, which all its workers see; by default `sweeps/NAME`.
        trials: How many; by default all points of a grid, or the file's `run_cap`.
        jobs: Trials that this worker runs side by side.
        stay: Whether to stay while other workers run the last trials, and to take up what they leave; else it
            leaves as soon as it has seen that they are alive.
        patience: Seconds without a sign of life after which a worker is taken for dead.
    """
    require_positive(trials=trials, jobs=jobs)
    if not patience > 0:
        raise ValueError(f"--patience is {patience}: wanted seconds, more than 0")
    read = SweepFile.read(find_recipe(file, "FILE", RECIPES / "sweeps"))
    folder = Path(dir or f"sweeps/{read.name}")
    _check_arguments(read, arguments, folder)
    works = [Sweep(read, folder, arguments, patience) for _ in range(jobs)]
    works[0].begin(trials)
    for each in works[1:]:
        each.begin(trials)
    failures: list[str] = []
    threads = [threading.Thread(target=_work, args=(each, stay, failures)) for each in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():  # a signal is handled in between
            thread.join(1.0)
    if (folder / JOURNAL).is_file():
        _conclude(write_results(folder), folder)
    if failures:
        raise RuntimeError(f"{failures[0]}" + (f"; and {len(failures) - 1} more" if failures[1:] else ""))


def _check_arguments(file: SweepFile, arguments: Sequence[str], folder: Path) -> None:
    """Has `sf-fit` read the arguments of the first trial, before anything is written.

    Raises:
        ValueError: if one of them is refused, or says what the sweep tries.
    """
    for each in arguments:
        name = each.partition("=")[0].removeprefix("--")
        if name in file.content["parameters"] or name in ("trainer.default_root_dir", "ckpt_path"):
            raise ValueError(f"{each}: the sweep says that itself, for each trial; leave it out")
    if (folder / JOURNAL).is_file():  # it was looked at when it began
        return
    command = file.command([*arguments, *file.arguments(file.corner), "--print_config"])
    try:
        done = subprocess.run(command, env=environment(file.name, 0), capture_output=True, text=True, check=False)
    except OSError as error:
        raise ValueError(f"{file.path}: command {' '.join(command[:3])} cannot be run: {error}") from error
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()] or ["it said nothing"]
        words = next((line for line in said if line.startswith("error: ")), said[-1])
        raise ValueError(f"{file.path}: {words.removeprefix('error: ')}")


def _work(sweep: Sweep, stay: bool, failures: list[str]) -> None:
    """Makes trials until there are none."""
    try:
        while not stop.REQUESTED.is_set():
            if (claimed := sweep.claim()) is None:
                # One that leaves takes up, before it does, what has lost its worker.
                if not (sweep.is_busy() if stay else sweep.is_unsure()):
                    return
                stop.REQUESTED.wait(IDLE_SECONDS)
                continue
            trial, lease = claimed
            _say(f"trial {trial.number} begins: {' '.join(sweep.file.arguments(trial.params))}")
            outcome = run_trial(sweep, trial, lease)
            found = f"{sweep.file.metric} {outcome.value:.4f}" if outcome.kind == "complete" else outcome.why
            _say(f"trial {trial.number} is {outcome.kind}" + (f": {found}" if found else ""))
            if outcome.kind == "failed":
                failures.append(f"trial {trial.number}: {outcome.why}")
                if not sweep.has_results():  # what is wrong with one is wrong with all
                    return
            write_results(sweep.folder)
    except Exception as error:  # the boundary of the thread
        failures.append(one_line(error))


def _say(line: str) -> None:
    print(line, flush=True)


def _conclude(results: Results, folder: Path) -> None:
    """Says what was found, and what to open."""
    for each in results.frontier:
        _say(f"{each.values[WAIT]:.0f} ms: {each.label}, {results.quality} {each.values[results.quality]:.4f}")
    states = [each.state for each in results.trials]
    counted = ", ".join(f"{states.count(each)} {each}" for each in dict.fromkeys(states))
    Console().print(f"{counted}; see {folder}/frontier.png and results.md", soft_wrap=True, highlight=False)


@one_line_errors
def main(args: list[str] | None = None) -> None:
    """Runs the command line."""
    parser = command_parser("sf-sweep", sweep, as_positional=True, skip={"arguments"})
    ours, theirs = list[str](), list[str]()
    into = ours
    for each in sys.argv[1:] if args is None else args:
        if each.startswith("-"):
            into = ours if each.partition("=")[0] in OPTIONS else theirs
        into.append(each)
    sweep(**vars(parser.parse_args(ours)), arguments=theirs)
