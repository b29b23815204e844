"""What 100,000 hours ask of a cluster, from measured rates: writes shards/CAPACITY.md.

    python benchmarks/loader.py --audio FOLDER --json | tail -n 1 > loader.json
    python benchmarks/capacity.py --loader loader.json --out shards/CAPACITY.md

The network's speed is its arithmetic over a GPU's peak at a stated utilisation; everything else is measured or the
corpus's own figures.
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
"""Operations a second in bf16, NVIDIA's figure."""
SECONDS_PER_TAR, BYTES_PER_TAR = 69.4 * 3600, 1.9e9
"""Of a tar of Emilia, mp3 at 24 kHz, measured by others."""
EMILIA = "mp3, 24 kHz (as Emilia is)"
BYTES_PER_SECOND = {EMILIA: BYTES_PER_TAR / SECONDS_PER_TAR, "wav, 16 kHz": 32_000.0}
FRAMES_PER_SECOND = 100
CLIP_SECONDS = 10.0


@dataclass(frozen=True)
class Cluster:
    """GPUs that train."""

    name: str
    gpus: int


def training_rate(utilisation: float) -> float:
    """Audio seconds a second of one A100 that trains the paper's network."""
    with torch.device("meta"):
        dit = DiT(DiTConfig(), Layout(22, 24, (0, 20), (10,)))
    return utilisation * A100_PEAK / (3 * flops_per_frame(dit) * FRAMES_PER_SECOND)


def page(rates: dict[str, float], utilisation: float, flac_bytes: float, tokenize: float) -> str:
    """Returns the page in Markdown."""
    formats = BYTES_PER_SECOND | {"flac, 16 kHz": flac_bytes}
    each, seconds = training_rate(utilisation), HOURS * 3600
    lines = [
        "# What 100,000 hours ask for",
        "",
        "Computed by `benchmarks/capacity.py` from `benchmarks/loader.py`; do not edit. Measured, on one core: "
        f"{rates['rate_mp3']:.0f} audio seconds a second from mp3 and {rates['rate_flac']:.0f} from flac (16 kHz, "
        "decoded, cut, packed, with a reference crop for each piece). Emilia's mp3 is at 24 kHz and is "
        f"resampled too: {rates['rate_mp3_24k']:.0f}. Arithmetic: one A100 at {utilisation:.0%} of its 312 TFLOP/s "
        f"trains the network of 333 M on {each:.0f} audio seconds a second.",
        "",
        "| | 16 A100s | 64 A100s |",
        "|---|---|---|",
    ]

    def row(name: str, values: list[str]) -> None:
        lines.append(f"| {name} | " + " | ".join(values) + " |")

    clusters = (Cluster("16 A100s", 16), Cluster("64 A100s", 64))
    speeds = [cluster.gpus * each for cluster in clusters]
    row("audio seconds a second", [f"{speed:,.0f}" for speed in speeds])
    row("an epoch of 100,000 hours", [f"{seconds / speed / 3600:.1f} h" for speed in speeds])
    for name, rate in (("mp3 at 24 kHz", "rate_mp3_24k"), ("flac at 16 kHz", "rate_flac")):
        row(f"loader cores, {name}", [f"{speed / rates[rate]:.1f}" for speed in speeds])
    for name, size in formats.items():
        row(f"read bandwidth, {name}", [f"{speed * size / 1e6:.0f} MB/s" for speed in speeds])
    lines += ["", "| 100,000 hours as | TB |", "|---|---|"]
    lines += [f"| {name} | {seconds * size / 1e12:.1f} |" for name, size in formats.items()]
    clips, decode = seconds / CLIP_SECONDS, seconds / rates["rate_mp3_24k"] / 3600
    shard = 1000 * CLIP_SECONDS * formats[EMILIA]
    least = min(rates["rate_mp3_24k"], rates["rate_flac"]) / each
    verdict = "the GPUs wait, and each needs that many more" if least < 1 else "the loader is no limit"
    lines += [
        "",
        f"Clips of {CLIP_SECONDS:g} s make {clips / 1e6:.0f} million samples; in shards of 1,000 that is "
        f"{clips / 1000:,.0f} shards of {shard / 1e6:.0f} MB. The build reads everything once: {decode:,.0f} "
        f"core hours to decode, and tokens at {tokenize:,.0f} times real time on a GPU (assumed; `sf-shards build` "
        f"shows yours, `benchmarks/capacity.py --tokenize` takes it) {seconds / tokenize / 3600:,.0f} GPU hours, "
        f"{seconds / tokenize / 3600 / 64:.1f} h in 64 jobs.",
        "",
        f"What breaks first: one loader core gives {rates['rate_mp3_24k'] / each:.1f} times what an A100 takes "
        f"from mp3, and {rates['rate_flac'] / each:.1f} times from flac: with one core a GPU {verdict}. Then the "
        f"shared disk, which must give {speeds[0] * formats[EMILIA] / 1e6:.0f} MB/s to 16 GPUs, in sequential "
        f"reads of whole shards. A group of four shards takes {4 * shard / 1e6:.0f} MB of memory for each lane.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loader", type=Path, required=True, help="JSON that loader.py printed")
    parser.add_argument("--out", type=Path, required=True, help="page to write")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak that training reaches")
    parser.add_argument("--tokenize", type=float, default=500.0, help="times real time of the tokenizer on a GPU")
    args = parser.parse_args()
    rates = json.loads(args.loader.read_text())
    args.out.write_text(page(rates, args.utilisation, rates["flac_bytes_per_second"], args.tokenize))


if __name__ == "__main__":
    main()
