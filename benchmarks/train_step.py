"""The paper's network against its public sibling in transformers: the same weights, one process, one machine.

    python benchmarks/train_step.py [--json] [--quick]

Both are called as in training: speaker encoder, embeddings, network, and for a step also loss and backward. Ratios
are the sibling's time or memory over ours. How near a call comes to the peak of plain matrix products, measured in
the same run, counts only what is computed for each frame (`sf_lightning.model.flops`).
On a GPU the same table, and a step in bf16 with every layer compiled.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from transformers.models.qwen2_5_omni.configuration_qwen2_5_omni import Qwen2_5OmniDiTConfig
from transformers.models.qwen2_5_omni.modeling_qwen2_5_omni import Qwen2_5OmniToken2WavDiTModel

from sf_lightning.model.blocks import Blocks
from sf_lightning.model.flops import flops_per_frame
from sf_lightning.model.qwen import from_qwen
from sf_lightning.model.streamflow import StreamFlow

FRAME_RATE = 100
FORWARD, TRAIN, MEMORY = (9.6, 28.8, 60.0), (9.6, 28.8), 28.8
MEDIUM = (9.6,)
FLAT = (2.4, 9.6, 28.8, 60.0)

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_sibling() -> Any:
    """Its 333 M network with random weights that say something (fresh ones of either network are not zero here)."""
    torch.manual_seed(0)
    return Qwen2_5OmniToken2WavDiTModel(Qwen2_5OmniDiTConfig(attn_implementation="sdpa")).to(device).eval()


class Inputs:
    """One utterance of so many seconds, random, on the device."""

    def __init__(self, seconds: float) -> None:
        self.frames = round(seconds * FRAME_RATE)
        tokens = self.frames // 2
        random = torch.Generator().manual_seed(0)
        self.x = torch.randn(1, self.frames, 80, generator=random).to(device)
        self.reference = torch.randn(1, 200, 80, generator=random).to(device)
        self.x_vector = torch.randn(1, 192, generator=random).to(device)
        self.codes = torch.randint(0, 8193, (1, tokens), generator=random).to(device)
        self.t = torch.full((1,), 0.5, device=device)
        self.target = torch.randn(1, self.frames, 80, generator=random).to(device)


def sibling_forward(sibling: Any, given: Inputs) -> Tensor:
    spoken = given.x_vector[:, None].expand(-1, given.frames, -1)
    return sibling(given.x, given.reference, spoken, given.codes, given.t, apply_cfg=False)


def our_forward(model: StreamFlow, given: Inputs) -> Tensor:
    size = model.layout.block_size
    blocks = Blocks.from_lengths([given.frames], size).to(device)
    kept = torch.zeros(1, dtype=torch.bool, device=device)
    speaker = model.encoder(given.reference, given.x_vector)
    condition = model.condition(given.codes.view(-1, size // 2), speaker, blocks, kept, kept)
    return model.velocity(given.x.view(-1, size, 80), given.t, condition, blocks).view(1, -1, 80)


def step(network: torch.nn.Module, forward: Callable[[Any, Inputs], Tensor], given: Inputs) -> None:
    network.zero_grad()
    (forward(network, given).float() - given.target).square().mean().backward()


def seconds_of(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """The shortest time of each call, the calls taken in turn, so that a slow spell of the machine meets all."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, mine in zip(calls, times, strict=True):
            wait()
            start = time.perf_counter()
            call()
            wait()
            mine.append(time.perf_counter() - start)
    return [min(mine[1:]) for mine in times]


def wait() -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def gemm_peak(dtype: torch.dtype) -> float:
    """Floating point operations a second of the best of several plain products, at this matmul precision."""
    best, size = 0.0, 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    for _ in range(20):
        wait()
        start = time.perf_counter()
        a @ b
        wait()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def precision(dtype: torch.dtype) -> Any:
    return torch.autocast(device.type, dtype) if dtype != torch.float32 else nullcontext()


