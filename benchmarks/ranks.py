"""Times of a training step and of its parts on two processes, with which `scaling.py` is checked.

    python -m benchmarks.ranks --json | tail -n 1 > ranks.json

The network has a third of the recipe's layers and half of its width. Two ranks of one thread each communicate over
gloo. Measured are a step without communication (on both ranks at the same time), every collective with messages of
the network's sizes, and steps with DDP and FSDP2. The measurements alternate several times; the fastest of each
counts, on the slower of the two ranks.
"""

import argparse
import json
import os
import socket
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
import torch.distributed as dist
from rich.console import Console
from torch import Tensor, multiprocessing, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.nn.parallel import DistributedDataParallel

from benchmarks.step_time import BUCKET
from sf_lightning.audio.mel import MelConfig
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.dit import DiTConfig
from sf_lightning.model.layout import Layout
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import MelScale, StreamFlow
from sf_lightning.training.ema import move_average
from sf_lightning.training.sharding import shard_weights

WORLD = 2
UTTERANCES, FRAMES = 2, 240
"""Number of utterances, and frames of each, in a step of one rank."""
TINY = 1024
"""Bytes of a message whose duration is the latency of two passes."""


def small_network() -> StreamFlow:
    """Returns a smaller network than the recipe's, with the same weights on all ranks."""
    torch.manual_seed(0)
    sizes = DiTConfig(width=512, num_heads=8)
    return StreamFlow(
        Layout(num_layers=8, drawn_for=22), sizes, MelConfig(), MelScale(), SpeakerConfig(channels=128)
    )


def training_step(called: nn.Module, model: StreamFlow, average: StreamFlow) -> Callable[[], list[float]]:
    """Returns a function that trains a step and returns the seconds of forward pass, backward pass and update.

    Args:
        called: What is called in the forward pass: the model, or its wrapper.
        model: Network.
        average: Network of the averaged weights.
    """
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    blocks = Blocks.from_lengths([FRAMES] * UTTERANCES, model.layout.block_size)
    x = torch.randn(len(blocks), blocks.block_size, 80)
    t = torch.full((UTTERANCES,), 0.5)
    tokens = torch.zeros(len(blocks), blocks.block_size // 4, dtype=torch.long)
    speaker = torch.randn(UTTERANCES, 48000), torch.zeros(UTTERANCES, 0)
    kept = torch.zeros(UTTERANCES, dtype=torch.bool)

    def step() -> list[float]:
        optimizer.zero_grad()
        times = [time.perf_counter()]
        loss = (called(x, t, tokens, speaker, blocks, kept, kept) - x).square().mean()
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        move_average(average, model, 1, 0.999)
        times.append(time.perf_counter())
        return [end - start for start, end in pairwise(times)]

    return step


def collective(name: str, *sizes: int) -> Callable[[], list[float]]:
    """Returns a function that runs a collective on messages of `sizes` bytes and returns its seconds.

    Memory is used as in DDP and FSDP2: all_reduce reuses its buckets, the others allocate their output each time.
    """
    messages = [(torch.zeros(size // 4), torch.zeros(size // 4 // WORLD)) for size in sizes]
    run: dict[str, Callable[[Tensor, Tensor], object]] = {
        "all_reduce": lambda whole, part: dist.all_reduce(whole),
        "all_gather": lambda whole, part: dist.all_gather_into_tensor(torch.empty_like(whole), part),
        "reduce_scatter": lambda whole, part: dist.reduce_scatter_tensor(torch.empty_like(part), whole),
    }

    def timed() -> list[float]:
        start = time.perf_counter()
        for whole, part in messages:
            run[name](whole, part)
        return [time.perf_counter() - start]

    return timed


def copy(count: int) -> Callable[[], list[float]]:
    """Returns a function that copies `count` fp32 numbers and returns its seconds."""
    source, target = torch.zeros(count), torch.zeros(count)

    def timed() -> list[float]:
        start = time.perf_counter()
        target.copy_(source)
        return [time.perf_counter() - start]

    return timed


def measure_rank(number: int, port: int, repeats: int, out: Path) -> None:
    """Runs the measurements as one of the ranks; rank 0 writes them to `out`."""
    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=number, world_size=WORLD)
    alone, replicated, sharded = ((small_network(), small_network()) for _ in range(3))
    for model in sharded:
        shard_weights(model, init_device_mesh("cpu", (WORLD,)))
    for _, average in (alone, replicated, sharded):
        average.requires_grad_(False)
    weights, layers = (sum(p.numel() for p in m.parameters()) for m in (alone[0], alone[0].dit.layers))
    sizes = 4 * layers // len(alone[0].dit.layers), 4 * (weights - layers)  # bytes of FSDP2's messages
    calls = {
        "alone": training_step(alone[0], *alone),
        "DDP": training_step(DistributedDataParallel(replicated[0]), *replicated),
        "FSDP2": training_step(sharded[0], *sharded),
        "copy": copy(weights),
        "tiny": collective("all_reduce", TINY),
        "all_reduce": collective("all_reduce", BUCKET),
        "all_gather": collective("all_gather", *sizes),
        "reduce_scatter": collective("reduce_scatter", *sizes),
    }
    best: dict[str, list[float]] = {}
    for repeat in range(repeats + 1):
        for name, call in calls.items():
            dist.barrier()
            times = call()
            if repeat and (name not in best or sum(times) < sum(best[name])):
                best[name] = times
    # The slower rank counts, because the other one waits for it.
    slowest = {name: torch.tensor(times, dtype=torch.float64) for name, times in best.items()}
    for tensor in slowest.values():
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
    if number == 0:
        found: dict[str, object] = {name: tensor.tolist() for name, tensor in slowest.items()}
        found |= {"weights": weights, "root": weights - layers, "layers": len(alone[0].dit.layers)}
        found["bytes"] = {
            "tiny": TINY,
            "all_reduce": BUCKET,
            "all_gather": sum(sizes),
            "reduce_scatter": sum(sizes),
        }
        out.write_text(json.dumps(found))
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20, help="number of measurements; the fastest counts")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    args = parser.parse_args()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with TemporaryDirectory() as folder:
        out = Path(folder, "found.json")
        multiprocessing.spawn(measure_rank, (port, args.repeats, out), WORLD)
        found = json.loads(out.read_text())
    console = Console(width=110)
    console.print(f"{WORLD} ranks of one thread on {os.cpu_count()} CPU cores, torch {torch.__version__}, gloo")
    for name in ("alone", "DDP", "FSDP2"):
        parts = ", ".join(f"{1000 * seconds:.0f}" for seconds in found[name])
        console.print(f"{name}: {1000 * sum(found[name]):.0f} ms (forward, backward, update: {parts})")
    for name, size in found["bytes"].items():
        console.print(f"{name}, {size / 2**20:.3g} MiB: {1000 * found[name][0]:.2f} ms")
    if args.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
