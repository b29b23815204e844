"""Computes the cores, disks and GPUs that 100,000 hours require, from measured rates: writes shards/CAPACITY.md.

    python benchmarks/loader.py --audio FOLDER --json | tail -n 1 > loader.json
    python benchmarks/capacity.py --loader loader.json --out shards/CAPACITY.md

The training speed is computed from the network's operations and a share of the GPU's peak; all else is measured,
or a figure of the corpus.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import torch

from sf_lightning.model.dit import DiT, DiTConfig
from sf_lightning.model.flops import flops_per_frame
from sf_lightning.model.layout import Layout

HOURS = 100_000
A100_PEAK = 312e12
"""Operations per second in bf16, from NVIDIA."""
SECONDS_PER_TAR, BYTES_PER_TAR = 69.4 * 3600, 1.9e9
"""Seconds and bytes of a tar of Emilia, mp3 at 24 kHz, as published by others."""
EMILIA = "mp3, 24 kHz (Emilia)"
BYTES_PER_SECOND = {EMILIA: BYTES_PER_TAR / SECONDS_PER_TAR, "wav, 16 kHz": 32_000.0}
FRAMES_PER_SECOND = 100
CLIP_SECONDS = 10.0
LANES, GROUP = 64, 4
"""Lanes of a run on 16 GPUs, and shards of a group."""


@dataclass(frozen=True)
class Cluster:
    """GPUs of a training run."""

    name: str
    gpus: int


def training_rate(utilization: float) -> float:
    """Returns the seconds of audio per second on which one A100 trains the paper's network."""
    with torch.device("meta"):
        dit = DiT(DiTConfig(), Layout(22, 24, (0, 20), (10,)))
    return utilization * A100_PEAK / (3 * flops_per_frame(dit) * FRAMES_PER_SECOND)


def page(rates: dict[str, float], utilization: float, flac_bytes: float, tokenize: float) -> str:
    """Returns the page in Markdown."""
    formats = BYTES_PER_SECOND | {"flac, 16 kHz": flac_bytes}
    gpu_rate, seconds = training_rate(utilization), HOURS * 3600
    lines = [
        "# Capacity for 100,000 hours",
        "",
        "How many loader cores, which disk bandwidth and how much space a training run on 100,000 hours requires. "
        "`benchmarks/capacity.py` writes this page from the rates that `benchmarks/loader.py` measures; do not "
        "edit it.",
        "",
        f"One loader core makes packs of {rates['rate_mp3']:.0f} seconds of audio per second from mp3 and of "
        f"{rates['rate_flac']:.0f} from flac at 16 kHz (decoded, packed, with reference crops), and of "
        f"{rates['rate_mp3_24k']:.0f} from Emilia's mp3 at 24 kHz, which is resampled. One A100 at "
        f"{utilization:.0%} of its 312 TFLOP/s trains the network of 333 M parameters on {gpu_rate:.0f} seconds of "
        "audio per second (computed).",
        "",
        "| | 16 A100s | 64 A100s |",
        "|---|---|---|",
    ]

    def row(name: str, values: list[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(values) + " |")

    clusters = (Cluster("16 A100s", 16), Cluster("64 A100s", 64))
    speeds = [cluster.gpus * gpu_rate for cluster in clusters]
    row("seconds of audio per second", [f"{speed:,.0f}" for speed in speeds])
    row("epoch of 100,000 hours", [f"{seconds / speed / 3600:.1f} h" for speed in speeds])
    for name, rate in (("mp3 at 24 kHz", "rate_mp3_24k"), ("flac at 16 kHz", "rate_flac")):
        row(f"loader cores, {name}", [f"{speed / rates[rate]:.1f}" for speed in speeds])
    for name, size in formats.items():
        row(f"read bandwidth, {name}", [f"{speed * size / 1e6:.0f} MB/s" for speed in speeds])
    lines += ["", "| format of 100,000 hours | TB |", "|---|---|"]
    lines += [f"| {name} | {seconds * size / 1e12:.1f} |" for name, size in formats.items()]
    clips, decode = seconds / CLIP_SECONDS, seconds / rates["rate_mp3_24k"] / 3600
    shard = 1000 * CLIP_SECONDS * formats[EMILIA]
    burst = (GROUP + 1) / GROUP * speeds[0] * formats[EMILIA]
    group, first = GROUP * shard, LANES * shard * (GROUP + 1) / 2  # first groups have 1 to GROUP shards
    least = min(rates["rate_mp3_24k"], rates["rate_flac"]) / gpu_rate
    verdict = "the GPUs wait for the loader" if least < 1 else "the loader is not the bottleneck"
    lines += [
        "",
        f"Clips of {CLIP_SECONDS:g} s give {clips / 1e6:.0f} million samples, or {clips / 1000:,.0f} shards of "
        f"1,000 samples and {shard / 1e6:.0f} MB. The build decodes everything once, in {decode:,.0f} core hours. "
        f"Tokens take {seconds / tokenize / 3600:,.0f} GPU hours, or {seconds / tokenize / 3600 / 64:.1f} h in 64 "
        f"jobs, at {tokenize:,.0f} times real time (assumed: `sf-shards build` shows your rate, and `--tokenize` "
        "sets it here).",
        "",
        f"The first bottleneck: one loader core supplies {rates['rate_mp3_24k'] / gpu_rate:.1f} A100s from mp3 and "
        f"{rates['rate_flac'] / gpu_rate:.1f} from flac, so that with one core per GPU {verdict}. Next is the "
        f"shared disk, which must deliver {speeds[0] * formats[EMILIA] / 1e6:.0f} MB/s to 16 GPUs on average, in "
        "sequential reads of whole shards.",
        "",
        f"Bursts (computed, for {LANES} lanes on 16 GPUs): lanes read the shards of their next group in a thread, "
        f"at times that differ from lane to lane, within {GROUP} of {GROUP + 1} parts of the time that a group "
        f"lasts: the disk must deliver {burst / 1e6:.0f} MB/s, so that no lane "
        "waits. A start or resume is the exception: the first step requires the first group of every lane, "
        f"{first / 1e9:.1f} GB in all ({LANES * group / 1e9:.1f} GB for a resume), read as fast as the disk "
        f"allows: at 1 GB/s, {first / 1e9:.0f} s.",
        "",
        f"A group of four shards is {group / 1e6:.0f} MB. A lane holds at most "
        f"{(1 + 2 / (GROUP + 1)) * group / 1e6:.0f} MB, as samples are dropped when they are drawn while the next "
        f"group is read; after a resume within a group, up to {2 * group / 1e6:.0f} MB until it ends.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loader", type=Path, required=True, help="JSON file with the output of loader.py")
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    parser.add_argument(
        "--utilization", type=float, default=0.4, help="share of the GPU's peak that training reaches"
    )
    parser.add_argument(
        "--tokenize",
        type=float,
        default=500.0,
        help="speed of the tokenizer on a GPU, in seconds of audio per second",
    )
    args = parser.parse_args()
    rates = json.loads(args.loader.read_text())
    args.out.write_text(page(rates, args.utilization, rates["flac_bytes_per_second"], args.tokenize))


if __name__ == "__main__":
    main()
