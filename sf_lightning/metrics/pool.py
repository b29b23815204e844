"""Worker processes that score clips. Independent of torch and of the scores."""

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
"""Largest default number of workers; the default is one for each core."""


class ScorePool:
    """Scores clips in worker processes that are started on first use and run until the program ends.

    Processes, because ViSQOL's numba aborts a process when two threads enter it. `subprocess` and not
    `multiprocessing`, which would either fork a parent with CUDA, or spawn children that run the user's main script
    again (with torch and Lightning) and a resource tracker that SIGUSR1 of Slurm kills. A worker imports
    `scorers.py` alone, uses one thread, and ignores SIGUSR1, SIGUSR2 and Ctrl-C from its start.

    One daemon thread of this process belongs to each worker; it sends a task and waits for the answer.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        """Creates a pool without starting workers.

        Raises:
            ValueError: if `num_workers` is below 1; by default it is the number of usable cores, up to 8.
        """
        if num_workers is None:
            num_workers = min(len(os.sched_getaffinity(0)), MAX_WORKERS)
        if num_workers < 1:
            raise ValueError(f"num_workers is {num_workers}: expected at least 1")
        self.num_workers = num_workers
        self._reset()
        # A forked child has neither these threads nor these workers: it starts its own, or it would deadlock.
        os.register_at_fork(after_in_child=self._reset)
        atexit.register(self.close)

    def submit(self, scorer: Scorer, reference: np.ndarray, degraded: np.ndarray) -> Future[float]:
        """Queues one clip and returns at once; if the scorer raises, the future raises RuntimeError."""
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
        """Scores all pairs in parallel and returns their scores in the given order.

        Raises:
            ValueError: if the numbers of references and degraded clips differ.
            RuntimeError: if a scorer raised, or its worker was killed twice.
        """
        if len(references) != len(degradeds):
            raise ValueError(f"got {len(references)} references but {len(degradeds)} degraded clips")
        return gather([self.submit(scorer, *pair) for pair in zip(references, degradeds, strict=True)])

    def warm_up(self) -> list[Future[float]]:
        """Lets each worker import and compile ViSQOL in the background, and returns at once.

        The first time on a machine this takes 10 s and more, later 2 s: numba caches compiled code beside the
        package, or in `NUMBA_CACHE_DIR`. Waiting for the futures is optional.
        """
        noise = np.random.default_rng(0).standard_normal(SAMPLE_RATE).astype(np.float32) / 10
        return [self.submit(visqol, noise, noise) for _ in range(self.num_workers)]

    @property
    def worker_pids(self) -> list[int]:
        """Process ids of the started workers."""
        return [worker.process.pid for worker in list(self._workers.values())]

    def close(self) -> None:
        """Kills all workers and cancels queued tasks; a later task restarts the pool."""
        self._closing = True
        for worker in list(self._workers.values()):
            worker.process.kill()
        for _ in self._threads:
            self._tasks.put(None)
        for thread in self._threads:
            thread.join()
        for worker in self._workers.values():
            worker.end()
        self._reset()

    def _reset(self) -> None:
        self._tasks: queue.SimpleQueue[tuple[Future[float], str, bytes] | None] = queue.SimpleQueue()
        self._workers: dict[int, _Worker] = {}
        self._threads: list[threading.Thread] = []
        self._starting = threading.Lock()
        self._closing = False

    def _work(self, slot: int) -> None:
        """Runs one thread: has the worker of this slot score tasks until None is queued."""
        # A child inherits the signal mask of the thread that starts it, so that no signal reaches it before it
        # ignores signals itself; the main thread of the parent still receives them.
        signal.pthread_sigmask(signal.SIG_BLOCK, WORKER_IGNORES)
        while (item := self._tasks.get()) is not None:
            future, name, task = item
            if self._closing:
                future.cancel()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._score(slot, name, task))
            except Exception as error:  # the boundary of the thread: every error is passed to the caller
                future.set_exception(error)

    def _score(self, slot: int, name: str, task: bytes) -> float:
        """Returns the score of a task; raises RuntimeError if the scorer raised or two workers were killed."""
        exit_code = 0
        for _ in range(2):
            if slot not in self._workers:
                self._workers[slot] = _Worker()
            if self._closing:  # checked after the worker is listed, so that it is either not used or killed
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
    """Returns the pool that all metrics of this process share."""
    return ScorePool()


def gather(futures: list[Future[float]]) -> list[float]:
    """Waits for all scores; if one fails or the user interrupts, the others are cancelled."""
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()


class _Worker:
    """A process that runs `scorers.serve`, and the pipes to it."""

    def __init__(self) -> None:
        # Threads must be limited before numpy is imported, hence by the environment. The parent's sys.path is
        # passed on, so that this package and the scorer are found where the parent found them; -P leaves out the
        # working directory.
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
        """Sends a task and waits for its answer; raises EOFError or BrokenPipeError if the process has ended."""
        assert self.process.stdin is not None and self.process.stdout is not None
        self.process.stdin.write(pickle.dumps(task))
        self.process.stdin.flush()
        return pickle.load(self.process.stdout)

    def end(self) -> int:
        """Kills the process if it still runs, and returns its exit code."""
        self.process.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            with contextlib.suppress(BrokenPipeError):  # a task that was never read
                pipe.close()
        return self.process.wait()


# Signals of bugs in C code, which the same clip would cause again.
_CRASHES = (signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGABRT)
