"""Runs jobs in processes and reports progress: a bar on a terminal, a line per minute in a log file.

Every job counts the bytes that it has processed while it runs, in any process, so that progress is visible within a
job of an hour.
"""

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.filesize import decimal
from rich.progress import BarColumn, Progress, TextColumn

from sf_lightning.files.text import printable

SECONDS_BETWEEN_UPDATES = 1.0
"""Interval at which the bar is updated."""

SECONDS_BETWEEN_LINES = 60.0
"""Interval at which progress is printed where there is no terminal."""

Item = TypeVar("Item")
Finding = TypeVar("Finding")


class ProgressCounter:
    """Counts finished work, shared by all processes.

    Args:
        processes: Number of processes that count; several are spawned, and need a lock that can be sent to them.
    """

    def __init__(self, processes: int = 1) -> None:
        self.counts = multiprocessing.get_context("spawn" if processes > 1 else None).Array("d", 3)

    def add(self, processed: int = 0, seconds: float = 0.0, reused: int = 0) -> None:
        """Adds to the counts.

        Args:
            processed: Bytes processed in this run; the remaining time is estimated from them.
            seconds: Seconds of speech.
            reused: Bytes that needed no work, such as those that an earlier run processed.
        """
        with self.counts.get_lock():
            for i, more in enumerate((processed, seconds, reused)):
                self.counts[i] += more

    def read(self) -> tuple[float, float, float]:
        """Returns bytes processed, seconds of speech, and bytes reused."""
        with self.counts.get_lock():
            return self.counts[0], self.counts[1], self.counts[2]


Job = Callable[[Item, ProgressCounter], list[Finding]]
"""Does the job of an item, counts it, and returns its findings."""


def run_jobs(
    do: Job[Item, Finding], items: Sequence[Item], total: int, processes: int, title: str
) -> list[Finding]:
    """Runs a job for each item, reports progress, and prints the findings of each job when it ends.

    Args:
        do: The job of an item; sent once to each process.
        items: The items.
        total: Bytes of all items.
        processes: Number of processes; 1 runs the jobs in this one.
        title: Title of the progress bar.

    Returns:
        All findings, in the order of the items.

    Raises:
        RuntimeError: if a process was killed.
    """
    counter, findings = ProgressCounter(processes), list[Finding]()
    with _report_progress(title, total, counter) as console:
        for found in _results(do, items, processes, counter):
            for finding in found:
                console.print(printable(finding), markup=False, highlight=False, soft_wrap=True)
            findings += found
    return findings


def progress_line(counter: ProgressCounter, total: int, elapsed: float) -> str:
    """Returns the share that is done, hours of speech, speed, and remaining time.

    >>> counter = ProgressCounter()
    >>> counter.add(processed=100, seconds=3600.0)
    >>> counter.add(reused=500)
    >>> progress_line(counter, 1000, elapsed=60.0)
    '60% of 1.0 kB, 1.0 h of speech, 60 x real time, 4 min left'
    """
    processed, seconds, reused = counter.read()
    share, hours, rate = min(1.0, (processed + reused) / max(1, total)), seconds / 3600, seconds / elapsed
    if processed:
        left = elapsed * max(0.0, total - processed - reused) / processed
        remaining = f"{left / 3600:.1f} h left" if left > 3600 else f"{left / 60:.0f} min left"
    else:
        remaining = "time left unknown"
    return f"{share:.0%} of {decimal(total)}, {hours:.1f} h of speech, {rate:.0f} x real time, {remaining}"


@contextmanager
def _report_progress(title: str, total: int, counter: ProgressCounter) -> Iterator[Console]:
    """Reports the progress of a counter while the block runs; yields the console to print to meanwhile."""
    columns = (TextColumn("{task.description}"), BarColumn(12), TextColumn("{task.fields[line]}"))
    stop, start = threading.Event(), time.monotonic()
    console = Console()
    is_log = not console.is_interactive
    with Progress(*columns, console=console, transient=True, disable=is_log) as progress:
        task = progress.add_task(title, total=max(1, total), line="")

        def watch() -> None:
            last_printed = start
            while not stop.wait(SECONDS_BETWEEN_UPDATES):
                now, (processed, _, reused) = time.monotonic(), counter.read()
                line = progress_line(counter, total, now - start)
                progress.update(task, completed=processed + reused, line=line)
                if is_log and now - last_printed >= SECONDS_BETWEEN_LINES:
                    last_printed = now
                    print(f"{title}: {line}", flush=True)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield console
        finally:
            stop.set()
            watcher.join()


def _results(
    do: Job[Item, Finding], items: Sequence[Item], processes: int, counter: ProgressCounter
) -> Iterator[list[Finding]]:
    """Yields the findings of each job, in order."""
    if processes == 1:
        for item in items:
            yield do(item, counter)
        return
    # Not forked: torch's threads do not survive a fork.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, _start_process, (do, counter)) as pool:
        futures = [pool.submit(_do_in_process, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"one of the {processes} processes was killed, possibly for lack of memory: lower --processes and "
                "start the same command again"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_job: tuple[Job, ProgressCounter]
"""Job and counter of a process of the pool: sent once, because a tokenizer is slow to load."""


def _start_process(do: Job, counter: ProgressCounter) -> None:
    global _job
    _job = do, counter
    torch.set_num_threads(1)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _do_in_process(item: Any) -> list[Any]:
    do, counter = _job
    return do(item, counter)


def _exit_with_parent() -> None:
    """Ends this process when its parent is gone: a pool whose parent was killed would block forever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
