"""What sf-eval costs over decoding and metrics measured apart: one evaluation, and the same work in two parts.

    python benchmarks/eval.py --ckpt runs/demo/checkpoints/last.ckpt --shards shards/demo/dev [--clips 125] [--json]

The parts: every clip is decoded as `sf-eval` does it, copy-synthesis, offline and streamed, in its batches, with
nothing else going on; then all that was made is scored, in the pool, with nothing else going on. The whole: an
evaluation into an empty folder, with what it takes to load, to keep and to time, tables and page. The pool is warm.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from sf_lightning.audio.wave import resampled
from sf_lightning.cli.errors import one_line_errors
from sf_lightning.cli.eval import _subject
from sf_lightning.data.lanes import DrawnClip
from sf_lightning.evaluation.clips import open_clips
from sf_lightning.evaluation.grid import Group, Options, plan
from sf_lightning.evaluation.report import page_of
from sf_lightning.evaluation.results import Identity, Results
from sf_lightning.evaluation.run import Drawing, Settings, digests_of, evaluate
from sf_lightning.evaluation.scores import Scoring
from sf_lightning.evaluation.table import Findings, markdown
from sf_lightning.metrics.pool import gather, shared_pool
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.state import Chunk

Made = list[tuple[DrawnClip, torch.Tensor, Chunk]]
"""Clips, their mels, and what was made of them."""


@torch.inference_mode()
def decode(group: Group, decoder: StreamingDecoder, drawn: list[DrawnClip], batch: int) -> Made:
    """Decodes all clips in all ways, and does nothing else."""
    model, made = decoder.model, Made()
    for start in range(0, len(drawn), batch):
        some = drawn[start : start + batch]
        crops = torch.stack([torch.from_numpy(each.reference) for each in some])
        speakers = list(model.encode_speaker(crops, torch.stack([torch.from_numpy(d.clip.x_vector) for d in some])))
        mels = [model.mel(torch.from_numpy(each.clip.wave)[None])[0] for each in some]
        tokens = [torch.from_numpy(each.clip.tokens) for each in some]
        for way in group.ways:
            if way.kind == "copy_synthesis":
                chunks = [Chunk(mel, decoder.vocoder.decode(mel[None])[0]) for mel in mels]
            else:
                chunks = decoder.decode(tokens, list(speakers), group.config(way))
            made += zip(some, mels, chunks, strict=True)
    return made


def score(group: Group, decoder: StreamingDecoder, made: Made) -> None:
    """Scores all that was made, and does nothing else."""
    scoring, size, pending = Scoring(), group.layout.block_size, []
    config, vocoder = group.decode.resolve(group.layout), decoder.vocoder
    for drawn, mel, chunk in made:
        edges = torch.tensor(config.edges(-(-len(mel) // size))) * size * vocoder.mel.hop_length
        wave = resampled(chunk.wave, vocoder.sample_rate, vocoder.mel.sample_rate)
        said = torch.from_numpy(drawn.clip.wave)
        pending.append(scoring.start(drawn.clip.key, wave, said, chunk.mel, mel, edges))
    for each in pending:
        each.collect()


def whole(groups: list[Group], drawing: Drawing, batch: int, clips: int) -> None:
    """An evaluation, from nothing to its page."""
    with tempfile.TemporaryDirectory() as folder:
        identity = Identity("", "", clips, "", (), "cpu")
        ways = [way for group in groups for way in group.ways]
        results = Results.open(Path(folder, "eval"), identity, ways, digests_of(groups), {})
        evaluate(groups, drawing, results, Scoring(), Settings(batch=batch), lambda *_: None)
        results.close()
        found = Findings.of(results)
        markdown(found)
        page_of(found).write(Path(folder, "report.html"))


def seconds(do, *given):  # type: ignore[no-untyped-def]
    """Seconds that a call takes, and what it returns."""
    start = time.perf_counter()
    made = do(*given)
    return time.perf_counter() - start, made


@one_line_errors
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True, help="of sf-fit, or a folder of sf-export")
    parser.add_argument("--shards", required=True, help="held-out clips")
    parser.add_argument("--clips", type=int, default=125)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    args = parser.parse_args()
    held = open_clips(args.shards)
    groups = plan([_subject(args.ckpt, held)], Options())
    (group,) = groups
    drawing = Drawing(held, args.clips)
    drawn = drawing.of(group)
    trained = group.subject.load()
    decoder = StreamingDecoder(trained.model, group.vocoder.make(trained.model.mel.config), group.decode)
    gather(shared_pool().warm_up())
    decode(group, decoder, drawn[: args.batch], args.batch)  # once for nothing: the first calls are slow
    decoding, made = seconds(decode, group, decoder, drawn, args.batch)
    scoring, _ = seconds(score, group, decoder, made)
    together, _ = seconds(whole, groups, drawing, args.batch, args.clips)
    found = {"decoding_s": decoding, "metrics_s": scoring, "sf_eval_s": together}
    ratio = together / (decoding + scoring)
    device = f"{torch.get_num_threads()} threads of {os.cpu_count()} CPU cores, torch {torch.__version__}"
    print(f"{device}; {len(drawn)} clips, {len(group.ways)} ways", file=sys.stderr)
    print("| decoding | metrics | both apart | sf-eval | ratio |\n|---|---|---|---|---|")
    print(f"| {decoding:.1f} s | {scoring:.1f} s | {decoding + scoring:.1f} s | {together:.1f} s | {ratio:.2f} |")
    if args.json:
        print(json.dumps({"ratio": round(ratio, 3)} | {name: round(value, 2) for name, value in found.items()}))


if __name__ == "__main__":
    main()
