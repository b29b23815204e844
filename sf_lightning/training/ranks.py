"""Communication of the ranks of a distributed run. Independent of models and data."""

from typing import TypeVar, cast

from torch.distributed import ProcessGroup, all_gather_object, get_world_size, is_available, is_initialized

T = TypeVar("T")


def gather_over_ranks(value: T, group: ProcessGroup | None = None) -> list[T]:
    """Returns the values of all ranks, by rank, on every rank; only the value itself where nothing is distributed.

    A collective operation: it blocks until every rank of the group has called it.

    Args:
        value: Object of this rank; it is pickled.
        group: Process group, by default that of all ranks.
    """
    if not (is_available() and is_initialized()):
        return [value]
    values: list[T | None] = [None] * get_world_size(group)
    all_gather_object(values, value, group)
    return cast(list[T], values)
