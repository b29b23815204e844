"""Validation that listens: held-out clips decoded streaming and offline, scored, kept as sound and pictures.

Two baselines stand beside them: *copy-synthesis* (the true mel through the same vocoder), which no decoder
passes, and *look-up* (the mean mel of each token), which a decoder must beat to be worth its network.
"""

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import chain
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from sf_lightning.audio.wave import resampled
from sf_lightning.evaluation.clips import kept
from sf_lightning.evaluation.pictures import draw_streaming
from sf_lightning.metrics.speech import SpeechScores, gap, within
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.latency import measure_latency
from sf_lightning.streaming.state import Chunk
from sf_lightning.training.callbacks.keeping import keep_clip, samples_folder
from sf_lightning.training.callbacks.listening import Listening
from sf_lightning.training.callbacks.preemption import stop_if_requested
from sf_lightning.training.datamodule import ShardDataModule
from sf_lightning.training.module import StreamFlowModule
from sf_lightning.training.ranks import gather_over_ranks

BASELINES = ("copy_synthesis", "look_up")

LATENCY_TOKENS = 75
"""Three seconds of a clip are streamed by themselves for the latency account."""


@dataclass
class _Clip:
    """A held-out clip on the device: tokens [L], wave [N], mel [T, F], reference crop [N]."""

    key: str
    tokens: Tensor
    wave: Tensor
    mel: Tensor
    reference: Tensor
    x_vector: Tensor


