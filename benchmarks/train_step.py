"""Speed and memory of the paper's network and of Qwen2.5-Omni token2wav in transformers, with the same weights.

    python benchmarks/train_step.py [--json] [--quick]

Both run as in training: speaker encoder, embeddings, network and, in a step, loss and backward pass. Ratios are
token2wav's time or memory divided by ours. Shares of the peak are relative to large matrix products measured in the
same run, and count only the operations done for each frame (`sf_lightning.model.flops`). On a GPU, a bf16 step with
compiled layers is measured too.
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


def make_token2wav() -> Any:
    """Returns its network of 333 M parameters with random weights (its initialization leaves none at zero)."""
    torch.manual_seed(0)
    return Qwen2_5OmniToken2WavDiTModel(Qwen2_5OmniDiTConfig(attn_implementation="sdpa")).to(device).eval()


class Inputs:
    """Random inputs of one utterance of some seconds, on the device."""

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


def token2wav_forward(token2wav: Any, inputs: Inputs) -> Tensor:
    speaker = inputs.x_vector[:, None].expand(-1, inputs.frames, -1)
    return token2wav(inputs.x, inputs.reference, speaker, inputs.codes, inputs.t, apply_cfg=False)


def our_forward(model: StreamFlow, inputs: Inputs) -> Tensor:
    size = model.layout.block_size
    blocks = Blocks.from_lengths([inputs.frames], size).to(device)
    kept = torch.zeros(1, dtype=torch.bool, device=device)
    speaker = model.encoder(inputs.reference, inputs.x_vector)
    condition = model.condition(inputs.codes.view(-1, size // 2), speaker, blocks, kept, kept)
    return model.velocity(inputs.x.view(-1, size, 80), inputs.t, condition, blocks).view(1, -1, 80)


def step(network: torch.nn.Module, forward: Callable[[Any, Inputs], Tensor], inputs: Inputs) -> None:
    network.zero_grad()
    (forward(network, inputs).float() - inputs.target).square().mean().backward()


def best_seconds(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """Returns the shortest time of each call; the calls alternate, so that a slow machine affects all of them."""
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats + 1):
        for call, call_times in zip(calls, times, strict=True):
            wait()
            start = time.perf_counter()
            call()
            wait()
            call_times.append(time.perf_counter() - start)
    return [min(call_times[1:]) for call_times in times]


def wait() -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def gemm_peak(dtype: torch.dtype) -> float:
    """Returns the FLOP/s of the fastest of several large matrix products at the current matmul precision."""
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
    """Returns the peak GiB of a training step of 28.8 s in a new process, including weights and gradients."""
    command = [sys.executable, __file__, "--memory-of", which]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def measure_memory(which: str) -> None:
    torch.zeros(1, device=device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    network: torch.nn.Module = make_token2wav()
    forward = token2wav_forward
    if which != "token2wav":
        network, forward = from_qwen(network.state_dict()).to(device), our_forward
        network.dit.recompute = which == "recomputed"
    step(network, forward, Inputs(MEMORY))
    if device.type == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**30)
    else:
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20)


def compare(
    token2wav: Any,
    model: StreamFlow,
    forward: Sequence[float],
    train: Sequence[float],
    repeats: int,
    console: Console,
) -> dict[str, float]:
    """Measures both networks in fp32 at the current matmul precision, for lengths in seconds."""
    name = torch.get_float32_matmul_precision()
    results: dict[str, float] = {}
    table = Table("seconds of speech", "operation", "token2wav", "ours", "ratio", "largest difference")
    no_grad = torch.no_grad()
    for seconds in forward:
        inputs = Inputs(seconds)
        with no_grad:
            theirs, mine = token2wav_forward(token2wav, inputs), our_forward(model, inputs)
            difference = float((theirs - mine).abs().max() / theirs.abs().max())
            a, b = best_seconds(
                [lambda g=inputs: token2wav_forward(token2wav, g), lambda g=inputs: our_forward(model, g)], repeats
            )
        results[f"forward_{seconds:g}"] = a / b
        table.add_row(f"{seconds:g}", "forward", f"{a:.3f} s", f"{b:.3f} s", f"{a / b:.2f}", f"{difference:.1e}")
    for seconds in train:
        inputs = Inputs(seconds)
        a, b = best_seconds(
            [lambda g=inputs: step(token2wav, token2wav_forward, g), lambda g=inputs: step(model, our_forward, g)],
            repeats,
        )
        token2wav.zero_grad(), model.zero_grad()
        results[f"train_{seconds:g}"] = a / b
        table.add_row(f"{seconds:g}", "training step", f"{a:.3f} s", f"{b:.3f} s", f"{a / b:.2f}", "")
    console.print(f"matmul precision {name!r}")
    console.print(table)
    return results


def measure_shares(model: StreamFlow, repeats: int, console: Console) -> dict[str, float]:
    """Measures our share of the peak, the cost per frame at several lengths, and the gain of bf16."""
    results: dict[str, float] = {}
    per_frame = flops_per_frame(model.dit)
    inputs = Inputs(28.8)
    peak = gemm_peak(torch.float32)

    def forward_only(g: Inputs) -> Tensor:
        with torch.no_grad():
            return our_forward(model, g)

    def train(dtype: torch.dtype) -> None:
        with precision(dtype):
            step(model, our_forward, inputs)

    forward, fp32, bf16 = best_seconds(
        [lambda: forward_only(inputs), lambda: train(torch.float32), lambda: train(torch.bfloat16)], repeats
    )
    peak = max(peak, gemm_peak(torch.float32))
    work = inputs.frames * per_frame
    results |= {
        "peak_share_forward": work / forward / peak,
        "peak_share_train": 3 * work / fp32 / peak,
        "bf16_gain": fp32 / bf16,
        "gemm_peak_gflops": peak / 1e9,
        "bf16_peak_share_train": 3 * work / bf16 / gemm_peak(torch.bfloat16),
    }
    lengths = [Inputs(seconds) for seconds in FLAT]
    costs = best_seconds([lambda g=g: forward_only(g) for g in lengths], repeats)
    per_frame_us = [1e6 * cost / g.frames for cost, g in zip(costs, lengths, strict=True)]
    results["flat"] = max(per_frame_us) / min(per_frame_us)
    console.print(
        f"peak of matrix products {peak / 1e9:.0f} GFLOP/s in fp32; the forward pass reaches "
        f"{results['peak_share_forward']:.0%}, the training step {results['peak_share_train']:.0%}; a bf16 step is "
        f"{results['bf16_gain']:.2f} x as fast ({results['bf16_peak_share_train']:.0%} of the bf16 peak)"
    )
    line = ", ".join(f"{cost:.0f} us at {seconds:g} s" for cost, seconds in zip(per_frame_us, FLAT, strict=True))
    console.print(f"forward pass per frame: {line}; largest over smallest {results['flat']:.3f}")
    return results


def measure_options(model: StreamFlow, repeats: int, console: Console) -> dict[str, float]:
    """Measures recomputation, compiled layers and a fused optimizer in a training step."""
    inputs = Inputs(9.6)

    def train(recompute: bool = False) -> None:
        model.dit.recompute = recompute
        step(model, our_forward, inputs)

    plain, recomputed = best_seconds([train, lambda: train(recompute=True)], repeats)
    model.dit.recompute = False
    train()
    parameters = list(model.parameters())
    updates = []
    for fused in (False, True):
        optimizer = torch.optim.AdamW(parameters, lr=1e-6, fused=fused)
        updates += best_seconds([optimizer.step], repeats)
        del optimizer
    for layer in model.dit.layers:
        layer.compile()
    (compiled,) = best_seconds([train], repeats)
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
    """Measures the MFU of a bf16 step with compiled layers: useful operations divided by the nominal peak."""
    from lightning.fabric.utilities.throughput import get_available_flops

    results: dict[str, float] = {}
    for seconds in (28.8, 240.0):
        inputs = Inputs(seconds)

        def train(inputs: Inputs = inputs) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                step(model, our_forward, inputs)

        (cost,) = best_seconds([train], repeats)
        work = 3 * inputs.frames * flops_per_frame(model.dit)
        nominal = get_available_flops(device, torch.bfloat16) or float("nan")
        results[f"mfu_{seconds:g}"] = work / cost / nominal
        console.print(
            f"compiled bf16 step of {seconds:g} s: {1000 * cost:.1f} ms, {work / cost / 1e12:.0f} TFLOP/s, "
            f"MFU {work / cost / nominal:.1%}, {work / cost / gemm_peak(torch.bfloat16):.1%} of matrix products"
        )
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3, help="number of runs; the fastest counts")
    parser.add_argument(
        "--forward", type=float, nargs="*", default=FORWARD, help="seconds of speech, forward passes"
    )
    parser.add_argument("--train", type=float, nargs="*", default=TRAIN, help="seconds of speech, training steps")
    parser.add_argument("--quick", action="store_true", help="skip matmul precision 'medium'")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    parser.add_argument("--memory-of", choices=["token2wav", "ours", "recomputed"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    if args.memory_of:
        measure_memory(args.memory_of)
        return
    console = Console(width=118)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    console.print(f"{name}, torch {torch.__version__}, fp32 unless stated otherwise")
    # First, while this process is small: token2wav's step needs most of 24 GiB.
    theirs, mine, least = (peak_memory(which) for which in ("token2wav", "ours", "recomputed"))
    results = {f"memory_{MEMORY:g}": theirs / mine, "recompute_memory": least / mine}
    console.print(
        f"peak memory of a step of {MEMORY:g} s: token2wav {theirs:.1f} GiB, ours {mine:.1f}, "
        f"ratio {theirs / mine:.2f}; ours with recomputation {least:.1f} GiB"
    )
    token2wav = make_token2wav()
    model = from_qwen(token2wav.state_dict()).to(device)
    results |= compare(token2wav, model, args.forward, args.train, args.repeats, console)
    results |= measure_shares(model, args.repeats, console)
    if not args.quick:
        torch.set_float32_matmul_precision("medium")
        medium = compare(token2wav, model, MEDIUM, MEDIUM, args.repeats, console)
        results |= {f"medium_{name}": value for name, value in medium.items()}
        torch.set_float32_matmul_precision("highest")
    del token2wav
    results |= measure_options(model, args.repeats, console)
    if device.type == "cuda":
        results |= mfu(model, args.repeats, console)
    if args.json:
        print(json.dumps({name: round(value, 4) for name, value in results.items()}))


if __name__ == "__main__":
    main()