def peak_memory(which: str) -> float:
    """GiB that a training step of 28.8 s needs at its peak, weights and gradients included, in a fresh process."""
    say = [sys.executable, __file__, "--memory-of", which]
    return float(subprocess.run(say, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(which: str) -> None:
    torch.zeros(1, device=device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    network: torch.nn.Module = make_sibling()
    forward = sibling_forward
    if which != "sibling":
        network, forward = from_qwen(network.state_dict()).to(device), our_forward
        network.dit.recompute = which == "recomputed"
    step(network, forward, Inputs(MEMORY))
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**30)
    else:
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)


def compare(
    sibling: Any,
    model: StreamFlow,
    forward: Sequence[float],
    train: Sequence[float],
    repeats: int,
    console: Console,
) -> dict[str, float]:
    """Times both networks in fp32 at the current matmul precision, at lengths in seconds."""
    name = torch.get_float32_matmul_precision()
    results: dict[str, float] = {}
    table = Table("seconds of speech", "what", "sibling", "ours", "ratio", "largest difference")
    no_grad = torch.no_grad()
    for seconds in forward:
        given = Inputs(seconds)
        with no_grad:
            theirs, mine = sibling_forward(sibling, given), our_forward(model, given)
            difference = float((theirs - mine).abs().max() / theirs.abs().max())
            a, b = seconds_of(
                [lambda g=given: sibling_forward(sibling, g), lambda g=given: our_forward(model, g)], repeats
            )
        results[f"forward_{seconds:g}"] = a / b
        table.add_row(f"{seconds:g}", "forward", f"{a:.3f} s", f"{b:.3f} s", f"{a / b:.2f}", f"{difference:.1e}")
    for seconds in train:
        given = Inputs(seconds)
        a, b = seconds_of(
            [lambda g=given: step(sibling, sibling_forward, g), lambda g=given: step(model, our_forward, g)],
            repeats,
        )
        sibling.zero_grad(), model.zero_grad()
        results[f"train_{seconds:g}"] = a / b
        table.add_row(f"{seconds:g}", "training step", f"{a:.3f} s", f"{b:.3f} s", f"{a / b:.2f}", "")
    console.print(f"matmul precision {name!r}")
    console.print(table)
    return results


def shares(model: StreamFlow, repeats: int, console: Console) -> dict[str, float]:
    """How near ours comes to the peak, how flat its cost is, and what bf16 brings."""
    results: dict[str, float] = {}
    per_frame = flops_per_frame(model.dit)
    given = Inputs(28.8)
    peak = gemm_peak(torch.float32)

    def look(g: Inputs) -> Tensor:
        with torch.no_grad():
            return our_forward(model, g)

    def train(dtype: torch.dtype) -> None:
        with precision(dtype):
            step(model, our_forward, given)

    forward, fp32, bf16 = seconds_of(
        [lambda: look(given), lambda: train(torch.float32), lambda: train(torch.bfloat16)], repeats
    )
    peak = max(peak, gemm_peak(torch.float32))
    work = given.frames * per_frame
    results |= {
        "peak_share_forward": work / forward / peak,
        "peak_share_train": 3 * work / fp32 / peak,
        "bf16_gain": fp32 / bf16,
        "gemm_peak_gflops": peak / 1e9,
        "bf16_peak_share_train": 3 * work / bf16 / gemm_peak(torch.bfloat16),
    }
    lengths = [Inputs(seconds) for seconds in FLAT]
    costs = seconds_of([lambda g=g: look(g) for g in lengths], repeats)
    each = [1e6 * cost / g.frames for cost, g in zip(costs, lengths, strict=True)]
    results["flat"] = max(each) / min(each)
    console.print(
        f"peak of plain products {peak / 1e9:.0f} GFLOP/s in fp32; of it the forward pass reaches "
        f"{results['peak_share_forward']:.0%}, the training step {results['peak_share_train']:.0%}; a bf16 step is "
        f"{results['bf16_gain']:.2f} x as fast ({results['bf16_peak_share_train']:.0%} of the bf16 peak)"
    )
    line = ", ".join(f"{cost:.0f} us at {seconds:g} s" for cost, seconds in zip(each, FLAT, strict=True))
    console.print(f"forward pass per frame: {line}; largest over smallest {results['flat']:.3f}")
    return results


def switches(model: StreamFlow, repeats: int, console: Console) -> dict[str, float]:
    """What recomputation costs a step, what compiled layers and a fused optimizer save."""
    given = Inputs(9.6)

    def train(recompute: bool = False) -> None:
        model.dit.recompute = recompute
        step(model, our_forward, given)

    plain, recomputed = seconds_of([train, lambda: train(recompute=True)], repeats)
    model.dit.recompute = False
    train()
    parameters = list(model.parameters())
    updates = []
    for fused in (False, True):
        optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=fused)
        updates += seconds_of([optimizer.step], repeats)
        del optimizer
    for layer in model.dit.layers:
        layer.compile()
    (compiled,) = seconds_of([train], repeats)
    results = {
        "recompute_cost": recomputed / plain,
        "fused_gain": updates[0] / updates[1],
        "compile_gain": plain / compiled,
    }
    console.print(
        f"a step of 9.6 s: {plain:.2f} s, recomputed {recomputed:.2f} s, compiled {compiled:.2f} s; AdamW's update "
        f"{1000 * updates[0]:.0f} ms, fused {1000 * updates[1]:.0f} ms"
    )
    return results


