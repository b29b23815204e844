"""Predicted duration of a training step on many ranks, with DDP, FSDP2 (as in `training/sharding.py`) and HSDP.

A step consists of computation, memory traffic, and the communication that computation does not hide. The functions
do not depend on a device: seconds and bandwidths are arguments.
"""

import math
from dataclasses import dataclass

WIDTH = 4
"""Bytes of a weight or gradient in a message: fp32, also with Lightning's mixed precision."""
BUCKET = 25 * 2**20
"""Bytes of a gradient bucket of DDP, PyTorch's default."""


@dataclass(frozen=True)
class Ring:
    """A ring of ranks.

    Attributes:
        ranks: Number of ranks.
        all_reduce, all_gather, reduce_scatter: Bytes per second of a link in this collective.
        latency: Seconds per message and hop.
    """

    ranks: int
    all_reduce: float
    all_gather: float
    reduce_scatter: float
    latency: float

    def seconds(self, collective: str, size: float, messages: int = 1) -> float:
        """Returns the seconds of a collective over `size` bytes in `messages` messages.

        Every link carries (R - 1) / R of the bytes, once for all_gather and reduce_scatter and twice for
        all_reduce; a message takes the hops of a tree, log2(R), in each pass.

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
    """Sizes of a network's messages.

    Attributes:
        weights: Number of weights.
        root: Number of weights outside of layers, which are one message of FSDP2.
        layers: Number of layers.
    """

    weights: int
    root: int
    layers: int


@dataclass(frozen=True)
class Load:
    """Seconds of work of a device in a step.

    Attributes:
        forward: Forward pass of its share of the batch.
        backward: Backward pass of its share of the batch.
        update: Update of all weights.
        copy: One copy of all weights.
    """

    forward: float
    backward: float
    update: float
    copy: float


@dataclass(frozen=True)
class Step:
    """Seconds of a step.

    Attributes:
        compute: Forward and backward pass.
        memory: Updates and copies of weights.
        communication: All communication.
        waited: Communication that computation does not hide.
    """

    compute: float
    memory: float
    communication: float
    waited: float

    @property
    def seconds(self) -> float:
        """Duration of the step."""
        return self.compute + self.memory + self.waited

    @property
    def share(self) -> float:
        """Share of the step that waits for communication."""
        return self.waited / self.seconds


def ddp(network: Network, load: Load, ring: Ring, overlap: float = 1.0) -> Step:
    """Returns a step of DDP: gradients are reduced in buckets during the backward pass, the last bucket after it.

    Gradients are copied into their bucket and back.

    Args:
        network: Sizes of the messages.
        load: Load of each rank.
        ring: Ring of all ranks.
        overlap: Share of the backward pass that overlaps with communication, 0 to 1.
    """
    buckets = math.ceil(WIDTH * network.weights / BUCKET)
    reduce = ring.seconds("all_reduce", WIDTH * network.weights, buckets)
    last = reduce / buckets
    waited = last + max(0.0, reduce - last - overlap * load.backward)
    return Step(load.forward + load.backward, load.update + 2 * load.copy, reduce, waited)


def sharded(network: Network, load: Load, ring: Ring, overlap: float = 1.0, replicas: Ring | None = None) -> Step:
    """Returns a step of FSDP2 or, with replicas, of HSDP, sharded by layers as in `sharding.shard_weights`.

    In both passes a layer is gathered while the one before it is computed; in the backward pass gradients of the
    layers are reduced and scattered at the same time. Weights outside of layers are gathered once, before the
    forward pass, and their gradients are scattered after the backward pass. Gathered weights are copied out of
    their message, gradients into theirs. Replicas reduce their shards at the same time, over other links.

    Args:
        network: Sizes of the messages.
        load: Load of each rank; each updates its shard only.
        ring: Ring of the ranks that hold shards of the same weights.
        overlap: Share of each pass that overlaps with communication, 0 to 1.
        replicas: Ring of the ranks that hold the same shard.
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
