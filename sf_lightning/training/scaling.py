"""What a step on many ranks takes: arithmetic of DDP, of FSDP2 as `sharding` has it, and of both together (HSDP).

A step is computing, memory traffic, and that part of communication which computing does not hide. Knows nothing of
devices: seconds and bandwidths are given.
"""

import math
from dataclasses import dataclass

WIDTH = 4
"""Bytes of a weight or gradient on the way: fp32, as Lightning's mixed precision leaves them."""
BUCKET = 25 * 2**20
"""Bytes of gradients that DDP sends together, as PyTorch has it."""


@dataclass(frozen=True)
class Ring:
    """Ranks in a ring: bytes a second that a link carries in each collective; seconds that any message takes."""

    ranks: int
    all_reduce: float
    all_gather: float
    reduce_scatter: float
    latency: float

    def seconds(self, collective: str, size: float, messages: int = 1) -> float:
        """Seconds to gather, scatter or reduce so many bytes in so many messages.

        Every link carries all but one rank's share of the bytes, once to gather or scatter, twice to reduce; a
        message starts along a tree.

        >>> Ring(4, 100.0, 100.0, 100.0, 0.0).seconds("all_reduce", 1000.0)  # 2 (R - 1) / R N / bandwidth
        15.0
        >>> Ring(4, 100.0, 100.0, 100.0, 0.5).seconds("all_gather", 1000.0, messages=3)
        10.5
        """
        passes = 2 if collective == "all_reduce" else 1
        carried = (self.ranks - 1) / self.ranks * size / getattr(self, collective)
        return passes * (carried + messages * self.latency * math.ceil(math.log2(self.ranks)))


@dataclass(frozen=True)
class Network:
    """What is sent: weights; those of them outside of layers, one message of FSDP2; number of layers."""

    weights: int
    root: int
    layers: int


@dataclass(frozen=True)
class Load:
    """Seconds of a device for its share of a step; to update all weights; to copy as many numbers once."""

    forward: float
    backward: float
    update: float
    copy: float


@dataclass(frozen=True)
class Step:
    """Seconds of a step: computing, updates and copies, all communication, the part of it that is waited for."""

    compute: float
    memory: float
    communication: float
    waited: float

    @property
    def seconds(self) -> float:
        """Of the whole."""
        return self.compute + self.memory + self.waited

    @property
    def share(self) -> float:
        """Of it that is waited for communication."""
        return self.waited / self.seconds


def ddp(network: Network, load: Load, ring: Ring, overlap: float = 1.0) -> Step:
    """Gradients are reduced in buckets during the backward pass; the last of them can only be sent after it.

    They are copied into their bucket and back.

    Args:
        network: What is sent.
        load: What each rank computes.
        ring: Of all ranks.
        overlap: Share of computing under which communication goes on: 1, or 0 if they take turns.
    """
    buckets = math.ceil(WIDTH * network.weights / BUCKET)
    reduce = ring.seconds("all_reduce", WIDTH * network.weights, buckets)
    last = reduce / buckets
    waited = last + max(0.0, reduce - last - overlap * load.backward)
    return Step(load.forward + load.backward, load.update + 2 * load.copy, reduce, waited)


def sharded(network: Network, load: Load, ring: Ring, overlap: float = 1.0, replicas: Ring | None = None) -> Step:
    """FSDP2; with replicas HSDP. Layer by layer, as `sharding.shard` has it.

    Layers are gathered while the one before computes, forward and again backward, and their gradients scattered
    meanwhile; what is outside of layers is gathered before, once, and scattered after everything. Whatever is
    gathered is copied out of its message, and gradients into theirs. Replicas reduce their shards over other links
    than those of the ring, at the same time.

    Args:
        network: What is sent.
        load: What each rank computes; of the update each does its shard.
        ring: Of the ranks that hold shards of the same weights.
        overlap: As `ddp`.
        replicas: Of the ranks that hold the same shard.
    """
    root, layers = WIDTH * network.root, WIDTH * (network.weights - network.root)
    gather_root, gather = ring.seconds("all_gather", root), ring.seconds("all_gather", layers, network.layers)
    scatter_root = ring.seconds("reduce_scatter", root)
    scatter = ring.seconds("reduce_scatter", layers, network.layers)
    reduce = reduce_root = 0.0
    if replicas:
        reduce_root = replicas.seconds("all_reduce", root / ring.ranks)
        reduce = replicas.seconds("all_reduce", layers / ring.ranks, network.layers)
    ends = gather_root + scatter_root + reduce_root
    backward = max(gather + scatter, reduce)
    waited = max(0.0, gather - overlap * load.forward) + max(0.0, backward - overlap * load.backward)
    copies = load.copy * (2 * root + 3 * layers) / (root + layers)
    memory = load.update / ring.ranks + copies
    return Step(load.forward + load.backward, memory, ends + gather + backward, ends + waited)
