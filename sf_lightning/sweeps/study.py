"""Which trial is next: a journal on a shared folder, from which workers on many nodes take trials. No server.

A trial is *waiting*, *running* or finished (*complete*, *pruned*, *failed*). A running one has a lease, a file
whose content changes every few seconds; one whose lease stands still has lost its worker, and another takes it up.
Knows nothing of how a trial is run.
"""

import errno
import json
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import optuna
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock
from optuna.trial import FrozenTrial, TrialState

from sf_lightning.sweeps.file import SweepFile

JOURNAL = "journal.log"
TRIALS = "trials"
RETRIES = 3
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED)


def trial_folder(folder: Path, number: int) -> Path:
    """Where a trial of a sweep lies: a run's folder."""
    return folder / TRIALS / f"{number:03d}"


def open_study(folder: Path) -> optuna.Study:
    """Opens the study of a sweep that was begun.

    Raises:
        FileNotFoundError: if there is none.
    """
    if not (folder / JOURNAL).is_file():
        raise FileNotFoundError(f"no sweep at {folder}: sf-sweep FILE --dir={folder} begins one")
    storage = _storage(folder)
    (name,) = optuna.get_all_study_names(storage)
    return optuna.load_study(study_name=name, storage=storage)


def _storage(folder: Path) -> JournalStorage:
    path = str(folder / JOURNAL)
    return JournalStorage(JournalFileBackend(path, lock_obj=JournalFileOpenLock(path)))


class Lease:
    """Says that a worker is alive and works at a trial.

    Args:
        path: Of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path, self._beats, self._renewed = path, 0, 0.0
        self._owner = {"machine": _machine(), "pid": os.getpid(), "since": time.time_ns()}

    def take(self) -> None:
        """Takes the trial, whoever had it."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._write()

    def renew(self, every: float) -> bool:
        """Shows that the worker is alive, if it has not done so for so many seconds.

        Returns:
            Whether the trial is still its own: a worker that stood still may have lost it.
        """
        if time.monotonic() - self._renewed < every:
            return True
        if not self._is_own():
            return False
        self._write()
        return True

    def give_up(self) -> None:
        """Leaves the trial to whoever comes next, unless somebody has come."""
        if self._is_own():
            self.path.unlink()

    def _is_own(self) -> bool:
        read = _read(self.path)
        return read is not None and read["since"] == self._owner["since"]

    def _write(self) -> None:
        self._beats += 1
        fresh = self.path.with_suffix(f".{self._owner['since']}")
        with fresh.open("w") as file:
            file.write(json.dumps(self._owner | {"beat": self._beats}))
            file.flush()
            os.fsync(file.fileno())  # or a crash may leave an empty one
        fresh.replace(self.path)
        self._renewed = time.monotonic()


