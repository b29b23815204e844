"""The table of layouts, from a finished sweep over layouts and seeds: experiments/LAYOUTS.md (make table).

    python benchmarks/layouts.py sweeps/table --out experiments/LAYOUTS.md

Intervals are the middle 95 % of a bootstrap over seeds and clips, both drawn anew each time; the clips are the same
in all runs, so differences are taken clip by clip, in each seed. Latency is measured now, of each layout's first
seed, the layouts by turns.
"""

import argparse
import csv
import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

from sf_lightning.evaluation.table import COLUMNS
from sf_lightning.metrics.speech import OVER_FRAMES
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.latency import LatencyReport, measure_latency
from sf_lightning.sweeps.results import Result, read_results
from sf_lightning.training.module import StreamFlowModule

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

DRAWS = 2000
SHOWN = ("pesq_wb", "stoi", "visqol", "mel_l1", "seam_db", "gap")
"""Columns of the table of scores."""
SECONDS = 12
"""Length of the stream whose chunks are timed; of tokens drawn at random, for which ones they are costs nothing."""

ROUNDS = 3
"""How often each layout streams it; every chunk counts with its fastest."""

ORDER = "full streamflow_sr streamflow_lr sr_low backward_only chunk_causal block_only".split()
REFERENCE = "streamflow_sr"
EXPECTED = """Expected from the paper: `streamflow_sr` and `streamflow_lr` near `full`, above `chunk_causal` in
streaming, `block_only` below; constant cost for all but `chunk_causal` and `full`."""


@dataclass(frozen=True)
class Run:
    """A trial that was finished.

    Attributes:
        layout: Its name.
        seed: Of all that it drew.
        scores: Of each clip, by (way, clip).
        checkpoint: Its last.
        record: What its logger kept of it: config, commit, field.
    """

    layout: str
    seed: int
    scores: Mapping[tuple[str, str], Mapping[str, float]]
    checkpoint: Path
    record: Mapping[str, Any]


def read_run(trial: Result) -> Run:
    """Reads what a trial's validations have left."""
    steps = sorted(trial.folder.glob("samples/step-*/scores.csv"))
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for path in steps:  # the baselines are in the first alone
        with path.open() as file:
            for row in csv.DictReader(file):
                way, key = row.pop("way"), row.pop("key")
                scores[way, key] = {name: float(value) for name, value in row.items() if value}
    return Run(
        layout=Path(trial.parameters["model.layout"]).stem,
        seed=int(trial.parameters["seed"]),
        scores=scores,
        checkpoint=trial.folder / "checkpoints" / "last.ckpt",
        record=yaml.safe_load((trial.folder / "csv" / "hparams.yaml").read_text()),
    )


def keys_of(runs: Sequence[Run], way: str) -> list[str]:
    """The clips that any of the runs has decoded in a way."""
    return sorted({key for run in runs for each, key in run.scores if each == way})


def matrix(runs: Sequence[Run], way: str, name: str, keys: Sequence[str]) -> NDArray[np.float64]:
    """Scores of a way of decoding, [seeds, clips]; NaN where there is none."""
    return np.array([[run.scores.get((way, key), {}).get(name, np.nan) for key in keys] for run in runs])


def interval(values: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, float, float]:
    """The mean of [seeds, clips] under weights, and the interval in which it lies; NaN is left out."""

    def mean(of: NDArray[np.float64], by: NDArray[np.float64]) -> float:
        known = ~np.isnan(of)
        return float((np.where(known, of, 0) * by).sum() / (known * by).sum()) if (known * by).sum() else np.nan

    random = np.random.default_rng(0)
    drawn = []
    for _ in range(DRAWS):
        seeds, clips = (random.integers(0, size, size) for size in values.shape)
        drawn.append(mean(values[np.ix_(seeds, clips)], weights[np.ix_(seeds, clips)]))
    low, high = np.nanpercentile(drawn, [2.5, 97.5]) if not np.isnan(drawn).all() else (np.nan, np.nan)
    return mean(values, weights), float(low), float(high)


def weights_of(runs: Sequence[Run], way: str, name: str, keys: Sequence[str]) -> NDArray[np.float64]:
    """What each score counts, [seeds, clips]."""
    frames = np.nan_to_num(matrix(runs, way, "frames", keys))
    return frames if name in OVER_FRAMES else np.ones_like(frames)


def quality(groups: Mapping[str, Sequence[Run]]) -> list[list[str]]:
    """The table of scores: the ceiling and the look-up once, then each layout streamed and offline."""
    some = next(iter(groups.values()))[:1]
    lines = [("copy-synthesis", some, "copy_synthesis"), ("look-up", some, "look_up")]
    lines += [(f"{name}, {way}", runs, way) for way in ("streamed", "offline") for name, runs in groups.items()]
    table = [["", *(COLUMNS[name].title for name in SHOWN)]]
    for label, runs, way in lines:
        cells = []
        for name in SHOWN:
            form = COLUMNS[name].form
            keys = keys_of(runs, way)
            mean, low, high = interval(matrix(runs, way, name, keys), weights_of(runs, way, name, keys))
            known = not np.isnan(mean)
            cells.append(f"{form.format(mean)} [{form.format(low)}, {form.format(high)}]" if known else "")
        table.append([label, *cells])
    return table