class StreamingValidation(Listening):
    """Decodes the clips of validation as the product will, with the averaged weights, and logs what it hears.

    Logs `{streamed,offline}/{pesq_wb,stoi,visqol,mel_l1,seam_db,no_score}`, `streamed/gap` to offline,
    `latency/*`, `gap/lookahead_*` (the gap if more were waited for), and once the same scores of the baselines;
    writes waves and pictures under `samples/step-*/` of the run's folder, and to W&B, and there each clip's scores
    (`scores.csv`) and the account of latency (`latency.json`); ends a fit with a table and a page, `report.html`.

    Under a bound on latency, `streamed_within_500_ms/{pesq_wb,stoi,visqol}` are the streamed scores if the first
    chunk waits for no more than 500 ms of tokens, else the lowest that there are: one number for a sweep.

    Args:
        keep: Clips whose sound and picture are kept.
        within_ms: The bounds.
    """

    def __init__(self, keep: int = 2, within_ms: Sequence[int] = (250, 500, 1000)) -> None:
        super().__init__()
        self.keep, self.within_ms = keep, within_ms

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes ready, reads the look-up."""
        assert isinstance(pl_module, StreamFlowModule)
        self.ready(pl_module.model.mel.config.sample_rate)
        self.vocoder = pl_module.vocoder.make(pl_module.model.mel.config)
        datamodule = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(datamodule, ShardDataModule)
        with datamodule.train[0].open("lookup.npy") as file:
            self.look_up = torch.from_numpy(np.load(file))

    def listen(
        self, trainer: L.Trainer, pl_module: L.LightningModule, datamodule: ShardDataModule
    ) -> dict[str, float]:
        """Decodes, scores and keeps."""
        assert isinstance(pl_module, StreamFlowModule)
        if isinstance(self.vocoder, torch.nn.Module):
            self.vocoder.to(pl_module.device)
        clips = self._clips(pl_module, datamodule)
        made: dict[str, list[Chunk]] = {}
        if not all(way in self.rows for way in BASELINES):
            made |= self._baselines(clips)
        # Not compiled: every chunk at the edges of clips has a shape of its own.
        with torch.compiler.set_stance("force_eager"):
            decoder = pl_module.decoder(self.vocoder)
            inputs = (torch.stack(each) for each in zip(*((c.reference, c.x_vector) for c in clips), strict=True))
            speakers = list(decoder.model.encode_speaker(*inputs))
            tokens = [clip.tokens for clip in clips]
            stop_if_requested(trainer)
            made["offline"] = decoder.decode_offline(tokens, list(speakers))
            stop_if_requested(trainer)
            made["streamed"] = decoder.decode(tokens, list(speakers))
            stop_if_requested(trainer)
            self.latency = measure_latency(decoder, tokens[0][:LATENCY_TOKENS], speakers[0])
            gaps = self._gaps(decoder, tokens, speakers, made["offline"])
        stop_if_requested(trainer)
        size = decoder.model.layout.block_size
        edges = [torch.tensor(decoder.config.edges(-(-len(clip.mel) // size))) * size for clip in clips]
        heard: list[dict[str, Any]] = []
        for way, chunks in made.items():
            scores = self._score(decoder, chunks, clips, edges)
            self.rows[way] = scores.compute()
            for clip, chunk, offline, row in zip(clips, chunks, made["offline"], scores.clips, strict=True):
                # Not by `gap`, which asks all ranks: they need not have as many clips.
                own = {"gap": float((chunk.mel - offline.mel).abs().mean())} if way == "streamed" else {}
                heard.append({"way": way, "key": clip.key} | row | own)
        self.rows["streamed"]["gap"] = gap(*([c.mel for c in made[way]] for way in ("streamed", "offline")))
        values = {f"{way}/{name}": value for way in made for name, value in self.rows[way].items()}
        values |= {f"latency/{name}": value for name, value in self.latency.values().items()}
        values |= {f"gap/lookahead_{blocks}": value for blocks, value in gaps.items()}
        for bound in self.within_ms:
            bounded = within(self.rows["streamed"], self.latency.wait_ms, bound)
            values |= {f"streamed_within_{bound}_ms/{name}": value for name, value in bounded.items()}
        heard = list(chain.from_iterable(gather_over_ranks(heard)))
        if trainer.is_global_zero:
            self._keep(trainer, decoder, clips, made, speakers, edges)
            self._draw(trainer, gaps)
            self._write(heard)
        return values

    # -- decoding -------------------------------------------------------------------------------------

    def _clips(self, module: StreamFlowModule, datamodule: ShardDataModule) -> list[_Clip]:
        clips = []
        for drawn in datamodule.rank_clips:
            wave = torch.from_numpy(drawn.clip.wave).to(module.device)
            clips.append(
                _Clip(
                    key=drawn.clip.key,
                    tokens=torch.from_numpy(drawn.clip.tokens),
                    wave=wave,
                    mel=module.model.mel(wave[None])[0],
                    reference=torch.from_numpy(drawn.reference).to(module.device),
                    x_vector=torch.from_numpy(drawn.clip.x_vector).to(module.device),
                )
            )
        return clips

    def _baselines(self, clips: list[_Clip]) -> dict[str, list[Chunk]]:
        mels = {
            "copy_synthesis": [clip.mel for clip in clips],
            "look_up": [self.look_up[clip.tokens].flatten(0, 1).to(clip.mel) for clip in clips],
        }
        return {way: [Chunk(mel, self.vocoder.decode(mel[None])[0]) for mel in each] for way, each in mels.items()}

    def _gaps(
        self, decoder: StreamingDecoder, tokens: list[Tensor], speakers: list[Tensor], offline: list[Chunk]
    ) -> dict[int, float]:
        """The gap of the clips that are kept, by look-ahead in blocks: q, twice that, and on until all is seen."""
        layout, evaluations = decoder.model.layout, decoder.config.num_evaluations
        some = self._kept(len(tokens))
        if decoder.config.mode != "cached" or layout.lookahead == 0 or not some:
            return {}
        given = [tokens[i] for i in some], [speakers[i] for i in some]
        doubled = [2**i for i in range(evaluations.bit_length()) if 2**i < evaluations]
        found = {}
        for blocks in (layout.lookahead * factor for factor in [*doubled, evaluations]):
            streamed = decoder.decode(*given, replace(decoder.config, lookahead=blocks))
            found[blocks] = gap([chunk.mel for chunk in streamed], [offline[i].mel for i in some])
        return found

    def _score(
        self, decoder: StreamingDecoder, chunks: list[Chunk], clips: list[_Clip], edges: list[Tensor]
    ) -> SpeechScores:
        # The references are at the mel's rate, and there the metrics are defined: the vocoder's waves go there.
        rate, mel = decoder.vocoder.sample_rate, decoder.vocoder.mel
        late = decoder.vocoder.right if decoder.config.exact_vocoder else 0
        scores = SpeechScores(mel.sample_rate, decoder.device)
        scores.update(
            [resampled(chunk.wave, rate, mel.sample_rate) for chunk in chunks],
            [clip.wave for clip in clips],
            [chunk.mel for chunk in chunks],
            [clip.mel for clip in clips],
            [(edge - late)[edge > late] * mel.hop_length for edge in edges],
        )
        return scores

    # -- keeping --------------------------------------------------------------------------------------

    def _keep(
        self,
        trainer: L.Trainer,
        decoder: StreamingDecoder,
        clips: list[_Clip],
        made: dict[str, list[Chunk]],
        speakers: list[Tensor],
        edges: list[Tensor],
    ) -> None:
        rate = decoder.vocoder.sample_rate
        rates = {"reference": decoder.vocoder.mel.sample_rate, "offline": rate, "streamed": rate}
        self.samples = samples_folder(trainer)
        for i in self._kept(len(clips)):
            clip, offline, streamed = clips[i], made["offline"][i], made["streamed"][i]
            sounds = {"reference": clip.wave, "offline": offline.wave, "streamed": streamed.wave}
            mels = {"reference": clip.mel, "offline": offline.mel, "streamed": streamed.mel}
            frame_rate = decoder.vocoder.mel.frame_rate
            keep_clip(trainer, self.samples, clip.key, sounds, rates, mels, edges[i], frame_rate)
            # With these two, `sf-decode` makes the same wave again.
            np.save(self.samples / f"{clip.key}.tokens.npy", clip.tokens.numpy())
            np.save(self.samples / f"{clip.key}.speaker.npy", speakers[i].cpu().numpy())

    def _write(self, heard: list[dict[str, Any]]) -> None:
        assert self.samples is not None and self.latency is not None
        with (self.samples / "scores.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list({name: None for row in heard for name in row}))
            writer.writeheader()
            writer.writerows(heard)
        (self.samples / "latency.json").write_text(json.dumps(asdict(self.latency), indent=1) + "\n")

    def _kept(self, count: int) -> list[int]:
        return kept(count, self.keep)

    def _draw(self, trainer: L.Trainer, gaps: dict[int, float]) -> None:
        assert self.samples is not None and self.latency is not None
        picture = self.samples / "streaming.png"
        draw_streaming(self.latency.chunk_ms, gaps, picture)
        for logger in trainer.loggers:
            if isinstance(logger, WandbLogger):
                logger.log_image("streaming", [str(picture)], step=max(0, trainer.global_step - 1))