class Sweep:
    """One worker's view of a sweep.

    Args:
        file: What is to be tried.
        folder: Of the sweep, which all workers see.
        arguments: Further arguments of every trial.
        patience: Seconds for which a lease may stand still.
    """

    def __init__(
        self, file: SweepFile, folder: Path, arguments: Sequence[str] = (), patience: float = 60.0
    ) -> None:
        self.file, self.folder, self.arguments, self.patience = file, folder, [*arguments], patience
        self._seen: dict[int, tuple[str, float]] = {}
        self._alive: set[int] = set()
        optuna.logging.set_verbosity(optuna.logging.WARNING)

    def begin(self, trials: int | None = None) -> None:
        """Begins the sweep, or joins it: adds the trials that are to be made and are not there, or have failed.

        Args:
            trials: How many; by default all points of a grid, or the file's `run_cap`.

        Raises:
            ValueError: if the folder holds another sweep, or nothing says how many trials there are.
        """
        points = self.file.points
        count = trials or self.file.content.get("run_cap") or (len(points) if points else None)
        if count is None:
            raise ValueError(f"{self.file.path}: method {self.file.method} has no end: give --trials or a run_cap")
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._claiming():
            storage = _storage(self.folder)
            if any(name != self.file.name for name in optuna.get_all_study_names(storage)):
                raise ValueError(f"{self.folder} holds another sweep than {self.file.name}: give another --dir")
            self.study = optuna.create_study(
                storage=storage,
                study_name=self.file.name,
                direction="maximize" if self.file.goal == "maximize" else "minimize",
                pruner=self.file.pruner,
                load_if_exists=True,
            )
            self._own()
            kept = [each for each in self.study.get_trials() if each.state != TrialState.FAIL]
            if points is None:
                for _ in range(count - len(kept)):
                    self.study.enqueue_trial({})
            else:
                there = [each.user_attrs["point"] for each in kept]
                for point in (each for each in points[:count] if each not in there):
                    self.study.enqueue_trial(point, user_attrs={"point": point})

    def _own(self) -> None:
        """Notes what this sweep is, or checks that it is that.

        Raises:
            ValueError: if it is another.
        """
        # As it will be read back.
        identity = json.loads(json.dumps({**self.file.identity, "arguments": self.arguments}))
        if (was := self.study.user_attrs.get("sweep")) is None:
            self.study.set_user_attr("sweep", identity)
        elif was != identity:
            name = next(key for key in identity if was.get(key) != identity[key])
            came, wanted = (_short(each.get(name)) for each in (identity, was))
            raise ValueError(
                f"{self.folder} holds a sweep with other {name}: {wanted}, and now {came}: give another --dir, or "
                "what it was begun with"
            )

    def claim(self) -> tuple[optuna.Trial, Lease] | None:
        """Takes a trial that lost its worker, else one that waits; None if there is neither."""
        with self._claiming():
            for frozen in self.study.get_trials(states=(TrialState.RUNNING,)):
                if self._is_alone(frozen.number):
                    return self._taken_up(frozen), self._lease(frozen.number)
            if not (waiting := self.study.get_trials(states=(TrialState.WAITING,))):
                return None
            # What the others know is in the journal: so each trial may have a sampler of its own.
            self.study.sampler = self.file.sampler(waiting[0].number)
            trial = self.study.ask(self.file.distributions)
            return trial, self._lease(trial.number)

    def _taken_up(self, frozen: FrozenTrial) -> optuna.Trial:
        """A trial that another has begun, with what it did not come to choose: as `ask` would have done."""
        self.study.sampler = self.file.sampler(frozen.number)
        trial = optuna.Trial(self.study, frozen._trial_id)
        for name, distribution in self.file.distributions.items():
            trial._suggest(name, distribution)
        return trial

    def _lease(self, number: int) -> Lease:
        lease = Lease(trial_folder(self.folder, number) / "lease")
        lease.take()
        return lease

    def _is_alone(self, number: int) -> bool:
        """Whether a running trial has lost its worker."""
        if (read := _read(trial_folder(self.folder, number) / "lease")) is None:
            return True
        if read["machine"] == _machine() and not Path("/proc", str(read["pid"])).exists():
            return True
        # Clocks of nodes differ: what counts is how long it stands still while we look.
        content, now = json.dumps(read), time.monotonic()
        before, since = self._seen.get(number, (None, now))
        self._seen[number] = content, since if content == before else now
        if before is not None and content != before:
            self._alive.add(number)
        return content == before and now - since > self.patience

    def is_busy(self) -> bool:
        """Whether a trial is running, here or elsewhere."""
        return bool(self._running)

    def is_unsure(self) -> bool:
        """Whether a trial is running of which this worker has not seen yet that its own is alive."""
        return any(each.number not in self._alive for each in self._running)

    @property
    def _running(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))

    def has_results(self) -> bool:
        """Whether a trial has finished as it should."""
        return bool(self.study.get_trials(deepcopy=False, states=FINISHED))

    @contextmanager
    def _claiming(self) -> Iterator[None]:
        """Lets one worker at a time choose; one that dies while it does is passed over after half a minute."""
        lock = JournalFileOpenLock(str(self.folder / "claim"))
        lock.acquire()
        try:
            yield
        finally:
            lock.release()


def _read(path: Path) -> dict[str, Any] | None:
    """What a lease says; None if there is none, or none that can be read."""
    for _ in range(RETRIES):
        try:
            return json.loads(path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        except OSError as error:
            if error.errno != errno.ESTALE:  # replaced while it was read, over NFS
                raise
    return None


def _machine() -> str:
    """Where a process id means the same process: one boot of one machine, one container."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