def differences(groups: Mapping[str, Sequence[Run]], name: str) -> list[list[str]]:
    """How far each layout is from the reference, clip by clip, each seed by itself.

    Few seeds say little of how far another one would be off, so none is mixed with the others: a layout is above or
    below if it is so in every seed.
    """
    seeds = sorted({run.seed for runs in groups.values() for run in runs})
    ways = ("streamed", "offline")
    table = [["", *(f"{way}, {each}" for way in ways for each in [*(f"seed {seed}" for seed in seeds), "in all"])]]
    for layout, runs in groups.items():
        if layout == REFERENCE:
            continue
        cells = []
        for way in ways:
            signs = []
            for seed in seeds:
                pair = [[run for run in each if run.seed == seed] for each in (runs, groups[REFERENCE])]
                if not all(pair):
                    cells.append("")
                    continue
                keys = keys_of([*pair[0], *pair[1]], way)
                ours, theirs = (matrix(each, way, name, keys) for each in pair)
                mean, low, high = interval(ours - theirs, weights_of(pair[1], way, name, keys))
                cells.append(f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]")
                signs.append(1 if low > 0 else -1 if high < 0 else 0)
            same = len(signs) == len(seeds) > 1 and len(set(signs)) == 1
            cells.append({1: "above", -1: "below"}.get(signs[0] if same else 0, "not told apart"))
        table.append([layout, *cells])
    return table


def accounts(groups: Mapping[str, Sequence[Run]]) -> dict[str, tuple[StreamingDecoder, list[LatencyReport]]]:
    """Of each layout its decoder and its accounts of the same stream, one for each round."""
    decoders = {
        name: StreamFlowModule.load_from_checkpoint(runs[0].checkpoint, map_location=DEVICE).decoder()
        for name, runs in groups.items()
    }
    some = next(iter(decoders.values()))
    rate = some.model.mel.config.frame_rate / some.model.dit.config.frames_per_token
    tokens = torch.randint(some.model.dit.config.vocabulary, (round(SECONDS * rate),))
    rounds = [{name: measure_latency(each, tokens, None) for name, each in decoders.items()} for _ in range(ROUNDS)]
    return {name: (each, [accounts[name] for accounts in rounds]) for name, each in decoders.items()}


def latency(groups: Mapping[str, Sequence[Run]]) -> list[list[str]]:
    """What each layout waits for and costs."""
    table = [["", "field back / ahead", "waits ms", "first packet ms", "chunk ms, at first", "at the end", "RTF"]]
    for name, (decoder, rounds) in accounts(groups).items():
        spans = (decoder.model.layout.field.back, decoder.model.layout.field.ahead)
        back, ahead = ("all" if np.isinf(each) else f"{each:.0f}" for each in spans)
        chunks = np.min([each.chunk_ms for each in rounds], axis=0)
        # The first chunk pays for conditions too, the last ones are flushed together.
        first, last = np.median(chunks[1:9]), np.median(chunks[-10:-2])
        packet, factor = (
            min(getattr(each, key) for each in rounds) for key in ("first_packet_ms", "real_time_factor")
        )
        times = [f"{rounds[0].wait_ms:.0f}", f"{packet:.0f}", f"{first:.1f}", f"{last:.1f}", f"{factor:.2f}"]
        table.append([name, f"{back} / {ahead}", *times])
    return table


def about(runs: Sequence[Run], missing: int) -> Iterable[str]:
    """Under which circumstances."""
    config = runs[0].record["config"]
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    processor = f"{os.cpu_count()} cores, {next(named, platform.processor())}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor
    yield f"- {len(runs)} runs of {config['trainer']['max_steps']} steps of {config['data']['pack_frames']} frames"
    seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in runs}))
    yield f"- seeds {seeds}: of weights, order of clips, noise, times"
    clips = len({key for run in runs for _, key in run.scores})
    size = f"{runs[0].record['parameters'] / 1e6:.1f} M parameters"
    train = config["data"]["train"]
    # A folder as it is called from here: what lies above is this machine's.
    sets = [os.path.relpath(each) if os.path.isabs(each) else each for each in np.atleast_1d(train).tolist()]
    yield f"- {size}, {', '.join(sets)}, {clips} held-out clips"
    yield f"- {date.today()}, {device}, torch {torch.__version__}"
    yield f"- commit {', '.join(sorted({run.record['commit'] for run in runs}))} (+: files differ from it)"
    if missing:
        yield f"- **{missing} of the sweep's points are not in it: their trials are not complete**"


def markdown(table: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path, help="folder of sf-sweep")
    parser.add_argument("--out", type=Path, default=Path("experiments/LAYOUTS.md"))
    args = parser.parse_args()
    results = read_results(args.sweep)
    if not results.complete:
        raise SystemExit(f"error: no trial of {args.sweep} is complete yet")
    runs = [read_run(trial) for trial in results.complete]
    names = {run.layout for run in runs}
    order = [*(name for name in ORDER if name in names), *sorted(names - {*ORDER})]
    groups = {name: sorted((r for r in runs if r.layout == name), key=lambda run: run.seed) for name in order}
    parts = [
        "# The layouts, trained alike",
        "Made by `make table`; do not edit.",
        "\n".join(about(runs, len({str(trial.parameters) for trial in results.trials}) - len(runs))),
        EXPECTED,
        "## Quality\n\nMean and 95 % interval over seeds and clips; where seeds are few, it is too narrow. Gap: "
        "streamed from offline, log-mel.",
        markdown(quality(groups)),
    ]
    if REFERENCE in groups and len(groups) > 1:
        parts.append(
            f"## Against {REFERENCE}\n\nDifference, clip by clip, and its interval over clips, in each seed. Above "
            "or below is what is so in all seeds."
        )
        for name in ("stoi", "mel_l1"):
            parts += [f"{COLUMNS[name].title}:", markdown(differences(groups, name))]
    parts += [
        f"## Latency\n\nA stream of {SECONDS} s in one-block chunks on this machine, network and vocoder, layouts "
        f"by turns, the fastest of {ROUNDS} rounds. A chunk's cost: median of the eight after the first, and of "
        "the eight before the last two.",
        markdown(latency(groups)),
    ]
    args.out.write_text("\n\n".join(parts) + "\n")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
