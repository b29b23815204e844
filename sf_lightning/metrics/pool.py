"""Worker processes that score clips. Knows nothing of torch, nor of what a scorer measures."""

import atexit
import contextlib
import functools
import math
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import Sequence
from concurrent.futures import Future

import numpy as np

from sf_lightning.metrics.scorers import SAMPLE_RATE, WORKER_IGNORES, Scorer, visqol

MAX_WORKERS = 8
"""A pool that is not told how many workers to use takes one a core, but no more than this."""


class ScorePool:
    """Scores clips in worker processes that start when first needed and live until the program ends.

    Processes, because ViSQOL's numba aborts a process when two threads enter it. Started by `subprocess` and
    not by `multiprocessing`, because of what that would bring along: a fork of a parent with CUDA; or a spawn
    that runs the user's main script again (torch, Lightning and all), and a resource tracker that dies of
    Slurm's USR1. A worker imports `scorers.py` alone, uses one thread, and ignores USR1, USR2 and Ctrl-C from
    its first moment.

    Each worker belongs to one daemon thread here, which hands it a task and waits for the answer.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        """Prepare a pool; nothing is started yet.

        Args:
            num_workers: Worker processes. By default one for each core that this process may use, at most 8.

        Raises:
            ValueError: `num_workers` is below 1.
        """
        if num_workers is None:
            num_workers = min(len(os.sched_getaffinity(0)), MAX_WORKERS)
        if num_workers < 1:
            raise ValueError(f"num_workers must be at least 1, got {num_workers}")
        self.num_workers = num_workers
        self._begin()
        # A forked child owns neither our threads nor our workers: it starts its own, or waits for ever.
        os.register_at_fork(after_in_child=self._begin)
        atexit.register(self.close)

    def submit(self, scorer: Scorer, reference: np.ndarray, degraded: np.ndarray) -> Future[float]:
        """Queue one clip and return at once; where the scorer raises, the future raises RuntimeError."""
        task = pickle.dumps((scorer, reference, degraded))
        future: Future[float] = Future()
        with self._starting:
            while len(self._threads) < self.num_workers:
                thread = threading.Thread(target=self._work, args=(len(self._threads),), daemon=True)
                self._threads.append(thread)
                thread.start()
        self._tasks.put((future, getattr(scorer, "__name__", repr(scorer)), task))
        return future

    def map(self, scorer: Scorer, references: Sequence[np.ndarray], degradeds: Sequence[np.ndarray]) -> list[float]:
        """Score all pairs, in parallel, and return their scores in the order given.

        Raises:
            ValueError: There are more references than degraded clips, or fewer.
            RuntimeError: A scorer raised, or its worker was killed twice.
        """
        if len(references) != len(degradeds):
            raise ValueError(f"got {len(references)} references but {len(degradeds)} degraded clips")
        return gather([self.submit(scorer, *pair) for pair in zip(references, degradeds, strict=True)])

    def warm_up(self) -> list[Future[float]]:
        """Let each worker import and compile ViSQOL in the background, and return at once.

        The first time on a machine this takes 10 s and more, later 2 s: numba keeps what it compiled beside
        the package, or in `NUMBA_CACHE_DIR`. The futures need not be waited for.
        """
        noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32) / 10
        return [self.submit(visqol, noise, noise) for _ in range(self.num_workers)]

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the workers that have been started."""
        return [worker.process.pid for worker in list(self._workers.values())]

    def close(self) -> None:
        """End all workers, busy or not, and cancel what is queued; a later task starts the pool anew."""
        self._closing = True
        for worker in list(self._workers.values()):
            worker.process.kill()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        for worker in self._workers.values():
            worker.end()
        self._begin()

    def _begin(self) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[float], str, bytes] | None] = queue.SimpleQueue()
        self._workers: dict[int, _Worker] = {}
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()
        self._closing = False

    def _work(self, slot: int) -> None:
        """Serve tasks through the worker of this slot until told to end: the life of one of our threads."""
        # A child inherits the signal mask of the thread that starts it. So no signal can reach it in the
        # moments before it ignores them itself, and the parent's main thread still gets its own.
        signal.pthread_sigmask(signal.SIG_BLOCK, WORKER_IGNORES)
        while (item := self._tasks.get()) is not None:
            future, name, task = item
            if self._closing:
                future.cancel()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._score(slot, name, task))
            except Exception as error:  # the boundary of the thread: every error goes to the one who waits
                future.set_exception(error)

    def _score(self, slot: int, name: str, task: bytes) -> float:
        """Ask the worker of this slot, with a fresh one if it was killed in the meantime.

        Raises:
            RuntimeError: The scorer raised, or two workers in a row were killed.
        """
        exit_code = 0
        for _ in range(2):
            if slot not in self._workers:
                self._workers[slot] = _Worker()
            if self._closing:  # asked after the worker is listed, so that it is either not used or killed
                raise RuntimeError(f"{name}: the pool was closed before the clip was scored")
            try:
                score, failure = self._workers[slot].ask(task)
            except (EOFError, BrokenPipeError, pickle.UnpicklingError):
                exit_code = self._workers.pop(slot).end()
                if -exit_code in _CRASHES:
                    crash = signal.Signals(-exit_code).name
                    warnings.warn(f"{name} crashed ({crash}) on a clip: NaN", RuntimeWarning, stacklevel=1)
                    return math.nan
                continue
            if failure is not None:
                raise RuntimeError(f"{name} failed in a worker:\n{failure}")
            return score
        raise RuntimeError(f"{name}: two workers ended with exit code {exit_code} (-9: out of memory?)")


@functools.cache
def shared_pool() -> ScorePool:
    """Return the one pool that all metrics of this program score in."""
    return ScorePool()


def gather(futures: list[Future[float]]) -> list[float]:
    """Wait for all scores, and leave none queued if one fails or the user interrupts."""
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()


class _Worker:
    """One process that runs `scorers.serve`, and the pipes to it."""

    def __init__(self) -> None:
        # Threads must be limited before numpy is imported, so by the environment. The parent's sys.path goes
        # along, to find this package and the scorer where the parent found them; -P keeps the working
        # directory out.
        single = {name: "1" for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
        path = os.pathsep.join(os.path.abspath(folder) for folder in sys.path)
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", "from sf_lightning.metrics.scorers import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **os.environ,
                **single,
                "NUMBA_NUM_THREADS": "1",
                "CUDA_VISIBLE_DEVICES": "",
                "PYTHONPATH": path,
            },
        )

    def ask(self, task: bytes) -> tuple[float, str | None]:
        """Hand over a task and wait for its answer; EOFError or BrokenPipeError if the process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(pickle.dumps(task))
        self.process.stdin.flush()
        return pickle.load(self.process.stdout)

    def end(self) -> int:
        """Kill the process if it still runs, and return its exit code."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # a task it never read
                pipe.close()
        return self.process.wait()


# What a bug in C code ends a process with, the same whenever the clip comes again.
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT)
