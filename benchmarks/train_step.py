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
from functools import partial
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
FORWARD, TRAIN, MEDIUM, FLAT, MEMORY = (9.6, 28.8, 60.0), (9.6, 28.8), (9.6,), (2.4, 9.6, 28.8, 60.0), 28.8
"""Seconds of speech: forward passes, training steps, precision "medium", time per frame, peak memory."""

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_token2wav() -> Any:
    """Returns token2wav's network (333 M parameters) with random weights; none is initialized to zero."""
    torch.manual_seed(0)
    return Qwen2_5OmniToken2WavDiTModel(Qwen2_5OmniDiTConfig(attn_implementation="sdpa")).to(device).eval()


class Inputs:
    """Random inputs of one utterance of `seconds`, on the device."""

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
    """Returns the velocity that token2wav predicts."""
    speaker = inputs.x_vector[:, None].expand(-1, inputs.frames, -1)
    return token2wav(inputs.x, inputs.reference, speaker, inputs.codes, inputs.t, apply_cfg=False)


def our_forward(model: StreamFlow, inputs: Inputs) -> Tensor:
    """Returns the velocity that our network predicts."""
    size = model.layout.block_size
    blocks = Blocks.from_lengths([inputs.frames], size).to(device)
    kept = torch.zeros(1, dtype=torch.bool, device=device)
    speaker = model.encoder(inputs.reference, inputs.x_vector)
    condition = model.condition(inputs.codes.view(-1, size // 2), speaker, blocks, kept, kept)
    return model.velocity(inputs.x.view(-1, size, 80), inputs.t, condition, blocks).view(1, -1, 80)


def step(network: torch.nn.Module, forward: Callable[[Any, Inputs], Tensor], inputs: Inputs) -> None:
    """Computes loss and gradients of a training step."""
    network.zero_grad()
    (forward(network, inputs).float() - inputs.target).square().mean().backward()


def best_seconds(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """Returns the shortest time of each call; the calls alternate, so that a slow machine affects all of them."""
    rounds = [[call_seconds(call) for call in calls] for _ in range(repeats + 1)]
    return [min(times) for times in zip(*rounds[1:], strict=True)]


def call_seconds(call: Callable[[], object]) -> float:
    """Returns the duration of a call, including what it left running on the GPU."""
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def wait() -> None:
    """Waits until the GPU is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def gemm_peak(dtype: torch.dtype) -> float:
    """Returns the FLOP/s of the fastest of several large matrix products at the current matmul precision."""
    size = 8192 if device.type == "cuda" else 2048
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return 2 * size**3 / min(call_seconds(lambda: a @ b) for _ in range(20))


def our_step(model: StreamFlow, inputs: Inputs, dtype: torch.dtype) -> None:
    """Computes loss and gradients of our network, with autocast to `dtype` unless it is fp32."""
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        step(model, our_forward, inputs)


def peak_memory(network: str) -> float:
    """Returns the peak GiB of a training step of 28.8 s in a new process, including weights and gradients."""
    command = [sys.executable, __file__, "--memory-of", network]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak_memory(name: str) -> None:
    """Prints the peak GiB of a training step in this process."""
    torch.zeros(1, device=device)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    network: torch.nn.Module = make_token2wav()
    forward = token2wav_forward
    if name != "token2wav":
        network, forward = from_qwen(network.state_dict()).to(device), our_forward
        network.dit.recompute = name == "recomputed"
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
    networks = ((token2wav, token2wav_forward), (model, our_forward))
    for seconds in forward:
        inputs = Inputs(seconds)
        with torch.no_grad():
            theirs, ours = (function(network, inputs) for network, function in networks)
            difference = float((theirs - ours).abs().max() / theirs.abs().max())
            a, b = best_seconds([partial(function, network, inputs) for network, function in networks], repeats)
        results[f"forward_{seconds:g}"] = a / b
        table.add_row(f"{seconds:g}", "forward", f"{a:.3f} s", f"{b:.3f} s", f"{a / b:.2f}", f"{difference:.1e}")
    for seconds in train:
        inputs = Inputs(seconds)
        a, b = best_seconds([partial(step, network, function, inputs) for network, function in networks], repeats)
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

    @torch.no_grad()
    def forward_only(inputs: Inputs) -> Tensor:
        return our_forward(model, inputs)

    steps = [partial(our_step, model, inputs, dtype) for dtype in (torch.float32, torch.bfloat16)]
    forward, fp32, bf16 = best_seconds([partial(forward_only, inputs), *steps], repeats)
    peak = max(peak, gemm_peak(torch.float32))
    operations = inputs.frames * per_frame
    results |= {
        "peak_share_forward": operations / forward / peak,
        "peak_share_train": 3 * operations / fp32 / peak,
        "bf16_gain": fp32 / bf16,
        "gemm_peak_gflops": peak / 1e9,
        "bf16_peak_share_train": 3 * operations / bf16 / gemm_peak(torch.bfloat16),
    }
    lengths = [Inputs(seconds) for seconds in FLAT]
    costs = best_seconds([partial(forward_only, inputs) for inputs in lengths], repeats)
    per_frame_us = [1e6 * cost / inputs.frames for cost, inputs in zip(costs, lengths, strict=True)]
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
        (cost,) = best_seconds([partial(our_step, model, inputs, torch.bfloat16)], repeats)
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
    parser.add_argument("--repeats", type=int, default=3, help="number of measurements; the fastest counts")
    parser.add_argument("--forward", type=float, nargs="*", default=FORWARD, help="seconds of each forward pass")
    parser.add_argument("--train", type=float, nargs="*", default=TRAIN, help="seconds of each training step")
    parser.add_argument("--quick", action="store_true", help="skip matmul precision 'medium'")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    parser.add_argument("--memory-of", choices=["token2wav", "ours", "recomputed"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_float32_matmul_precision("highest")
    if args.memory_of:
        print_peak_memory(args.memory_of)
        return
    console = Console(width=118)
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"{os.cpu_count()} CPU cores"
    console.print(f"{name}, torch {torch.__version__}, fp32 unless stated otherwise")
    # Memory comes first, while this process is small: token2wav's step needs most of 24 GiB.
    theirs, ours, least = map(peak_memory, ("token2wav", "ours", "recomputed"))
    results = {f"memory_{MEMORY:g}": theirs / ours, "recompute_memory": least / ours}
    console.print(
        f"peak memory of a step of {MEMORY:g} s: token2wav {theirs:.1f} GiB, ours {ours:.1f}, "
        f"ratio {theirs / ours:.2f}; ours with recomputation {least:.1f} GiB"
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
