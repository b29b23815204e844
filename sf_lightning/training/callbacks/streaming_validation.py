"""Validation of a decoder: decodes held-out clips, streamed and offline, and scores them.

Two baselines are scored too: *copy-synthesis*, the recording's mel through the same vocoder, is the upper bound of
every decoder; *lookup* (`look_up`), the mean mel of each token, is the lower bound that justifies a network.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from typing import Any

import lightning as L
import numpy as np
import torch

from sf_lightning.data.writer import npy_bytes
from sf_lightning.evaluation.decoding import ClipEvaluator, HeldOutClip
from sf_lightning.evaluation.pictures import draw_streaming
from sf_lightning.evaluation.selection import kept_clips
from sf_lightning.files.atomic import atomic_path, write_atomically
from sf_lightning.files.npy import read_npy
from sf_lightning.files.tables import write_csv
from sf_lightning.files.text import file_name
from sf_lightning.metrics.speech import PERCEPTUAL, mel_gap, scores_within_latency
from sf_lightning.streaming.latency import measure_latency
from sf_lightning.streaming.state import Chunk
from sf_lightning.training.callbacks.preemption import stop_if_requested
from sf_lightning.training.callbacks.run_report import keep_clip, logging_step, samples_folder, wandb_loggers
from sf_lightning.training.callbacks.scored_validation import ScoredValidation
from sf_lightning.training.datamodule import ShardDataModule
from sf_lightning.training.module import StreamFlowModule
from sf_lightning.training.ranks import gather_over_ranks

BASELINES = ("copy_synthesis", "look_up")

LATENCY_TOKENS = 75
"""Tokens, three seconds of a clip, that are streamed alone for the latency report."""


class StreamingValidation(ScoredValidation):
    """Decodes the validation clips with the averaged weights, both streamed and offline, and logs the scores.

    Logs `{streamed,offline}/{pesq_wb,stoi,visqol,mel_l1,seam_db,pitch_jump,level_jump,no_score}`, `streamed/gap` to
    offline, `latency/*`, `gap/lookahead_*` (the gap with a larger look-ahead), and once the same scores of the
    baselines. Writes waves and pictures to `samples/step-*/` of the run's folder and to W&B, and in the folder each
    clip's scores (`scores.csv`) and the latency report (`latency.json`). A fit ends with a table and `report.html`.

    `streamed_within_500_ms/{pesq_wb,stoi,visqol}` are the streamed scores if the first chunk needs at most 500 ms
    of tokens, else the worst possible scores: one number for a sweep under a bound on latency.

    Args:
        keep: Number of clips whose sound and picture are kept.
        within_ms: Bounds on latency in ms.
    """

    def __init__(self, keep: int = 2, within_ms: Sequence[int] = (250, 500, 1000)) -> None:
        super().__init__()
        self.keep, self.within_ms = keep, within_ms

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Creates scorer and vocoder, and reads the lookup table."""
        assert isinstance(pl_module, StreamFlowModule)
        mel = pl_module.model.mel.config
        self.prepare_scoring(mel.sample_rate)
        self.vocoder = pl_module.vocoder.make(mel)
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(datamodule, ShardDataModule)
        with datamodule.train[0].open("lookup.npy") as file:
            self.lookup = torch.from_numpy(read_npy(file.read()).copy())

    def evaluate(
        self, trainer: L.Trainer, pl_module: L.LightningModule, datamodule: ShardDataModule
    ) -> dict[str, float]:
        """Decodes and scores the clips of this rank, keeps some, and returns the values to log."""
        assert isinstance(pl_module, StreamFlowModule)
        if isinstance(self.vocoder, torch.nn.Module):
            self.vocoder.to(pl_module.device)
        evaluator = ClipEvaluator(pl_module.decoder(self.vocoder), self.scorer)
        decoder = evaluator.decoder
        # Not compiled: the last chunks of clips all have different shapes.
        with torch.compiler.set_stance("force_eager"):
            clips = evaluator.prepare(datamodule.rank_clips)
            decoded: dict[str, list[Chunk]] = {}
            if not all(mode in self.rows for mode in BASELINES):
                decoded["copy_synthesis"] = evaluator.vocode([clip.mel for clip in clips])
                lookups = [self.lookup[clip.tokens].flatten(0, 1).to(clip.mel) for clip in clips]
                decoded["look_up"] = evaluator.vocode(lookups)
            stop_if_requested(trainer)
            decoded["offline"] = evaluator.offline(clips)
            stop_if_requested(trainer)
            decoded["streamed"] = evaluator.stream(clips)
            stop_if_requested(trainer)
            self.latency = measure_latency(decoder, clips[0].tokens[:LATENCY_TOKENS], clips[0].speaker)
            kept = kept_clips(len(clips), self.keep)
            gaps = evaluator.gaps_by_lookahead([clips[i] for i in kept], [decoded["offline"][i] for i in kept])
        stop_if_requested(trainer)
        rows = []
        for mode, chunks in decoded.items():
            references = decoded["offline"] if mode == "streamed" else [None] * len(clips)
            pending = [*map(evaluator.score, clips, chunks, references)]
            scores, frames = [scoring.collect() for scoring in pending], [len(clip.mel) for clip in clips]
            self.rows[mode] = self.mean_scores(scores, frames, decoder.device)
            for clip, values in zip(clips, scores, strict=True):
                # In single precision, as the means are computed.
                values |= {name: float(np.float32(values[name])) for name in PERCEPTUAL}
                rows.append({"way": mode, "key": clip.key, "frames": len(clip.mel)} | values)
        streamed, offline = ([chunk.mel for chunk in decoded[mode]] for mode in ("streamed", "offline"))
        self.rows["streamed"]["gap"] = mel_gap(streamed, offline, sync_device=decoder.device)
        values = {f"{mode}/{name}": value for mode in decoded for name, value in self.rows[mode].items()}
        values |= {f"latency/{name}": value for name, value in self.latency.values().items()}
        values |= {f"gap/lookahead_{blocks}": value for blocks, value in gaps.items()}
        for bound in self.within_ms:
            bounded = scores_within_latency(self.rows["streamed"], self.latency.wait_ms, bound)
            values |= {f"streamed_within_{bound}_ms/{name}": value for name, value in bounded.items()}
        rows = list(chain.from_iterable(gather_over_ranks(rows)))
        if trainer.is_global_zero:
            self.samples = samples_folder(trainer)
            for i in kept:
                self._keep(trainer, evaluator, clips[i], decoded["offline"][i], decoded["streamed"][i])
            self._draw_latency(trainer, gaps)
            self._write_scores(rows)
        return values

    def _keep(
        self, trainer: L.Trainer, evaluator: ClipEvaluator, clip: HeldOutClip, offline: Chunk, streamed: Chunk
    ) -> None:
        assert self.samples is not None
        vocoder = evaluator.decoder.vocoder
        rates = {"reference": vocoder.mel.sample_rate, "offline": vocoder.sample_rate}
        rates["streamed"] = vocoder.sample_rate
        sounds = {"reference": clip.wave, "offline": offline.wave, "streamed": streamed.wave}
        mels = {"reference": clip.mel, "offline": offline.mel, "streamed": streamed.mel}
        frame_rate = vocoder.mel.frame_rate
        keep_clip(trainer, self.samples, clip.key, sounds, rates, mels, evaluator.edges(clip), frame_rate)
        # From these two files `sf-decode` reproduces the wave.
        for name, values in (("tokens", clip.tokens), ("speaker", clip.speaker)):
            write_atomically(self.samples / f"{file_name(clip.key)}.{name}.npy", npy_bytes(values.cpu().numpy()))

    def _draw_latency(self, trainer: L.Trainer, gaps: dict[int, float]) -> None:
        assert self.samples is not None and self.latency is not None
        picture = self.samples / "streaming.png"
        with atomic_path(picture) as temporary:
            draw_streaming(self.latency.chunk_ms, gaps, temporary)
        for logger in wandb_loggers(trainer):
            logger.log_image("streaming", [str(picture)], step=logging_step(trainer))

    def _write_scores(self, rows: list[dict[str, Any]]) -> None:
        assert self.samples is not None and self.latency is not None
        header = list({name: None for row in rows for name in row})
        write_csv(self.samples / "scores.csv", header, [[row.get(name) for name in header] for row in rows])
        write_atomically(self.samples / "latency.json", json.dumps(asdict(self.latency), indent=1) + "\n")