def mfu(model: StreamFlow, repeats: int, console: Console) -> dict[str, float]:
    """MFU of a training step in bf16 with its layers compiled: useful operations over the nominal peak."""
    from lightning.fabric.utilities.throughput import get_available_flops

    results: dict[str, float] = {}
    for seconds in (28.8, 240.0):
        given = Inputs(seconds)

        def train(given: Inputs = given) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                step(model, our_forward, given)

        (cost,) = seconds_of([train], repeats)
        work = 3 * given.frames * flops_per_frame(model.dit)
        nominal = get_available_flops(device, torch.bfloat16) or float("nan")
        results[f"mfu_{seconds:g}"] = work / cost / nominal
        console.print(
            f"compiled bf16 step of {seconds:g} s: {1000 * cost:.1f} ms, {work / cost / 1e12:.0f} TFLOP/s, "
            f"MFU {work / cost / nominal:.1%}, {work / cost / gemm_peak(torch.bfloat16):.1%} of plain products"
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="runs of which the fastest counts")
    parser.add_argument(
        "--forward", type=float, nargs="*", default=FORWARD, help="seconds of speech, forward passes"
    )
    parser.add_argument("--train", type=float, nargs="*", default=TRAIN, help="seconds of speech, training steps")
    parser.add_argument("--quick", action="store_true", help="leave out 'medium' precision")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--memory-of", choices=["sibling", "ours", "recomputed"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    if args.memory_of:
        measure_memory(args.memory_of)
        return
    console = Console(width=118)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    console.print(f"{name}, torch {torch.__version__}, fp32 unless said otherwise")
    # Before this process holds anything: the sibling's step needs most of 24 GiB.
    theirs, mine, least = (peak_memory(which) for which in ("sibling", "ours", "recomputed"))
    results = {f"memory_{MEMORY:g}": theirs / mine, "recompute_memory": least / mine}
    console.print(
        f"peak memory of a step of {MEMORY:g} s: {theirs:.1f} GiB there, {mine:.1f} here, {theirs / mine:.2f}; "
        f"{least:.1f} GiB recomputed"
    )
    sibling = make_sibling()
    model = from_qwen(sibling.state_dict()).to(device)
    results |= compare(sibling, model, args.forward, args.train, args.repeats, console)
    results |= shares(model, args.repeats, console)
    if not args.quick:
        torch.set_float32_matmul_precision("medium")
        medium = compare(sibling, model, MEDIUM, MEDIUM, args.repeats, console)
        results |= {f"medium_{name}": value for name, value in medium.items()}
        torch.set_float32_matmul_precision("highest")
    del sibling
    results |= switches(model, args.repeats, console)
    if device.type == "cuda":
        results |= mfu(model, args.repeats, console)
    if args.json:
        print(json.dumps({name: round(value, 4) for name, value in results.items()}))


if __name__ == "__main__":
    main()
