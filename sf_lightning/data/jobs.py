"""Work in processes, and how far it is: a bar on a terminal, a line a minute in the log of a job.

Knows nothing of what the work is. Every job counts, while it goes on, the bytes that it is done with: so a job
that takes an hour is seen to move, whichever process it is in.
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

SECONDS_BETWEEN_LOOKS = 1.0
"""How often the bar is moved."""

SECONDS_BETWEEN_LINES = 60.0
"""How often work without a terminal says how far it is."""

Item = TypeVar("Item")
Said = TypeVar("Said")


class ProgressCounter:
    """What is done so far, counted by all processes together.

    Args:
        processes: That count; more than one are started afresh, and need locks that can be handed to them.
    """

    def __init__(self, processes: int = 1) -> None:
        self.counts = multiprocessing.get_context("spawn" if processes > 1 else None).Array("d", 3)

    def add(self, made: int = 0, seconds: float = 0.0, passed: int = 0) -> None:
        """Counts a little more.

        Args:
            made: Bytes that were worked on; with the time that they took they say how long the rest will take.
            seconds: Of speech.
            passed: Bytes that are done and asked for no work, such as those of an earlier run.
        """
        with self.counts.get_lock():
            for i, more in enumerate((made, seconds, passed)):
                self.counts[i] += more

    def read(self) -> tuple[float, float, float]:
        """Returns bytes made, seconds of speech, and bytes passed."""
        with self.counts.get_lock():
            return self.counts[0], self.counts[1], self.counts[2]


def run_jobs(
    do: Callable[[Item, ProgressCounter], list[Said]], items: Sequence[Item], total: int, processes: int, title: str
) -> list[Said]:
    """Does jobs, says how far they are, and prints what each has to say when it ends.

    Args:
        do: Does one job, counts it, and returns what there is to say. Each process is handed it once.
        items: The jobs.
        total: Bytes of all of them.
        processes: That work side by side; 1 is this one.
        title: What is done.

    Returns:
        What all had to say, in the order of the jobs.
    """
    counter, said = ProgressCounter(processes), list[Said]()
    with _shown(title, total, counter) as console:
        for each in _results(do, items, processes, counter):
            for line in each:
                console.print(str(line), markup=False, highlight=False, soft_wrap=True)
            said += each
    return said


def progress_line(counter: ProgressCounter, total: int, elapsed: float) -> str:
    """Says what share is done, how much speech, how fast, and how long the rest will take.

    >>> counter = ProgressCounter()
    >>> counter.add(made=100, seconds=3600.0)
    >>> counter.add(passed=500)
    >>> progress_line(counter, 1000, elapsed=60.0)
    '60% of 1.0 kB, 1.0 h of speech, 60 x real time, 4 min left'
    """
    made, seconds, passed = counter.read()
    share, hours, rate = min(1.0, (made + passed) / max(1, total)), seconds / 3600, seconds / elapsed
    if made:
        left = elapsed * max(0.0, total - made - passed) / made
        wait = f"{left / 3600:.1f} h left" if left > 3600 else f"{left / 60:.0f} min left"
    else:
        wait = "time left unknown"
    return f"{share:.0%} of {decimal(total)}, {hours:.1f} h of speech, {rate:.0f} x real time, {wait}"


@contextmanager
def _shown(title: str, total: int, counter: ProgressCounter) -> Iterator[Console]:
    """Shows how far a counter is while the block runs; what is printed meanwhile goes to the console given."""
    columns = (TextColumn("{task.description}"), BarColumn(12), TextColumn("{task.fields[said]}"))
    stop, began = threading.Event(), time.monotonic()
    console = Console()
    in_log = not console.is_interactive
    with Progress(*columns, console=console, transient=True, disable=in_log) as progress:
        task = progress.add_task(title, total=max(1, total), said="")

        def watch() -> None:
            said_at = began
            while not stop.wait(SECONDS_BETWEEN_LOOKS):
                now, (made, _, passed) = time.monotonic(), counter.read()
                said = progress_line(counter, total, now - began)
                progress.update(task, completed=made + passed, said=said)
                # The log of a job shows no bar: a line a minute instead.
                if in_log and now - said_at >= SECONDS_BETWEEN_LINES:
                    said_at = now
                    print(f"{title}: {said}", flush=True)

        watcher = threading.Thread(target=watch, daemon=True)
        watcher.start()
        try:
            yield console
        finally:
            stop.set()
            watcher.join()


def _results(
    do: Callable[[Item, ProgressCounter], list[Said]],
    items: Sequence[Item],
    processes: int,
    counter: ProgressCounter,
) -> Iterator[list[Said]]:
    """Yields what each job has to say, in order."""
    if processes == 1:
        for item in items:
            yield do(item, counter)
        return
    # Not forked: torch's threads do not survive a fork.
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, spawn, _begin_process, (do, counter)) as pool:
        futures = [pool.submit(_do_here, item) for item in items]
        try:
            for future in futures:
                yield future.result()
        except BrokenProcessPool as error:
            raise RuntimeError(
                f"one of the {processes} processes was killed, maybe for want of memory: lower --processes and "
                "start the same command again"
            ) from error
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


_mine: tuple[Callable[[Any, ProgressCounter], list[Any]], ProgressCounter]
"""What a process of the pool does, and where it counts: sent once, for a tokenizer is slow to load."""


def _begin_process(do: Callable[[Any, ProgressCounter], list[Any]], counter: ProgressCounter) -> None:
    global _mine
    _mine = do, counter
    torch.set_num_threads(1)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _do_here(item: Any) -> list[Any]:
    do, counter = _mine
    return do(item, counter)


def _end_with_parent() -> None:
    """Ends this process when the one that started it is gone: a pool whose owner was killed waits for ever."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
