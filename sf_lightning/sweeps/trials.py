"""The folder that the workers of a sweep share: its definition, its trials, and who runs which. No server.

    sweep.json                  name, definition and further arguments of the sweep
    lock                        locked while a worker chooses a trial
    trials/003/parameters.json  the point of the trial
    trials/003/lock             locked while the trial's worker or process is alive
    trials/003/log.txt          output of the trial's processes
    trials/003/result.json      result of the trial

The kernel releases a lock (`flock`) when the last process that holds it ends. So a trial that was started,
has no result and whose lock is free was interrupted, and the worker that gets the lock may resume it. No file is
ever changed, so a reader on another node sees all of it or none. Does not run trials.
"""

import fcntl
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import IO, Any, Literal

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import TrialState

from sf_lightning.files.atomic import atomic_folder, write_atomically
from sf_lightning.files.foreign import damage_reported, require_no_links, strict_json
from sf_lightning.files.records import from_plain
from sf_lightning.files.tables import read_metrics
from sf_lightning.sweeps.file import SweepFile

DEFINITION = "sweep.json"
PARAMETERS = "parameters.json"
RESULT = "result.json"
LOCK = "lock"
LOG = "log.txt"

UNCHECKED = ("checkpoints", "wandb")
"""Subfolders of a trial that may contain links: those of training itself, which checks what it reads."""


@dataclass(frozen=True)
class Trial:
    """A trial of a sweep.

    Attributes:
        folder: Folder of its training run; the name is the trial's number.
        parameters: Values of the parameters that are not constant; empty until they are drawn.
        state: How far it is; "running" also if it was interrupted and can be resumed.
        value: Last value of the metric, if complete.
        error: Why it failed, if it did.
    """

    folder: Path
    parameters: dict[str, Any] = field(default_factory=dict)
    state: Literal["waiting", "running", "complete", "pruned", "failed"] = "waiting"
    value: float | None = None
    error: str = ""

    @property
    def number(self) -> int:
        """Number of the trial, from 0."""
        return int(self.folder.name)

    @property
    def label(self) -> str:
        """The parameters in a few words: an option without its path, a file without folder and suffix."""
        words = []
        for option, value in self.parameters.items():
            text = Path(value).stem if str(value).endswith(".yaml") else str(value).strip("{}")
            words.append(f"{option.rpartition('.')[2]} {text}" if len(self.parameters) > 1 else text)
        return ", ".join(words)

    @cached_property
    def metrics(self) -> dict[str, float]:
        """Last logged value of each metric."""
        return {name: value for row in read_metrics(self.folder) for name, value in row.items()}

    @property
    def output(self) -> str:
        """Output of its processes so far."""
        return (self.folder / LOG).read_text(errors="replace")

    def logged(self, metric: str) -> list[float]:
        """Returns all logged values of a metric, read now, in order."""
        return [row[metric] for row in read_metrics(self.folder) if metric in row]

    def write_result(self) -> None:
        """Records how the trial ended; for the holder of its lock."""
        result = {"state": self.state, "value": self.value, "error": self.error}
        write_atomically(self.folder / RESULT, json.dumps(result))


@dataclass(frozen=True)
class _Result:
    """The values of `result.json`; see `Trial`."""

    state: Literal["complete", "pruned", "failed"]
    value: float | None = None
    error: str = ""

    def __post_init__(self) -> None:
        if (self.state == "complete") != (self.value is not None):
            raise ValueError(f"state is {self.state} and value is {self.value}")


def read_trial(folder: Path) -> Trial:
    """Reads a trial from its folder.

    Raises:
        ValueError: if a file in it is damaged.
    """
    point: dict[str, Any] = {}
    if (path := folder / PARAMETERS).is_file():
        with damage_reported(path, f"delete {folder}"):
            point = dict(json.loads(path.read_bytes()))
    if (path := folder / RESULT).is_file():
        with damage_reported(path, "delete it, and the trial is resumed"):
            result = from_plain(_Result, strict_json(path.read_bytes()), "result")
        return Trial(folder, point, result.state, result.value, result.error)
    return Trial(folder, point, "running" if (folder / LOCK).exists() else "waiting")


def read_definition(folder: Path) -> dict[str, Any]:
    """Reads the definition of a sweep: name, file's definition, arguments.

    Raises:
        FileNotFoundError: if the folder has no sweep.
        ValueError: if its definition is damaged.
    """
    if not (folder / DEFINITION).is_file():
        raise FileNotFoundError(f"no sweep in {folder}; sf-sweep FILE --dir={folder} starts one")
    with damage_reported(folder / DEFINITION, "use another --dir"):
        definition = dict(json.loads((folder / DEFINITION).read_bytes()))
        if not isinstance(definition["name"], str) or not isinstance(definition["metric"]["name"], str):
            raise ValueError("its name or that of its metric is no text")
    return definition


def read_trials(folder: Path) -> list[Trial]:
    """Reads all trials of a sweep, by number.

    Raises:
        ValueError: if a file of a trial is damaged.
    """
    folders = [path for path in (folder / "trials").glob("[0-9]*") if re.fullmatch(r"[0-9]{3,9}", path.name)]
    return [read_trial(path) for path in sorted(folders, key=lambda path: int(path.name))]


