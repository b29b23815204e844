"""Writes the table of layouts, experiments/LAYOUTS.md, from a finished sweep over layouts and seeds (make table).

    python benchmarks/layouts.py sweeps/table --out experiments/LAYOUTS.md

Intervals are 95 % intervals over clips, not over seeds. All runs decode the same clips, so
differences are paired by clip, separately for each seed. Latency is measured by this script, with the first seed of
each layout, alternating between layouts.
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

from sf_lightning.evaluation.intervals import mean_of
from sf_lightning.evaluation.table import COLUMNS
from sf_lightning.files.tables import markdown_table
from sf_lightning.metrics.speech import OVER_FRAMES
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.latency import LatencyReport, measure_latency
from sf_lightning.sweeps.results import Results
from sf_lightning.sweeps.trials import Trial
from sf_lightning.training.module import StreamFlowModule

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

MODES = ("streamed", "offline")
SHOWN = ("pesq_wb", "stoi", "visqol", "mel_l1", "seam_db", "gap")
"""Names of the scores in the table."""
SECONDS = 12
"""Length of the timed stream, whose tokens are random: the cost does not depend on them."""

ROUNDS = 3
"""Number of times that each layout decodes the stream; the fastest time of each chunk counts."""

ORDER = "full streamflow_sr streamflow_lr sr_low backward_only chunk_causal block_only".split()
REFERENCE = "streamflow_sr"
EXPECTED = """Expected from the paper: `streamflow_sr` and `streamflow_lr` are near `full` and, streamed, above
`chunk_causal`; `block_only` is below; the cost of a chunk is constant except for `chunk_causal` and `full`."""


@dataclass(frozen=True)
class Run:
    """A complete trial.

    Attributes:
        layout: Name of the layout.
        seed: Seed of the run.
        scores: Scores of each clip by (mode, key of the clip).
        checkpoint: Path of the last checkpoint.
        record: Hyperparameters as logged: config, commit, number of parameters.
    """

    layout: str
    seed: int
    scores: Mapping[tuple[str, str], Mapping[str, float]]
    checkpoint: Path
    record: Mapping[str, Any]


def read_run(trial: Trial) -> Run:
    """Reads the scores of a trial's validations."""
    steps = sorted(trial.folder.glob("samples/step-*/scores.csv"))
    scores: dict[tuple[str, str], dict[str, float]] = {}
    for path in steps:  # baselines are scored in the first validation only
        with path.open() as file:
            for row in csv.DictReader(file):
                mode, key = row.pop("way"), row.pop("key")
                scores[mode, key] = {name: float(value) for name, value in row.items() if value}
    return Run(
        layout=str(trial.parameters["model.layout"]),
        seed=int(trial.parameters["seed"]),
        scores=scores,
        checkpoint=trial.folder / "checkpoints" / "last.ckpt",
        record=yaml.safe_load((trial.folder / "csv" / "hparams.yaml").read_text()),
    )


def clip_keys(runs: Sequence[Run], mode: str) -> list[str]:
    """Returns the keys of the clips that any of the runs has decoded in a mode ("streamed", "offline", ...)."""
    return sorted({key for run in runs for run_mode, key in run.scores if run_mode == mode})


def matrix(runs: Sequence[Run], mode: str, name: str, keys: Sequence[str]) -> NDArray[np.float64]:
    """Returns a score of all clips, [seeds, clips]; NaN where it is missing."""
    return np.array([[run.scores.get((mode, key), {}).get(name, np.nan) for key in keys] for run in runs])


def interval(values: NDArray[np.float64], weights: NDArray[np.float64]) -> tuple[float, float, float]:
    """Returns a weighted mean over [seeds, clips] and both ends of its 95 % interval; NaN is ignored."""
    clips = np.broadcast_to(np.arange(values.shape[1]), values.shape)
    mean = mean_of(values.ravel(), weights.ravel(), clips.ravel().tolist())
    return mean.mean, mean.low, mean.high


