"""Step times on many ranks, in closed form."""

import pytest

from benchmarks.step_time import BUCKET, WIDTH, Load, Network, Ring, ddp, sharded

NETWORK = Network(weights=4 * BUCKET // WIDTH, root=BUCKET // WIDTH, layers=3)
"""Four buckets; a root and three layers of one bucket each."""
SIZE = 4.0 * BUCKET
RING = Ring(4, 0.75 * BUCKET, 0.75 * BUCKET, 0.75 * BUCKET, 0.0)
"""A bucket takes a second to gather or scatter, two to reduce."""


@pytest.mark.parametrize("ranks", [2, 16, 1024])
def test_all_reduce_takes_as_long_as_reduce_scatter_and_all_gather(ranks: int) -> None:
    ring = Ring(ranks, 3.0, 3.0, 3.0, 0.1)
    reduced, *halves = (ring.seconds(name, 60.0, 5) for name in ("all_reduce", "reduce_scatter", "all_gather"))
    assert reduced == pytest.approx(sum(halves))
    assert Ring(ranks, 3.0, 3.0, 3.0, 0.0).seconds("all_reduce", 60.0) == pytest.approx(40 * (ranks - 1) / ranks)


def test_a_single_rank_does_not_communicate() -> None:
    alone, load = Ring(1, 1.0, 1.0, 1.0, 1.0), Load(1.0, 2.0, 0.5, 0.0)
    assert ddp(NETWORK, load, alone).seconds == sharded(NETWORK, load, alone).seconds == 3.5


def test_ddp_waits_only_for_its_last_bucket_if_the_backward_pass_is_long() -> None:
    step = ddp(NETWORK, Load(50.0, 100.0, 0.0, 0.0), RING)
    assert step.communication == pytest.approx(8) and step.waited == pytest.approx(2)
    assert ddp(NETWORK, Load(50.0, 100.0, 0.0, 0.0), RING, overlap=0).waited == pytest.approx(8)
    assert ddp(NETWORK, Load(0.5, 1.0, 0.0, 0.0), RING).waited == pytest.approx(7)


def test_fsdp_waits_only_for_the_root_weights_and_sends_half_as_much_again() -> None:
    step = sharded(NETWORK, Load(50.0, 100.0, 8.0, 0.0), RING)
    # The root is gathered once and scattered once; three layers are gathered twice and scattered once.
    assert step.waited == pytest.approx(2) and step.communication == pytest.approx(2 + 3 * 3)
    assert step.memory == 8.0 / 4
    assert sharded(NETWORK, Load(50.0, 100.0, 8.0, 0.0), RING, overlap=0).waited == pytest.approx(11)


def test_replicas_reduce_their_shards_in_addition_to_the_ring() -> None:
    replicas = Ring(2, BUCKET / 4, 1.0, 1.0, 0.0)  # a shard of a bucket takes a second
    step = sharded(NETWORK, Load(50.0, 100.0, 0.0, 0.0), RING, replicas=replicas)
    assert step.waited == pytest.approx(3) and step.communication == pytest.approx(3 + 3 + 6)
    slow = sharded(NETWORK, Load(0.0, 0.0, 0.0, 0.0), RING, replicas=Ring(2, BUCKET / 40, 1.0, 1.0, 0.0))
    assert slow.waited == pytest.approx(2 + 10 + 3 + 30)
