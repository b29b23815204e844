"""Predicts how training scales over GPUs, from arithmetic and specified bandwidths. Writes slurm/SCALING.md.

    python -m benchmarks.ranks --json | tail -n 1 > ranks.json
    python -m benchmarks.scaling --ranks ranks.json --out slurm/SCALING.md

The same functions (`benchmarks/step_time.py`) predict clusters of GPUs, on which nothing was measured, and two
processes on one machine, whose bandwidths, computation and complete steps `benchmarks/ranks.py` measured.
"""

import argparse
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from benchmarks.step_time import WIDTH, Load, Network, Ring, Step, ddp, sharded
from sf_lightning.audio.mel import MelConfig
from sf_lightning.model.dit import DiTConfig
from sf_lightning.model.flops import flops_per_frame
from sf_lightning.model.layout import Layout
from sf_lightning.model.speaker import SpeakerConfig
from sf_lightning.model.streamflow import MelScale, StreamFlow

RECIPE = Path(__file__).parents[1] / "experiments" / "streamflow_sr.yaml"
HOURS = 100_000
UPDATE_BYTES = 52
"""Bytes read and written for each weight after the backward pass, all in fp32: norm, clipping, AdamW, average."""
SCHEMES = ("DDP", "FSDP2", "HSDP")
COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Gpu:
    """A GPU, with seven others in a node.

    Attributes:
        name: Name of the GPU.
        peak: Operations per second in bf16.
        memory: Bytes per second of memory.
        nvlink: Bytes per second of NVLink, in one direction.
        network: Bytes per second of a node's network, in one direction.
        node: Number of GPUs in a node.
    """

    name: str
    peak: float
    memory: float
    nvlink: float
    network: float
    node: int = 8

    def step(self, scheme: str, network: Network, load: Load, gpus: int, share: float, latency: float) -> Step:
        """Returns the step of `gpus` GPUs whose collectives reach `share` of the specified bandwidths."""

        def ring(ranks: int, bandwidth: float) -> Ring:
            return Ring(ranks, *[share * bandwidth] * 3, latency)

        inside, nodes = min(gpus, self.node), -(-gpus // self.node)
        if scheme == "HSDP":
            # Each GPU uses an equal share of the node's network to reduce its shard.
            replicas = ring(nodes, self.network / inside) if nodes > 1 else None
            return sharded(network, load, ring(inside, self.nvlink), replicas=replicas)
        # A ring over nodes is as fast as its slowest link.
        all_ranks = ring(gpus, self.nvlink if nodes == 1 else min(self.nvlink, self.network))
        return (ddp if scheme == "DDP" else sharded)(network, load, all_ranks)


A100 = Gpu("A100", 312e12, 2.04e12, 300e9, 200e9)
H100 = Gpu("H100", 989e12, 3.35e12, 450e9, 400e9)
"""NVIDIA's specifications, SXM, 80 GB, in DGX: one direction of NVLink; a port of 200 or 400 Gb/s per GPU."""


@dataclass(frozen=True)
class Recipe:
    """A training step of the recipe.

    Attributes:
        network: Sizes of the network's messages.
        flops: Operations to train on a pack.
        lanes: Number of packs in a step.
        seconds: Seconds of audio in a pack.
        tokens: Number of tokens in a pack.
    """

    network: Network
    flops: float
    lanes: int
    seconds: float
    tokens: float

    @staticmethod
    def read() -> "Recipe":
        """Reads experiments/streamflow_sr.yaml."""
        recipe = OmegaConf.to_container(OmegaConf.load(RECIPE))
        assert isinstance(recipe, dict)
        model, data = recipe["model"], recipe["data"]
        layout = {name: tuple(v) if isinstance(v, list) else v for name, v in model["layout"].items()}
        dit, mel, speaker = DiTConfig(**model["dit"]), MelConfig(), SpeakerConfig(**model["speaker"])
        with torch.device("meta"):
            network = StreamFlow(Layout(**layout), dit, mel, MelScale(), speaker)
        weights, layers = (sum(p.numel() for p in m.parameters()) for m in (network, network.dit.layers))
        frames = data["pack_frames"]
        return Recipe(
            Network(weights, weights - layers, len(network.dit.layers)),
            3 * flops_per_frame(network.dit) * frames,
            data["lanes"],
            frames / mel.frame_rate,
            frames / dit.frames_per_token,
        )

    def load(self, gpu: Gpu, packs: float, utilization: float) -> Load:
        """Returns the load of a GPU that trains on `packs` packs; the backward pass is two thirds of the work."""
        compute = packs * self.flops / (utilization * gpu.peak)
        update, copy = (size * self.network.weights / gpu.memory for size in (UPDATE_BYTES, 2 * WIDTH))
        return Load(compute / 3, 2 * compute / 3, update, copy)


def check(found: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """Returns (scheme, measured seconds, predicted seconds without overlap, with full overlap) for each scheme.

    Args:
        found: Measurements of `ranks.py`.
    """
    size, latency = found["bytes"], found["tiny"][0] / 2
    rates = {name: found[name][0] for name in ("all_reduce", "all_gather", "reduce_scatter")}
    # Between two ranks a link carries half of the bytes, or all of them for all_reduce.
    passes = {"all_reduce": 1.0, "all_gather": 0.5, "reduce_scatter": 0.5}
    ring = Ring(2, *(passes[name] * size[name] / seconds for name, seconds in rates.items()), latency)
    network, load = Network(found["weights"], found["root"], found["layers"]), Load(*found["alone"], *found["copy"])
    rows = []
    for scheme, predict in (("DDP", ddp), ("FSDP2", sharded)):
        in_turn, overlapped = (predict(network, load, ring, overlap).seconds for overlap in (0.0, 1.0))
        rows.append((scheme, sum(found[scheme]), in_turn, overlapped))
    return rows


HEAD = """# From one GPU to many

How long a training step takes with 8 to 1024 GPUs, and from which number of GPUs on communication slows it down.
Computed, not measured. Do not edit this page; generate it:

```bash
python -m benchmarks.ranks --json | tail -n 1 > ranks.json
python -m benchmarks.scaling --ranks ranks.json --out slurm/SCALING.md
```

The recipe is `experiments/streamflow_sr.yaml`: {weights:.0f} M weights, {root:.0f} M of them outside of layers
(mostly modulations); {lanes} packs of {seconds:g} s in a step, {flops:.1f} TFLOP per pack without speaker encoder
and mel. Assumptions: forward and backward pass at {utilization:.0%} of the peak in bf16; {update} bytes of
memory traffic to update a weight; collectives at {share:.0%} of the specified bandwidths, and {latency:.0f} us per
message and hop; gradients and gathered weights in fp32; communication overlaps with computation wherever the order
of operations allows it; loaders that keep up (`shards/CAPACITY.md`). Nodes have 8 GPUs, with NVIDIA's
specifications of DGX (SXM, 80 GB) and bandwidths in one direction:

| | peak, TFLOP/s | memory, GB/s | NVLink, GB/s | network of a node, GB/s |
|---|---|---|---|---|
"""
STEP = """
## One step

*Memory* is the time of updates and copies. *Waiting* is communication that computation does not hide; *share* is
its share of the step. FSDP2 shards over all GPUs; HSDP shards within a node and reduces across nodes. The fastest
scheme is bold.

| GPUs | scheme | step, ms | computation | memory | communication | waiting | share | tokens/s | \
hours of speech/s | days for {hours:,} hours |
|---|---|---|---|---|---|---|---|---|---|---|
"""
PAYS = """
## Efficiency by number of GPUs

The fastest scheme for each number. Up to {lanes} GPUs the step has the packs of the recipe, divided among the GPUs;
beyond, each GPU has one pack and the batch grows. *Efficiency* is the throughput per GPU relative to a single GPU.

| GPUs | packs per GPU | {columns} |
|---|---|---|---|---|---|---|---|---|---|
"""
LIMIT = """
Smallest number of GPUs with which waiting is more than {limit:.0%} of a step:

| network of a node | {columns} |
|---|---|---|---|---|---|---|
"""
CHECK = """
## Check on two processes

`python -m benchmarks.ranks` measures two processes over gloo, with {weights:.0f} M weights; a process without
communication takes {alone:.0f} ms per step. The cores that compute also transfer the messages, so computation
should hide nothing: the column *without overlap* is the prediction. *With overlap* assumes, as in the tables
above, that computation hides all communication that it can.

| scheme | measured, ms | predicted without overlap | error | predicted with overlap |
|---|---|---|---|---|
"""
LIMITS = """
## Limitations

No GPU was measured. The check covers sizes and bandwidths of messages, not the overlap of communication with
computation.
"""
NETWORKS = (("as above", 1.0), ("half", 1 / 2), ("a quarter", 1 / 4), ("an eighth: one port", 1 / 8))


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


def page(found: dict[str, Any], args: argparse.Namespace) -> str:
    """Returns the page in Markdown."""
    recipe = Recipe.read()
    network, lanes = recipe.network, recipe.lanes
    gpus = [replace(gpu, network=1e9 * args.network) if args.network else gpu for gpu in (A100, H100)]

    def step(gpu: Gpu, scheme: str, count: int) -> Step:
        load = recipe.load(gpu, max(1.0, lanes / count), args.utilization)
        return gpu.step(scheme, network, load, count, args.link_share, args.latency)

    def fastest(gpu: Gpu, count: int) -> str:
        return min(SCHEMES, key=lambda scheme: step(gpu, scheme, count).seconds)

    def rate(predicted: Step, count: int) -> float:
        return max(lanes, count) * recipe.seconds / predicted.seconds

    text = HEAD.format(
        **{"weights": network.weights / 1e6, "root": network.root / 1e6, "lanes": lanes, "seconds": recipe.seconds},
        **{"flops": recipe.flops / 1e12, "utilization": args.utilization, "update": UPDATE_BYTES},
        **{"share": args.link_share, "latency": 1e6 * args.latency},
    )
    for gpu in gpus:
        bandwidths = (f"{bandwidth / 1e9:,.0f}" for bandwidth in (gpu.memory, gpu.nvlink, gpu.network))
        text += row(gpu.name, f"{gpu.peak / 1e12:.0f}", *bandwidths)
    text += STEP.format(hours=HOURS)
    for gpu, count in zip(gpus, (16, 64), strict=True):
        for scheme in SCHEMES:
            predicted = step(gpu, scheme, count)
            speech = rate(predicted, count)
            parts = (predicted.compute, predicted.memory, predicted.communication, predicted.waited)
            text += row(
                f"{count} {gpu.name}",
                f"**{scheme}**" if scheme == fastest(gpu, count) else scheme,
                *(f"{1000 * seconds:.1f}" for seconds in (predicted.seconds, *parts)),
                f"{predicted.share:.1%}",
                f"{speech / recipe.seconds * recipe.tokens:,.0f}",
                f"{speech / 3600:.2f}",
                f"{HOURS * 3600 / speech / 86400:.3f} ({HOURS * 3600 / speech / 3600:.1f} h)",
            )
    text += PAYS.format(
        lanes=lanes, columns=" | ".join(f"{gpu.name} | step, ms | waiting | efficiency" for gpu in gpus)
    )
    for count in COUNTS:
        cells = []
        for gpu in gpus:
            scheme = fastest(gpu, count)
            predicted = step(gpu, scheme, count)
            efficiency = rate(predicted, count) / count / rate(step(gpu, "DDP", 1), 1)
            cells += [scheme, f"{1000 * predicted.seconds:.1f}", f"{predicted.share:.1%}", f"{efficiency:.0%}"]
        text += row(count, f"{max(1.0, lanes / count):g}", *cells)
    pairs = [(gpu, scheme) for gpu in gpus for scheme in SCHEMES]
    columns = " | ".join(f"{gpu.name}, {scheme}" for gpu, scheme in pairs)
    text += LIMIT.format(limit=args.limit, columns=columns)
    for name, share in NETWORKS:
        cells = []
        for gpu, scheme in pairs:
            slower = replace(gpu, network=share * gpu.network)
            over = (count for count in COUNTS if step(slower, scheme, count).share > args.limit)
            cells.append(str(next(over, "never")))
        text += row(name, *cells)
    text += CHECK.format(weights=found["weights"] / 1e6, alone=1000 * sum(found["alone"]))
    for scheme, *seconds in check(found):
        measured, in_turn, overlapped = (f"{1000 * duration:.0f}" for duration in seconds)
        text += row(scheme, measured, in_turn, f"{seconds[1] / seconds[0] - 1:+.1%}", overlapped)
    return text + LIMITS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=Path, required=True, help="JSON file of ranks.py --json")
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    parser.add_argument("--utilization", type=float, default=0.4, help="share of the peak that training reaches")
    parser.add_argument(
        "--link-share", type=float, default=0.8, help="share of the specified bandwidth in a collective"
    )
    parser.add_argument("--latency", type=float, default=20e-6, help="seconds per message and hop")
    parser.add_argument("--network", type=float, help="GB/s of a node's network, one direction; default: NVIDIA's")
    parser.add_argument("--limit", type=float, default=0.1, help="share of a step above which waiting is reported")
    args = parser.parse_args()
    found = json.loads(args.ranks.read_text())
    args.out.write_text(page(found, args))
    for scheme, measured, predicted, _ in check(found):
        error = predicted / measured - 1
        print(f"{scheme}: measured {1000 * measured:.0f} ms, predicted {1000 * predicted:.0f} ms ({error:+.1%})")


if __name__ == "__main__":
    main()
