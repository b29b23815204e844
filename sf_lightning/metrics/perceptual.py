"""Measures PESQ-WB, STOI and ViSQOL of whole batches, as torchmetrics, on all cores at once.

Knows nothing of models, of streaming or of where clips come from. How one clip is scored is in `scorers.py`.

    metric.update(preds, target) ──► clips [N] ──► ScorePool: one process a core ──► per-clip scores ──► mean

A clip whose score is undefined (silent, too short, not finite) counts in `num_nan` and not in the mean.

B clips of a batch, N samples of a clip.
"""

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
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat

from sf_lightning.metrics.scorers import (
    SAMPLE_RATE,
    WORKER_IGNORES,
    Scorer,
    pesq_wb,
    require_visqol_lattice,
    stoi,
    visqol,
)

__all__ = [
    "PESQWB",
    "SAMPLE_RATE",
    "STOI",
    "PerceptualMetric",
    "ScorePool",
    "ViSQOL",
    "pesq_wb",
    "require_visqol_lattice",
    "shared_pool",
    "stoi",
    "update_together",
    "visqol",
]

MAX_WORKERS = 8
"""A pool that is not told how many workers to use takes one a core, but no more than this."""

Clips: TypeAlias = Tensor | Sequence[Tensor]
"""`[B, N]`, or B tensors `[N]` of any lengths. Padding is sound to a metric: cut it off first."""


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

    def map(
        self, scorer: Scorer, references: Sequence[np.ndarray], degradeds: Sequence[np.ndarray]
    ) -> list[float]:
        """Score all pairs, in parallel, and return their scores in the order given.

        Raises:
            ValueError: There are more references than degraded clips, or fewer.
            RuntimeError: A scorer raised, or its worker was killed twice.
        """
        if len(references) != len(degradeds):
            raise ValueError(f"got {len(references)} references but {len(degradeds)} degraded clips")
        return _gather([self.submit(scorer, *pair) for pair in zip(references, degradeds, strict=True)])

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


class PerceptualMetric(Metric):
    """Means a perceptual score over clips, leaving out (and counting) those for which it is undefined.

    Subclasses name their scorer. `compute()` is a scalar, NaN where no clip could be scored.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    @staticmethod
    def scorer(reference: np.ndarray, degraded: np.ndarray) -> float:
        """Score one clip `[N]` against its reference; what a subclass is made of."""
        raise NotImplementedError

    def __init__(self, sample_rate: int, **kwargs: Any) -> None:
        """Check the rate; nothing is started yet.

        Args:
            sample_rate: Hz of the clips to come. Only 16,000 is defined: resample before.
            kwargs: Those of `torchmetrics.Metric`.

        Raises:
            ValueError: Another rate.
        """
        super().__init__(**kwargs)
        if sample_rate != SAMPLE_RATE:
            name = type(self).__name__
            raise ValueError(f"{name} is defined at {SAMPLE_RATE} Hz, got {sample_rate} Hz: resample first")
        # A name of its own for each class: a MetricCollection merges metrics whose states have the same names
        # and look the same after the first update, as two lists do when that batch was empty.
        self._state = f"{type(self).__name__.lower()}_scores"
        self.add_state(self._state, default=[], dist_reduce_fx="cat")

    def start(self, preds: Clips, target: Clips) -> list[Future[float]]:
        """Queue all clips for scoring and return at once; hand the result to `update`."""
        degradeds, references = _clips(preds), _clips(target)
        if len(degradeds) != len(references):
            raise ValueError(f"got {len(degradeds)} clips in preds but {len(references)} in target")
        scorer = type(self).scorer
        return [shared_pool().submit(scorer, *pair) for pair in zip(references, degradeds, strict=True)]

    def update(self, preds: Clips, target: Clips, started: list[Future[float]] | None = None) -> None:
        """Score a batch, on all cores, and keep its scores.

        Args:
            preds: The clips to judge, on any device.
            target: Their references. Of each pair the longer is cut to the shorter.
            started: What `start` returned for these very clips, if it was called before.

        Raises:
            ValueError: `preds` and `target` hold different numbers of clips, or something else than clips.
            RuntimeError: A worker failed.
        """
        scores = _gather(self.start(preds, target) if started is None else started)
        getattr(self, self._state).append(torch.tensor(scores, dtype=torch.float32, device=self.device))

    def compute(self) -> Tensor:
        """Return the mean over the clips that have a score, a scalar."""
        return self.scores.nanmean()

    @property
    def scores(self) -> Tensor:
        """The score of each clip `[clips]`, in the order of the updates; until synced, this rank's."""
        state = getattr(self, self._state)
        return dim_zero_cat(state) if len(state) else torch.empty(0, device=self.device)

    @property
    def num_nan(self) -> int:
        """How many of the clips have no score."""
        return int(self.scores.isnan().sum())


class PESQWB(PerceptualMetric):
    """Means wide-band PESQ (ITU-T P.862.2), about 1 to 4.64, over clips."""

    scorer = staticmethod(pesq_wb)


class STOI(PerceptualMetric):
    """Means short-time objective intelligibility (Taal et al. 2011), at most 1, over clips."""

    scorer = staticmethod(stoi)


class ViSQOL(PerceptualMetric):
    """Means ViSQOL v3 (speech mode, lattice model), 1 to 5, over clips."""

    scorer = staticmethod(visqol)

    def __init__(self, sample_rate: int, **kwargs: Any) -> None:
        """Check the rate and that the lattice model is there.

        Args:
            sample_rate: Hz of the clips to come. Only 16,000 is defined.
            kwargs: Those of `torchmetrics.Metric`.

        Raises:
            ValueError: Another rate.
            RuntimeError: The lattice model or its runtime is missing.
        """
        super().__init__(sample_rate, **kwargs)
        require_visqol_lattice()


def update_together(metrics: Iterable[Metric], preds: Clips, target: Clips) -> None:
    """Update several metrics with one batch in a single parallel pass over clips × metrics.

    The same as updating one after the other, but no core idles while a metric waits for its last clip. For a
    `MetricCollection` give its `.values()`.

    Raises:
        TypeError: One of them is no `PerceptualMetric`.
    """
    started: list[tuple[PerceptualMetric, list[Future[float]]]] = []
    for metric in metrics:
        if not isinstance(metric, PerceptualMetric):
            raise TypeError(f"only perceptual metrics share the pool, got {type(metric).__name__}")
        started.append((metric, metric.start(preds, target)))
    for started_metric, futures in started:
        started_metric.update(preds, target, futures)


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


def _clips(batch: Clips) -> list[np.ndarray]:
    """Bring a batch to the CPU, as B arrays `[N]` of float32."""
    if isinstance(batch, Tensor) and batch.ndim != 2:
        raise ValueError(f"a batch is [B, N] or a list of [N], got {tuple(batch.shape)}")
    clips = batch.detach().to("cpu", torch.float32) if isinstance(batch, Tensor) else batch
    for clip in clips:
        if clip.ndim != 1:
            raise ValueError(f"a batch is [B, N] or a list of [N], got a clip of {tuple(clip.shape)}")
    return [clip.detach().to("cpu", torch.float32).numpy() for clip in clips]


def _gather(futures: list[Future[float]]) -> list[float]:
    """Wait for all scores, and leave none queued if one fails or the user interrupts."""
    try:
        return [future.result() for future in futures]
    finally:
        for future in futures:
            future.cancel()