def score_weights(runs: Sequence[Run], mode: str, name: str, keys: Sequence[str]) -> NDArray[np.float64]:
    """Returns the weight of each score, [seeds, clips]: the clip's frames for means over frames, otherwise 1."""
    frames = np.nan_to_num(matrix(runs, mode, "frames", keys))
    return frames if name in OVER_FRAMES else np.ones_like(frames)


def quality(groups: Mapping[str, Sequence[Run]]) -> list[list[str]]:
    """Returns the table of scores: the two baselines once, then each layout streamed and offline."""
    first = next(iter(groups.values()))[:1]
    lines = [("copy-synthesis", first, "copy_synthesis"), ("lookup baseline", first, "look_up")]
    lines += [(f"{name}, {mode}", runs, mode) for mode in MODES for name, runs in groups.items()]
    table = [["", *(COLUMNS[name].title for name in SHOWN)]]
    for label, runs, mode in lines:
        cells = []
        for name in SHOWN:
            form = COLUMNS[name].form
            keys = clip_keys(runs, mode)
            mean, low, high = interval(matrix(runs, mode, name, keys), score_weights(runs, mode, name, keys))
            known = not np.isnan(mean)
            cells.append(f"{form.format(mean)} [{form.format(low)}, {form.format(high)}]" if known else "")
        table.append([label, *cells])
    return table


def differences(groups: Mapping[str, Sequence[Run]], name: str) -> list[list[str]]:
    """Returns the table of differences of a score from the reference layout, paired by clip, for each seed.

    Few seeds do not show how much another seed would differ, so they are not averaged: a layout counts as above or
    below the reference only if the interval of every seed is.
    """
    seeds = sorted({run.seed for runs in groups.values() for run in runs})
    titles = [*(f"seed {seed}" for seed in seeds), "all seeds"]
    table = [["", *(f"{mode}, {title}" for mode in MODES for title in titles)]]
    for layout, runs in groups.items():
        if layout == REFERENCE:
            continue
        cells = []
        for mode in MODES:
            signs = []
            for seed in seeds:
                pair = [[run for run in group if run.seed == seed] for group in (runs, groups[REFERENCE])]
                if not all(pair):
                    cells.append("")
                    continue
                keys = clip_keys([*pair[0], *pair[1]], mode)
                layout_scores, reference_scores = (matrix(group, mode, name, keys) for group in pair)
                weights = score_weights(pair[1], mode, name, keys)
                mean, low, high = interval(layout_scores - reference_scores, weights)
                cells.append(f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]")
                signs.append(1 if low > 0 else -1 if high < 0 else 0)
            agree = len(signs) == len(seeds) > 1 and len(set(signs)) == 1
            cells.append({1: "above", -1: "below"}.get(signs[0] if agree else 0, "undecided"))
        table.append([layout, *cells])
    return table


def decode_timed(groups: Mapping[str, Sequence[Run]]) -> dict[str, tuple[StreamingDecoder, list[LatencyReport]]]:
    """Returns each layout's decoder and its latency reports of the same stream, one for each round."""
    decoders = {
        name: StreamFlowModule.load_from_checkpoint(runs[0].checkpoint, map_location=DEVICE).decoder()
        for name, runs in groups.items()
    }
    model = next(iter(decoders.values())).model
    rate = model.mel.config.frame_rate / model.dit.config.frames_per_token
    tokens = torch.randint(model.dit.config.vocabulary, (round(SECONDS * rate),))
    rounds = [
        {name: measure_latency(decoder, tokens, None) for name, decoder in decoders.items()} for _ in range(ROUNDS)
    ]
    return {name: (decoder, [reports[name] for reports in rounds]) for name, decoder in decoders.items()}


