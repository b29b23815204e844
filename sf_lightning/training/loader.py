"""Packs of lanes from loader processes, gathered into the batches of steps. Independent of modules."""

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from sf_lightning.data.lanes import Lane, LaneState
from sf_lightning.data.packing import Batch, PackShape, pack_clips


class LaneDataset(IterableDataset):
    """Packs of the lanes of one rank, one of each lane in turn.

    A worker owns whole lanes. With W workers, worker w has every W-th lane; the loader takes one item of each
    worker in turn, so packs arrive in the order of lanes.

    Args:
        lanes: The lanes of this rank.
        states: Start position of each lane, by lane number.
        shape: Shape of a pack.
    """

    def __init__(self, lanes: list[Lane], states: dict[int, LaneState], shape: PackShape) -> None:
        self.lanes, self.states, self.shape = lanes, states, shape

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        lanes = self.lanes[worker.id :: worker.num_workers] if worker else self.lanes
        states = [self.states.get(lane.lane, LaneState()) for lane in lanes]
        streams = [
            pack_clips(lane.draw_clips(state), self.shape, lane.lane, state)
            for lane, state in zip(lanes, states, strict=True)
        ]
        while True:
            for lane, stream in zip(lanes, streams, strict=True):
                pack = next(stream)
                pack.skipped = {lane.lane: dict(lane.skipped)}
                yield pack


class StepLoader:
    """Gathers the packs of a step, one of each lane of this rank, endlessly.

    Attributes:
        data_wait_seconds: Seconds that steps have waited for their packs so far.
    """

    def __init__(self, dataset: LaneDataset, num_workers: int, pin_memory: bool) -> None:
        self.packs_per_step = len(dataset.lanes)
        # Each worker must own as many lanes as the others, or packs would come out of order.
        while num_workers and self.packs_per_step % num_workers:
            num_workers -= 1
        self.loader = DataLoader(
            dataset,
            batch_size=None,
            num_workers=num_workers,
            prefetch_factor=4 * self.packs_per_step if num_workers else None,
        )
        self.pin_memory = pin_memory
        self.data_wait_seconds = 0.0

    def __iter__(self) -> Iterator[Batch]:
        packs = iter(self.loader)
        while True:
            started = perf_counter()
            step = [next(packs) for _ in range(self.packs_per_step)]
            self.data_wait_seconds += perf_counter() - started
            batch = Batch.from_packs(step)
            yield batch.pin_memory() if self.pin_memory else batch


@dataclass(frozen=True)
class BatchList:
    """Batches in memory; Lightning takes a plain list for several loaders."""

    batches: list[Batch]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Batch]:
        return iter(self.batches)
