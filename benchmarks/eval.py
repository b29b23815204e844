"""Time of sf-eval compared with decoding and scoring measured apart.

    python benchmarks/eval.py --ckpt runs/demo/checkpoints/last.ckpt --shards shards/demo/dev [--clips 125] [--json]

Apart: all clips are decoded as by `sf-eval` (copy-synthesis, offline and streamed, in the same batches) while
nothing else runs; then all are scored by the worker processes while nothing else runs. Together: a complete
evaluation into an empty folder, including loading, audio files and pictures, latency, tables and page. The worker
processes are warm.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from sf_lightning.cli.errors import one_line_errors
from sf_lightning.cli.eval import open_candidate
from sf_lightning.data.lanes import DrawnClip
from sf_lightning.evaluation.clips import open_clips
from sf_lightning.evaluation.decoding import ClipEvaluator, HeldOutClip
from sf_lightning.evaluation.report import write_evaluation_report
from sf_lightning.evaluation.results import Identity, Results
from sf_lightning.evaluation.run import evaluate, input_digests
from sf_lightning.evaluation.scores import ClipScorer
from sf_lightning.evaluation.selection import ClipSelection
from sf_lightning.evaluation.systems import DecodingGrid, SystemGroup, plan_systems
from sf_lightning.evaluation.table import Findings, markdown
from sf_lightning.metrics.pool import gather, shared_pool
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.state import Chunk

Decoded = list[tuple[HeldOutClip, Chunk]]


@torch.inference_mode()
def decode(group: SystemGroup, evaluator: ClipEvaluator, drawn: list[DrawnClip], batch: int) -> Decoded:
    """Returns all clips with their decoded audio, for all systems of a group."""
    decoded = Decoded()
    for start in range(0, len(drawn), batch):
        clips = evaluator.prepare(drawn[start : start + batch])
        for system in group.systems:
            if system.kind == "copy_synthesis":
                chunks = evaluator.vocode([clip.mel for clip in clips])
            else:
                chunks = evaluator.stream(clips, group.decode_config(system))
            decoded += zip(clips, chunks, strict=True)
    return decoded


def score(evaluator: ClipEvaluator, decoded: Decoded) -> None:
    """Scores all decoded clips in the worker processes."""
    for pending in [evaluator.score(clip, chunk) for clip, chunk in decoded]:
        pending.collect()


def evaluate_all(groups: list[SystemGroup], selection: ClipSelection, batch: int, clips: int) -> None:
    """Runs a complete evaluation, including its page."""
    with tempfile.TemporaryDirectory() as folder:
        identity = Identity("", "", clips, "", (), "cpu")
        systems = [system for group in groups for system in group.systems]
        results = Results.open(Path(folder, "eval"), identity, systems, input_digests(groups), {})
        evaluate(groups, selection, results, ClipScorer(), lambda *_: None, batch=batch)
        results.close()
        findings = Findings.from_results(results)
        markdown(findings)
        write_evaluation_report(Path(folder, "report.html"), findings)


def timed(function, *args):  # type: ignore[no-untyped-def]
    """Returns the duration of a call in seconds, and its result."""
    start = time.perf_counter()
    result = function(*args)
    return time.perf_counter() - start, result


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True, help="checkpoint of sf-fit, or folder written by sf-export")
    parser.add_argument("--shards", required=True, help="shard set of held-out clips")
    parser.add_argument("--clips", type=int, default=125, help="number of clips")
    parser.add_argument("--batch", type=int, default=8, help="number of clips decoded side by side")
    parser.add_argument("--json", action="store_true", help="print the results as JSON on the last line")
    args = parser.parse_args()
    source = open_clips(args.shards)
    groups = plan_systems([open_candidate(args.ckpt, source)], DecodingGrid())
    (group,) = groups
    selection = ClipSelection(source, args.clips)
    drawn = selection.clips(group)
    trained = group.candidate.load()
    decoder = StreamingDecoder(trained.model, group.vocoder.make(trained.model.mel.config), group.decode)
    evaluator = ClipEvaluator(decoder, ClipScorer())
    gather(shared_pool().warm_up())
    decode(group, evaluator, drawn[: args.batch], args.batch)  # warm-up: the first calls are slow
    decoding, decoded = timed(decode, group, evaluator, drawn, args.batch)
    scoring, _ = timed(score, evaluator, decoded)
    together, _ = timed(evaluate_all, groups, selection, args.batch, args.clips)
    seconds = {"decoding_s": decoding, "metrics_s": scoring, "sf_eval_s": together}
    ratio = together / (decoding + scoring)
    device = f"{torch.get_num_threads()} threads of {os.cpu_count()} CPU cores, torch {torch.__version__}"
    print(f"{device}; {len(drawn)} clips, {len(group.systems)} systems", file=sys.stderr)
    print("| decoding | metrics | both apart | together | ratio |\n|---|---|---|---|---|")
    print(f"| {decoding:.1f} s | {scoring:.1f} s | {decoding + scoring:.1f} s | {together:.1f} s | {ratio:.2f} |")
    if args.json:
        print(json.dumps({"ratio": round(ratio, 3)} | {name: round(value, 2) for name, value in seconds.items()}))


if __name__ == "__main__":
    main()
