"""What look-ahead buys: a trained decoder, streamed with and without memory, held against itself offline.

    python benchmarks/gap.py --ckpt runs/demo/checkpoints/last.ckpt --shards shards/demo/dev

For each number of evaluations the same clips are decoded offline and then streamed, at every look-ahead, with the
past remembered and by windows; chunks are one block. Prints Markdown.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from sf_lightning.audio.wave import resampled
from sf_lightning.data.held_out import evenly_spaced_clips
from sf_lightning.data.shards import ShardSet
from sf_lightning.metrics.speech import SpeechScores, gap
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.latency import measure_latency
from sf_lightning.streaming.state import Chunk, DecodeConfig
from sf_lightning.training.module import StreamFlowModule

COLUMNS = ("pesq_wb", "stoi", "visqol", "mel_l1", "seam_db")
FORMS = {"seam_db": "{:+.2f}", "stoi": "{:.3f}", "mel_l1": "{:.3f}"}


class Clips:
    """Held-out clips, and everything that is measured against them."""

    def __init__(self, module: StreamFlowModule, shards: ShardSet, count: int) -> None:
        model = module.average
        mel = model.mel.config
        drawn = list(evenly_spaced_clips(shards, count, module.clip_requirements))
        self.waves = [torch.from_numpy(each.clip.wave) for each in drawn]
        self.tokens = [torch.from_numpy(each.clip.tokens) for each in drawn]
        self.rate, self.hop, self.edge = mel.sample_rate, mel.hop_length, model.layout.block_size
        with torch.inference_mode():
            self.mels = [model.mel(wave[None])[0] for wave in self.waves]
            references = torch.stack([torch.from_numpy(each.reference) for each in drawn])
            x_vectors = torch.stack([torch.from_numpy(each.clip.x_vector) for each in drawn])
            self.speakers = list(model.encode_speaker(references, x_vectors))

    def scores(self, chunks: list[Chunk], rate: int) -> dict[str, float]:
        """Scores of what was made, at this rate, with seams at the edges of blocks."""
        scores = SpeechScores(self.rate)
        edges = [torch.arange(self.edge, len(mel), self.edge) * self.hop for mel in self.mels]
        waves = [resampled(chunk.wave, rate, self.rate) for chunk in chunks]
        scores.update(waves, self.waves, [chunk.mel for chunk in chunks], self.mels, edges)
        return scores.compute()


def row(decoder: StreamingDecoder, clips: Clips, config: DecodeConfig, offline: list[Chunk]) -> list[str]:
    """One way of streaming."""
    decoder.config = config.resolve(decoder.model.layout)
    streamed = decoder.decode(clips.tokens, clips.speakers)
    apart = gap([chunk.mel for chunk in streamed], [chunk.mel for chunk in offline])
    account = measure_latency(decoder, clips.tokens[0], clips.speakers[0])
    values = clips.scores(streamed, decoder.vocoder.sample_rate)
    cells = [FORMS.get(name, "{:.2f}").format(values[name]) for name in COLUMNS]
    times = (account.wait_ms, account.network_ms, account.vocoder_ms, account.first_packet_ms)
    costs = [f"{ms:.0f}" for ms in times] + [f"{account.real_time_factor:.2f}"]
    return [config.mode, str(config.lookahead), f"{apart:.1e}", *cells, *costs]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True, help="of sf-fit")
    parser.add_argument("--shards", type=Path, required=True, help="held-out clips")
    parser.add_argument("--clips", type=int, default=12)
    parser.add_argument("--evaluations", type=int, nargs="+", default=(2, 4, 10))
    parser.add_argument("--guidance", type=float, help="by default as in training")
    args = parser.parse_args()
    module = StreamFlowModule.load_from_checkpoint(args.ckpt, map_location="cpu")
    clips = Clips(module, ShardSet(args.shards), args.clips)
    header = ["way", "look-ahead", "gap", *COLUMNS, "wait", "network", "vocoder", "first packet ms", "RTF"]
    print("| NFE | " + " | ".join(header) + " |")
    print("|---" * (len(header) + 1) + "|")
    base = module.decode if args.guidance is None else replace(module.decode, guidance=args.guidance)
    for evaluations in args.evaluations:
        config = replace(base, steps=evaluations, method="euler", mode="cached", chunk=1, first_chunk=None)
        decoder = module.decoder(decode=config)
        offline = decoder.decode_offline(clips.tokens, clips.speakers)
        values = clips.scores(offline, decoder.vocoder.sample_rate)
        cells = [FORMS.get(name, "{:.2f}").format(values[name]) for name in COLUMNS]
        print(f"| {evaluations} | offline | | | " + " | ".join(cells) + " | | | | | |", flush=True)
        q = module.average.layout.lookahead
        factors = sorted({1, 2, 3, evaluations // 2, evaluations})
        for blocks in (q * factor for factor in factors if factor):
            for mode in ("cached", "windowed"):
                found = row(decoder, clips, replace(config, mode=mode, lookahead=blocks), offline)
                print(f"| {evaluations} | " + " | ".join(found) + " |", flush=True)


if __name__ == "__main__":
    main()