def lock(path: Path, wait: bool = False) -> IO[bytes]:
    """Creates a file and locks it until it is closed here and in every child process that inherits it.

    Raises:
        BlockingIOError: if another process has the lock and `wait` is false.
        OSError: if the file system has no locks.
    """
    file = path.open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as error:
        file.close()
        if isinstance(error, BlockingIOError):
            raise
        raise OSError(f"{path} cannot be locked ({error.strerror}); use a --dir where flock works") from error
    return file


@dataclass(frozen=True)
class Sweep:
    """A worker's view of a sweep.

    Attributes:
        file: The sweep file.
        folder: Folder of the sweep, shared by all workers.
        arguments: Further arguments of every trial.
    """

    file: SweepFile
    folder: Path
    arguments: Sequence[str] = ()

    @property
    def trials(self) -> list[Trial]:
        """All trials, read now, by number.

        Raises:
            ValueError: if a file of a trial is damaged, or its parameters are not among those of the sweep file.
        """
        trials = read_trials(self.folder)
        for trial in trials:
            if (self.file.points or trial.parameters) and not self.file.contains(trial.parameters):
                raise ValueError(
                    f"{trial.folder / PARAMETERS} has {trial.parameters!r:.200}, which {self.file.path} does not "
                    "contain; use another --dir"
                )
        return trials

    def join(self, count: int | None = None) -> None:
        """Starts the sweep or joins it: adds trials that are missing, and new ones for those that failed.

        Args:
            count: Number of trials; by default the file's `run_cap` or all points of a grid.

        Raises:
            ValueError: if the folder has another sweep or links, or the number of trials is not known.
        """
        points = self.file.points
        count = count or self.file.run_cap or (len(points) if points else None)
        if count is None:
            raise ValueError(f"{self.file.path}: method is {self.file.method}; expected --trials or a run_cap")
        require_no_links(self.folder, UNCHECKED)
        self.folder.mkdir(parents=True, exist_ok=True)
        with lock(self.folder / LOCK, wait=True):
            self._check_definition()
            trials = self.trials
            kept = [trial for trial in trials if trial.state != "failed"]
            if points is None:
                missing: list[dict[str, Any]] = [{}] * (count - len(kept))
            else:
                missing = [point for point in points[:count] if point not in [trial.parameters for trial in kept]]
            for number, point in enumerate(missing, trials[-1].number + 1 if trials else 0):
                with atomic_folder(self.folder / "trials" / f"{number:03d}") as trial:
                    if points is not None:
                        (trial / PARAMETERS).write_text(json.dumps(point))

    def _check_definition(self) -> None:
        """Writes the definition of the sweep, or checks that the folder has the same one."""
        content = json.dumps({"name": self.file.name, **self.file.definition, "arguments": [*self.arguments]})
        if not (self.folder / DEFINITION).is_file():
            if (self.folder / "trials").exists():
                raise ValueError(f"{self.folder} has trials but no {DEFINITION}; use another --dir")
            write_atomically(self.folder / DEFINITION, content)
        ours, theirs = json.loads(content), read_definition(self.folder)
        for key in (key for key in ours if ours[key] != theirs.get(key)):
            raise ValueError(
                f"{self.folder} has a sweep with {key} {json.dumps(theirs.get(key))}, not {json.dumps(ours[key])}; "
                "use another --dir"
            )

    def claim(self) -> tuple[Trial, IO[bytes]] | None:
        """Claims an interrupted trial, or else the first waiting one.

        Returns:
            The trial, now running, and its lock; None if there is none to run.
        """
        with lock(self.folder / LOCK, wait=True):  # one worker at a time
            open_trials = [trial for trial in self.trials if trial.state in ("running", "waiting")]
            for trial in sorted(open_trials, key=lambda trial: trial.state == "waiting"):
                try:
                    held = lock(trial.folder / LOCK)
                except BlockingIOError:
                    continue
                trial = read_trial(trial.folder)
                if trial.state != "running":  # it ended just before its lock was free
                    held.close()
                    continue
                if self.file.method != "grid" and not trial.parameters:
                    point = draw_point(self.file, trial.number, self.trials)
                    write_atomically(trial.folder / PARAMETERS, json.dumps(point))
                    trial = replace(trial, parameters=point)
                return trial, held
        return None


def draw_point(file: SweepFile, number: int, trials: Sequence[Trial]) -> dict[str, Any]:
    """Draws the parameters of a trial: the same for the same number and, for bayes, the same earlier trials.

    Args:
        file: A sweep file of method random or bayes.
        number: Number of the trial, the seed.
        trials: All trials.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    bayes, distributions = file.method == "bayes", dict(file.distributions)
    sampler: BaseSampler = TPESampler(seed=number, constant_liar=True) if bayes else RandomSampler(seed=number)
    study = optuna.create_study(sampler=sampler, direction="maximize" if file.maximize else "minimize")
    for trial in trials if bayes else ():
        if trial.parameters and trial.state != "failed":
            known = optuna.trial.create_trial(
                state=TrialState[trial.state.upper()],
                value=trial.value,
                params=trial.parameters,
                distributions=distributions,
                intermediate_values=dict(enumerate(trial.logged(file.metric), 1)),
            )
            study.add_trial(known)
    return study.ask(distributions).params