def latency(groups: Mapping[str, Sequence[Run]]) -> list[list[str]]:
    """Returns the table of latency and computation of each layout."""
    chunk_titles = ["chunk ms, early", "chunk ms, late"]
    table = [["", "receptive field back / ahead", "wait ms", "first packet ms", *chunk_titles, "RTF"]]
    for name, (decoder, reports) in decode_timed(groups).items():
        field = decoder.model.layout.field
        back, ahead = ("all" if np.isinf(blocks) else f"{blocks:.0f}" for blocks in (field.back, field.ahead))
        chunks = np.min([report.chunk_ms for report in reports], axis=0)
        # The first chunk includes the conditions, and the last ones are flushed together.
        early, late = np.median(chunks[1:9]), np.median(chunks[-10:-2])
        packet = min(report.first_packet_ms for report in reports)
        factor = min(report.real_time_factor for report in reports)
        times = [f"{reports[0].wait_ms:.0f}", f"{packet:.0f}", f"{early:.1f}", f"{late:.1f}", f"{factor:.2f}"]
        table.append([name, f"{back} / {ahead}", *times])
    return table


def about(runs: Sequence[Run], missing: int) -> Iterable[str]:
    """Yields lines that describe the runs and the machine."""
    config = runs[0].record["config"]
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    named = (line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    processor = f"{os.cpu_count()} cores, {next(named, platform.processor())}"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor
    yield f"- {len(runs)} runs of {config['trainer']['max_steps']} steps of {config['data']['pack_frames']} frames"
    seeds = ", ".join(str(seed) for seed in sorted({run.seed for run in runs}))
    yield f"- seeds {seeds} of initial weights, order of clips, noise and flow times"
    clips = len({key for run in runs for _, key in run.scores})
    size = f"{runs[0].record['parameters'] / 1e6:.1f} M parameters"
    train = config["data"]["train"]
    # Paths relative to the working directory: the folders above it are specific to this machine.
    sets = [os.path.relpath(path) if os.path.isabs(path) else path for path in np.atleast_1d(train).tolist()]
    yield f"- {size}, {', '.join(sets)}, {clips} held-out clips"
    yield f"- {date.today()}, {device}, torch {torch.__version__}"
    yield f"- commit {', '.join(sorted({run.record['commit'] for run in runs}))} (+: with uncommitted changes)"
    if missing:
        yield f"- **{missing} points of the sweep are missing because their trials are not complete**"


def _markdown(table: Sequence[Sequence[str]]) -> str:
    return markdown_table(table[0], table[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("sweep", type=Path, help="folder of a sweep of sf-sweep")
    parser.add_argument("--out", type=Path, default=Path("experiments/LAYOUTS.md"))
    args = parser.parse_args()
    results = Results(args.sweep)
    if not results.complete:
        raise SystemExit(f"error: no trial of {args.sweep} is complete yet")
    runs = [read_run(trial) for trial in results.complete]
    names = {run.layout for run in runs}
    order = [*(name for name in ORDER if name in names), *sorted(names - {*ORDER})]
    groups = {name: sorted((r for r in runs if r.layout == name), key=lambda run: run.seed) for name in order}
    parts = [
        "# Layouts compared at equal training budgets",
        "Generated by `make table`; do not edit.",
        "\n".join(about(runs, len({str(trial.parameters) for trial in results.trials}) - len(runs))),
        EXPECTED,
        "## Quality\n\nMean, and its 95 % interval over clips; another seed may lie outside. "
        "Gap: mean absolute difference of log-mel between streamed and offline.",
        _markdown(quality(groups)),
    ]
    if REFERENCE in groups and len(groups) > 1:
        parts.append(
            f"## Differences from {REFERENCE}\n\nMean difference, paired by clip, and its 95 % interval over "
            "clips, for each seed. All seeds: above or below if the intervals of all seeds are."
        )
        for name in ("stoi", "mel_l1"):
            parts += [f"{COLUMNS[name].title}:", _markdown(differences(groups, name))]
    parts += [
        f"## Latency\n\nA stream of {SECONDS} s in one-block chunks on this machine, network and vocoder included; "
        f"the fastest of {ROUNDS} rounds that alternate between layouts. Time of a chunk, early: median of the "
        "eight after the first; late: median of the eight before the last two.",
        _markdown(latency(groups)),
    ]
    args.out.write_text("\n\n".join(parts) + "\n")
    print(args.out.read_text())


if __name__ == "__main__":
    main()
