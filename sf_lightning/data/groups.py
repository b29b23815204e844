"""Groups of shards whose samples a lane shuffles together, read ahead in a thread. Independent of their order.

While a lane draws the samples of a group, the shards of its next group are read one after the other, spread over
that time. The memory of a lane is thus bounded: with groups of n shards it holds at most 1 + 2 / (n + 1) groups, or
two after a resume within a group. The reads of different lanes begin at different times, so that the load of a
shared disk is even.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import partial
from threading import Thread
from typing import NamedTuple, TypeVar

from sf_lightning.data.index import IndexRow
from sf_lightning.data.sample import RawSample
from sf_lightning.data.shards import ShardSet

T = TypeVar("T")


class SampleName(NamedTuple):
    """A sample of a set: number of the shard, and key within it."""

    shard: int
    key: str


@dataclass(frozen=True)
class ShardSlice:
    """Every `step`-th sample of a shard from `first` on: with few shards, several lanes share one."""

    shard: int
    first: int
    step: int

    def size(self, samples: int) -> int:
        """Returns the number of samples in the slice of a shard that has `samples` samples."""
        return len(range(self.first, samples, self.step))


class Group(NamedTuple):
    """A group of a lane.

    Attributes:
        epoch: Epoch of the lane.
        number: Number of the group in the epoch.
        start: Number of its first sample within the lane's epoch.
        skip: Number of its samples that are drawn already.
        slices: Its shards.
    """

    epoch: int
    number: int
    start: int
    skip: int
    slices: Sequence[ShardSlice]


class GroupContent(NamedTuple):
    """Rows of the index of a group, in the order of its shards, and the samples that could be read."""

    rows: list[tuple[SampleName, IndexRow]]
    raws: dict[SampleName, RawSample]


@dataclass
class GroupReader:
    """Reads the shards of a group, each in a thread when it is due.

    A thread is a daemon: it never delays the exit of a loader process, in which it is started.

    Args:
        shards: The set.
        slices: Shards of the group.
        phase: Part of the time between two shards by which the reads are delayed, from 0 to 1.
    """

    shards: ShardSet
    slices: Sequence[ShardSlice]
    phase: float
    reads: list[Future[GroupContent]] = field(default_factory=list)

    def read_due(self, share: float) -> None:
        """Starts to read the next shard if a share of the previous group is drawn, and no other is being read."""
        number, count = len(self.reads), len(self.slices)
        if number < count and share * (count + 1) >= number + self.phase and (not number or self.reads[-1].done()):
            self.reads.append(_run_in_thread(partial(self._read, self.slices[number])))

    def finish(self) -> GroupContent:
        """Returns the content of the group, and reads what is not read yet.

        Raises:
            Exception: as `ShardSet.read_index` and `read_samples`, also where a thread read.
        """
        content = GroupContent([], {})
        for number, part in enumerate(self.slices):
            read = self.reads[number].result() if number < len(self.reads) else self._read(part)
            content.rows.extend(read.rows)
            content.raws.update(read.raws)
        self.reads.clear()  # the samples are dropped one by one
        return content

    def _read(self, part: ShardSlice) -> GroupContent:
        rows = self.shards.read_index(part.shard)[part.first :: part.step]
        raws = {SampleName(part.shard, raw["__key__"]): raw for raw in self.shards.read_samples(part.shard, rows)}
        return GroupContent([(SampleName(part.shard, row.key), row) for row in rows], raws)


def _run_in_thread(function: Callable[[], T]) -> Future[T]:
    """Returns the future result of a function. The threads of an executor would delay the exit of the process."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()
    return future
