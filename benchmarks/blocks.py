"""Speed of attention on blocks compared with dense masks, for the same network and weights.

    python benchmarks/blocks.py [--width 192] [--layers 8] [--json]

Prints the time of a forward pass and of a training step at several lengths in both modes, in one process and at one
matmul precision, and the difference of the outputs. Ratios are dense divided by blocks: above 1, blocks are faster.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from unittest.mock import patch

import torch
from rich.console import Console
from rich.table import Table

from sf_lightning.model.attention import BlockAttention, dense_mask
from sf_lightning.model.blocks import Blocks
from sf_lightning.model.dit import DiT, DiTConfig
from sf_lightning.model.layout import Layout


@contextmanager
def dense_masks() -> Iterator[None]:
    """Makes layers with bounded spans use dense masks, as those with unbounded spans do."""
    with (
        patch.object(BlockAttention, "_attend_on_blocks", lambda self, *args: self._attend_dense(*args[:4])),
        patch("sf_lightning.model.attention.block_mask", lambda *given: dense_mask(*given[:3])),
    ):
        yield


def best_seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Returns the shortest time of several calls, after a warm-up call."""
    times = []
    for _ in range(repeats + 1):
        if device.type == "cuda":
            torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=192, help="width of the network (the paper's is 1024)")
    parser.add_argument("--layers", type=int, default=8, help="layers of the network (the paper's is 22)")
    parser.add_argument("--seconds", type=float, nargs="+", default=[2.4, 9.6, 28.8], help="seconds of speech")
    parser.add_argument("--repeats", type=int, default=5, help="number of runs; the fastest counts")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = DiTConfig(width=args.width, num_heads=args.width // 64, token_width=args.width)
    layout = Layout(num_layers=args.layers, drawn_for=22)
    dit = DiT(config, layout).to(device)
    with torch.no_grad():
        for parameter in dit.parameters():
            parameter.normal_(std=0.05)  # untrained gates are zero, so every output would be zero
    results: dict[str, float] = {}
    table = Table("seconds", "forward, blocks", "dense", "ratio", "step, blocks", "dense", "ratio", "difference")
    for seconds in args.seconds:
        blocks = Blocks.from_lengths([round(100 * seconds)], layout.block_size).to(device)
        x = torch.randn(len(blocks), layout.block_size, config.num_bands, device=device)
        condition = torch.randn(len(blocks), layout.block_size, config.width, device=device)
        t = torch.full((1,), 0.5, device=device)

        def forward(x: torch.Tensor = x, t: torch.Tensor = t, c: torch.Tensor = condition, b: Blocks = blocks):
            return dit(x, t, c, b)

        @torch.no_grad()
        def forward_only(forward: Callable = forward) -> torch.Tensor:
            return forward()

        def step(forward: Callable = forward) -> None:
            dit.zero_grad()
            forward().square().mean().backward()

        times, outputs = [], []
        for mode in (nullcontext, dense_masks):
            with mode():
                outputs.append(forward_only())
                times.append(
                    (best_seconds(forward_only, device, args.repeats), best_seconds(step, device, args.repeats))
                )
        (forward_near, step_near), (forward_dense, step_dense) = times
        difference = float((outputs[0] - outputs[1])[blocks.valid].abs().max())
        results |= {
            f"forward_{seconds:g}": forward_dense / forward_near,
            f"step_{seconds:g}": step_dense / step_near,
            f"difference_{seconds:g}": difference,
        }
        table.add_row(
            f"{seconds:g}",
            *(
                f"{1000 * forward_near:.1f} ms",
                f"{1000 * forward_dense:.1f} ms",
                f"{forward_dense / forward_near:.2f}",
            ),
            *(f"{1000 * step_near:.1f} ms", f"{1000 * step_dense:.1f} ms", f"{step_dense / step_near:.2f}"),
            f"{difference:.1e}",
        )
    console = Console(width=110)
    console.print(f"{device.type}, fp32, matmul precision {torch.get_float32_matmul_precision()!r}")
    console.print(table)
    if args.json:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
