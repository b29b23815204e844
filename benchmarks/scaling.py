"""How training scales over GPUs: arithmetic, stated links, and a check on two processes. Writes slurm/SCALING.md.

    python -m benchmarks.ranks --json | tail -n 1 > ranks.json
    python -m benchmarks.scaling --ranks ranks.json --out slurm/SCALING.md

The same functions (`benchmarks/step_time.py`) predict clusters of GPUs, on which nothing was measured, and
two processes of one machine, whose links and computing are measured one by one, and whose steps are measured too.
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
"""Memory read and written for each weight after the backward pass, all in fp32: norm, clipping, AdamW, average."""
SCHEMES = ("DDP", "FSDP2", "HSDP")
COUNTS = (8, 16, 32, 64, 128, 256, 512, 1024)


@dataclass(frozen=True)
class Gpu:
    """A GPU, and eight of them in a node.

    Operations a second in bf16; bytes a second of memory, of NVLink, and of the network of a node, each way.
    """

    name: str
    peak: float
    memory: float
    nvlink: float
    network: float
    node: int = 8

    def step(self, scheme: str, network: Network, load: Load, gpus: int, share: float, latency: float) -> Step:
        """A step of so many GPUs, whose collectives reach a share of the links' figures."""

        def ring(ranks: int, bandwidth: float) -> Ring:
            return Ring(ranks, *[share * bandwidth] * 3, latency)

        inside, nodes = min(gpus, self.node), -(-gpus // self.node)
        if scheme == "HSDP":
            # Each GPU has its part of the node's network, to reduce its shard.
            replicas = ring(nodes, self.network / inside) if nodes > 1 else None
            return sharded(network, load, ring(inside, self.nvlink), replicas=replicas)
        # A ring over nodes is as fast as its slowest link.
        everyone = ring(gpus, self.nvlink if nodes == 1 else min(self.nvlink, self.network))
        return (ddp if scheme == "DDP" else sharded)(network, load, everyone)


A100 = Gpu("A100", 312e12, 2.04e12, 300e9, 200e9)
H100 = Gpu("H100", 989e12, 3.35e12, 450e9, 400e9)
"""NVIDIA's figures, SXM, 80 GB, in DGX: one direction of NVLink; a port of 200 or 400 Gb/s for each GPU."""


@dataclass(frozen=True)
class Recipe:
    """A step of the recipe: the network, operations to train on a pack, lanes, seconds and tokens of a pack."""

    network: Network
    flops: float
    lanes: int
    seconds: float
    tokens: float

    @staticmethod
    def read() -> "Recipe":
        """Reads experiments/streamflow_sr.yaml."""
        given = OmegaConf.to_container(OmegaConf.load(RECIPE))
        assert isinstance(given, dict)
        model, data = given["model"], given["data"]
        spans = {name: tuple(each) if isinstance(each, list) else each for name, each in model["layout"].items()}
        dit, mel, speaker = DiTConfig(**model["dit"]), MelConfig(), SpeakerConfig(**model["speaker"])
        with torch.device("meta"):
            made = StreamFlow(Layout(**spans), dit, mel, MelScale(), speaker)
        weights, layers = (sum(p.numel() for p in each.parameters()) for each in (made, made.dit.layers))
        frames = data["pack_frames"]
        return Recipe(
            Network(weights, weights - layers, len(made.dit.layers)),
            3 * flops_per_frame(made.dit) * frames,
            data["lanes"],
            frames / mel.frame_rate,
            frames / dit.frames_per_token,
        )

    def load(self, gpu: Gpu, packs: float, utilisation: float) -> Load:
        """What a GPU computes in a step of so many packs; the backward pass is two thirds of it."""
        compute = packs * self.flops / (utilisation * gpu.peak)
        update, copy = (each * self.network.weights / gpu.memory for each in (UPDATE_BYTES, 2 * WIDTH))
        return Load(compute / 3, 2 * compute / 3, update, copy)


def check(found: dict[str, Any]) -> list[tuple[str, float, float, float]]:
    """Ways of `ranks.py`: seconds measured; predicted, computing and sending in turn; predicted, both at once."""
    size, latency = found["bytes"], found["tiny"][0] / 2
    rates = {name: found[name][0] for name in ("all_reduce", "all_gather", "reduce_scatter")}
    # Of two ranks a link carries half the bytes, or twice that to reduce.
    passes = {"all_reduce": 1.0, "all_gather": 0.5, "reduce_scatter": 0.5}
    ring = Ring(2, *(passes[name] * size[name] / seconds for name, seconds in rates.items()), latency)
    network, load = Network(found["weights"], found["root"], found["layers"]), Load(*found["alone"], *found["copy"])
    rows = []
    for scheme, predict in (("DDP", ddp), ("FSDP2", sharded)):
        turns, at_once = (predict(network, load, ring, overlap).seconds for overlap in (0.0, 1.0))
        rows.append((scheme, sum(found[scheme]), turns, at_once))
    return rows


HEAD = """# From one GPU to many

Computed by `benchmarks/scaling.py`; do not edit. **No GPU was measured**: this is arithmetic, by functions that
two processes of one machine checked (below).

The recipe is `experiments/streamflow_sr.yaml`: {weights:.0f} M weights, {root:.0f} M of them outside of layers
(most of them modulations); {lanes} packs of {seconds:g} s in a step, {flops:.1f} TFLOP each, speaker encoder
and mel not counted. Assumed: forward and backward pass at {utilisation:.0%} of the peak in bf16; {update} bytes
of memory traffic to update a weight; collectives at {share:.0%} of the links' figures and {latency:.0f} us a
message and hop; gradients and gathered weights in fp32; communication under computing wherever the order of
things allows it; loaders that keep up (`shards/CAPACITY.md`). Nodes of 8, as NVIDIA states them for DGX (SXM,
80 GB), links in one direction:

| | peak, TFLOP/s | memory, GB/s | NVLink, GB/s | network of a node, GB/s |
|---|---|---|---|---|
"""
STEP = """
## A step

*Memory* is updates and copies. *Waited* is communication that computing does not hide; its share is of the
step. FSDP2 shards over all GPUs; HSDP shards within a node and reduces across nodes. The fastest is bold.

| GPUs | way | step, ms | computing | memory | communication | waited | share | tokens/s | hours of speech/s | \
days for {hours:,} hours |
|---|---|---|---|---|---|---|---|---|---|---|
"""
PAYS = """
## Where it stops paying

The fastest way for each number. Up to {lanes} GPUs the step stays that of the recipe, and its packs are dealt
out; beyond, each GPU has one and the batch grows. *Efficiency* is the rate of a GPU over that of one alone.

| GPUs | packs each | {ways} |
|---|---|---|---|---|---|---|---|---|---|
"""
LIMIT = """
Waiting is more than {limit:.0%} of a step from so many GPUs on:

| network of a node | {ways} |
|---|---|---|---|---|---|---|
"""
CHECK = """
## The check

`benchmarks/ranks.py`: two processes over gloo, {weights:.0f} M weights; a process that sends nothing takes
{alone:.0f} ms a step. Here the cores that compute also carry the messages, so computing should hide nothing:
*in turn* is the prediction. *At once* is what it would be if all were hidden that can be, as it is in the
tables above; that much of the model is not checked here.

| way | measured, ms | predicted, in turn | error | predicted, at once |
|---|---|---|---|---|
"""
NETWORKS = (("as above", 1.0), ("half", 1 / 2), ("a quarter", 1 / 4), ("an eighth: one port", 1 / 8))


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |\n"


def page(found: dict[str, Any], args: argparse.Namespace) -> str:
    """Returns the page in Markdown."""
    recipe = Recipe.read()
    network, lanes = recipe.network, recipe.lanes
    gpus = [replace(each, network=1e9 * args.network) if args.network else each for each in (A100, H100)]

    def step(gpu: Gpu, scheme: str, count: int) -> Step:
        load = recipe.load(gpu, max(1.0, lanes / count), args.utilisation)
        return gpu.step(scheme, network, load, count, args.link_share, args.latency)

    def fastest(gpu: Gpu, count: int) -> str:
        return min(SCHEMES, key=lambda scheme: step(gpu, scheme, count).seconds)

    def rate(one: Step, count: int) -> float:
        return max(lanes, count) * recipe.seconds / one.seconds

    text = HEAD.format(
        **{"weights": network.weights / 1e6, "root": network.root / 1e6, "lanes": lanes, "seconds": recipe.seconds},
        **{"flops": recipe.flops / 1e12, "utilisation": args.utilisation, "update": UPDATE_BYTES},
        **{"share": args.link_share, "latency": 1e6 * args.latency},
    )
    for gpu in gpus:
        links = (f"{each / 1e9:,.0f}" for each in (gpu.memory, gpu.nvlink, gpu.network))
        text += row(gpu.name, f"{gpu.peak / 1e12:.0f}", *links)
    text += STEP.format(hours=HOURS)
    for gpu, count in zip(gpus, (16, 64), strict=True):
        for scheme in SCHEMES:
            one = step(gpu, scheme, count)
            speech = rate(one, count)
            times = (one.seconds, one.compute, one.memory, one.communication, one.waited)
            text += row(
                f"{count} {gpu.name}",
                f"**{scheme}**" if scheme == fastest(gpu, count) else scheme,
                *(f"{1000 * each:.1f}" for each in times),
                f"{one.share:.1%}",
                f"{speech / recipe.seconds * recipe.tokens:,.0f}",
                f"{speech / 3600:.2f}",
                f"{HOURS * 3600 / speech / 86400:.3f} ({HOURS * 3600 / speech / 3600:.1f} h)",
            )
    text += PAYS.format(
        lanes=lanes, ways=" | ".join(f"{gpu.name} | step, ms | waited | efficiency" for gpu in gpus)
    )
    for count in COUNTS:
        cells = []
        for gpu in gpus:
            one = step(gpu, fastest(gpu, count), count)
            efficiency = rate(one, count) / count / rate(step(gpu, "DDP", 1), 1)
            cells += [fastest(gpu, count), f"{1000 * one.seconds:.1f}", f"{one.share:.1%}", f"{efficiency:.0%}"]
        text += row(count, f"{max(1.0, lanes / count):g}", *cells)
    ways = [(gpu, scheme) for gpu in gpus for scheme in SCHEMES]
    text += LIMIT.format(limit=args.limit, ways=" | ".join(f"{gpu.name}, {scheme}" for gpu, scheme in ways))
    for name, part in NETWORKS:
        cells = []
        for gpu, scheme in ways:
            slower = replace(gpu, network=part * gpu.network)
            over = (count for count in COUNTS if step(slower, scheme, count).share > args.limit)
            cells.append(str(next(over, "never")))
        text += row(name, *cells)
    text += CHECK.format(weights=found["weights"] / 1e6, alone=1000 * sum(found["alone"]))
    for scheme, *seconds in check(found):
        measured, turns, at_once = (f"{1000 * each:.0f}" for each in seconds)
        text += row(scheme, measured, turns, f"{seconds[1] / seconds[0] - 1:+.1%}", at_once)
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=Path, required=True, help="JSON that ranks.py printed")
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak that training reaches")
    parser.add_argument("--link-share", type=float, default=0.8, help="share of a link's figure in a collective")
    parser.add_argument("--latency", type=float, default=20e-6, help="seconds of a message and hop")
    parser.add_argument("--network", type=float, help="GB/s of a node's network, one way; default: NVIDIA's figure")
    parser.add_argument("--limit", type=float, default=0.1, help="share of a step beyond which waiting is too much")
    args = parser.parse_args()
    found = json.loads(args.ranks.read_text())
    args.out.write_text(page(found, args))
    for scheme, measured, turns, _ in check(found):
        error = turns / measured - 1
        print(f"{scheme}: measured {1000 * measured:.0f} ms, predicted {1000 * turns:.0f} ms ({error:+.1%})")


if __name__ == "__main__":
    main()
