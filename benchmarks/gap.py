"""Difference between streamed and offline decoding for several look-aheads, with a KV cache and in windows.

    python benchmarks/gap.py --ckpt runs/demo/checkpoints/last.ckpt --shards shards/demo/dev

For each number of network evaluations the same clips are decoded offline and then streamed with each look-ahead,
with the left context cached ("cached") or decoded again in windows ("windowed"); a chunk is one block. Prints a
Markdown table.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from sf_lightning.data.held_out import evenly_spaced_clips
from sf_lightning.data.shards import ShardSet
from sf_lightning.evaluation.decoding import ClipEvaluator, HeldOutClip
from sf_lightning.evaluation.scores import ClipScorer
from sf_lightning.evaluation.table import COLUMNS
from sf_lightning.metrics.speech import ScoreMeans, mel_gap
from sf_lightning.streaming.latency import measure_latency
from sf_lightning.streaming.state import Chunk, DecodeConfig
from sf_lightning.training.module import StreamFlowModule

SCORES = ("pesq_wb", "stoi", "visqol", "mel_l1", "seam_db")


def score_cells(evaluator: ClipEvaluator, clips: Sequence[HeldOutClip], chunks: Sequence[Chunk]) -> list[str]:
    """Returns the mean of each of `SCORES` over decoded clips, formatted."""
    pending = [evaluator.score(clip, chunk) for clip, chunk in zip(clips, chunks, strict=True)]
    means = ScoreMeans(SCORES)
    for clip, scores in zip(clips, pending, strict=True):
        means.update(scores.collect(), len(clip.mel))
    values = means.compute()
    return [COLUMNS[name].form.format(values[name]) for name in SCORES]


def streamed_cells(
    evaluator: ClipEvaluator, clips: Sequence[HeldOutClip], config: DecodeConfig, offline: Sequence[Chunk]
) -> list[str]:
    """Returns the table row of one streaming configuration, without the number of evaluations."""
    evaluator.decoder.config = config.resolve(evaluator.decoder.model.layout)
    streamed = evaluator.stream(clips)
    gap = mel_gap([chunk.mel for chunk in streamed], [chunk.mel for chunk in offline])
    latency = measure_latency(evaluator.decoder, clips[0].tokens, clips[0].speaker)
    times = (latency.wait_ms, latency.network_ms, latency.vocoder_ms, latency.first_packet_ms)
    costs = [f"{ms:.0f}" for ms in times] + [f"{latency.real_time_factor:.2f}"]
    return [config.mode, str(config.lookahead), f"{gap:.1e}", *score_cells(evaluator, clips, streamed), *costs]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True, help="checkpoint of sf-fit")
    parser.add_argument("--shards", type=Path, required=True, help="shard set of held-out clips")
    parser.add_argument("--clips", type=int, default=12, help="number of clips")
    parser.add_argument(
        "--evaluations", type=int, nargs="+", default=(2, 4, 10), help="numbers of network evaluations per chunk"
    )
    parser.add_argument("--guidance", type=float, help="guidance strength; default: that of the checkpoint")
    args = parser.parse_args()
    module = StreamFlowModule.load_from_checkpoint(args.ckpt, map_location="cpu")
    model, scorer = module.average, ClipScorer()
    drawn = list(evenly_spaced_clips(ShardSet(args.shards), args.clips, module.clip_requirements))
    header = ["NFE", "mode", "look-ahead", "gap", *SCORES, "wait", "network", "vocoder", "first packet ms", "RTF"]
    print(f"| {' | '.join(header)} |\n{'|---' * len(header)}|")
    base = module.decode if args.guidance is None else replace(module.decode, guidance=args.guidance)
    for evaluations in args.evaluations:
        config = replace(base, steps=evaluations, method="euler", mode="cached", chunk=1, first_chunk=None)
        evaluator = ClipEvaluator(module.decoder(decode=config), scorer)
        clips = evaluator.prepare(drawn)
        offline = evaluator.offline(clips)
        cells = score_cells(evaluator, clips, offline)
        print(f"| {evaluations} | offline | | | {' | '.join(cells)} | | | | | |", flush=True)
        factors = sorted({1, 2, 3, evaluations // 2, evaluations} - {0})
        for blocks in (model.layout.lookahead * factor for factor in factors):
            for mode in ("cached", "windowed"):
                cells = streamed_cells(evaluator, clips, replace(config, mode=mode, lookahead=blocks), offline)
                print(f"| {evaluations} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
