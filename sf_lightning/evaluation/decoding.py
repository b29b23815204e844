"""Decodes the clips of a group batch by batch, offline once, streamed with each look-ahead, and has them scored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from sf_lightning.audio.wave import resampled, write_wave
from sf_lightning.data.lanes import DrawnClip
from sf_lightning.evaluation.grid import Group, Way
from sf_lightning.evaluation.pictures import draw_mels
from sf_lightning.evaluation.results import Line, Results
from sf_lightning.evaluation.scores import Pending, Scoring
from sf_lightning.evaluation.table import MAX_TIMED, TIMES
from sf_lightning.metrics.speech import gap
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.latency import LatencyReport, measure_latency
from sf_lightning.streaming.state import Chunk


class HeldClip(NamedTuple):
    """What was drawn, its wave [N] and mel [T, F] on the CPU, the embedding [S] of its speaker on the device."""

    drawn: DrawnClip
    wave: Tensor
    mel: Tensor
    speaker: Tensor

    @property
    def key(self) -> str:
        """Of the clip."""
        return self.drawn.clip.key

    @property
    def tokens(self) -> Tensor:
        """[L], on the CPU."""
        return torch.from_numpy(self.drawn.clip.tokens)


@dataclass
class Decoding:
    """A group on its way.

    Args:
        group: What is decoded.
        decoder: With what.
        results: Where sound and pictures go.
        scoring: What clips are scored with.
        batch: Clips side by side.
        shown: Clips whose sound and pictures are kept, by key.
        put: Takes each clip and its scores, of which some are still on their way.
        heard: Told of each clip whose sound alone was to be made.
    """

    group: Group
    decoder: StreamingDecoder
    results: Results
    scoring: Scoring
    batch: int
    shown: set[str]
    put: Callable[[Line, Pending], None]
    heard: Callable[[], None]

    @torch.inference_mode()
    def run(self, drawn: Sequence[DrawnClip], missing: set[tuple[str, str]]) -> None:
        """Decodes what is missing, by way and clip, and scores what has no line yet."""
        wanted, unscored = {key for _, key in missing}, missing - self.results.lines.keys()
        longest = sorted(drawn, key=lambda each: -len(each.clip.tokens))[:MAX_TIMED]
        times = self._take_times(self._clips([each for each in longest if each.clip.key in wanted]), unscored)
        todo = [each for each in drawn if each.clip.key in wanted]
        for start in range(0, len(todo), self.batch):
            batch = self._clips(todo[start : start + self.batch])
            offline: list[Chunk] = []
            for way in self.group.ways:
                if way.kind != "copy_synthesis" and not offline:
                    offline = _read(
                        self.decoder.decode_offline([c.tokens for c in batch], [c.speaker for c in batch])
                    )
                mine = [i for i, clip in enumerate(batch) if (way.id, clip.key) in missing]
                made = self._made(way, [batch[i] for i in mine], [offline[i] for i in mine] if offline else [])
                for i, chunk in zip(mine, made, strict=True):
                    whole = offline[i] if way.kind == "streamed" else None
                    if batch[i].key in self.shown:
                        self._keep(way, batch[i], chunk, whole)
                    if (way.id, batch[i].key) in unscored:
                        self._score(way, batch[i], chunk, whole, times.get((way.id, batch[i].key)))
                    else:
                        self.heard()

    def _clips(self, drawn: Sequence[DrawnClip]) -> list[HeldClip]:
        if not drawn:
            return []
        model, device = self.decoder.model, self.decoder.device
        crops = torch.stack([torch.from_numpy(each.reference) for each in drawn]).to(device)
        x_vectors = torch.stack([torch.from_numpy(each.clip.x_vector) for each in drawn]).to(device)
        waves = [torch.from_numpy(each.clip.wave) for each in drawn]
        mels = _on_cpu([model.mel(wave[None].to(device))[0] for wave in waves])
        return [*map(HeldClip, drawn, waves, mels, model.encode_speaker(crops, x_vectors))]

    def _take_times(
        self, clips: Sequence[HeldClip], missing: set[tuple[str, str]]
    ) -> dict[tuple[str, str], LatencyReport]:
        times = dict[tuple[str, str], LatencyReport]()
        for way in (way for way in self.group.ways if way.kind == "streamed"):
            mine = [clip for clip in clips if (way.id, clip.key) in missing]
            # Not the decoder that makes the rest: on a GPU each look at the clock waits for the device.
            timed = replace(self.decoder, config=self.group.config(way), timed=True)
            for clip in mine[:1]:  # once for nothing: the first call of all is slower than any other
                measure_latency(timed, clip.tokens[: 4 * timed.tokens_per_block], clip.speaker)
            times |= {(way.id, clip.key): measure_latency(timed, clip.tokens, clip.speaker) for clip in mine}
        return times

    def _made(self, way: Way, clips: Sequence[HeldClip], offline: list[Chunk]) -> list[Chunk]:
        if way.kind == "copy_synthesis":
            mels = [clip.mel.to(self.decoder.device) for clip in clips]
            return _read([Chunk(mel, self.decoder.vocoder.decode(mel[None])[0]) for mel in mels])
        if way.kind == "offline" or not clips:
            return offline
        inputs = [clip.tokens for clip in clips], [clip.speaker for clip in clips]
        return _read(self.decoder.decode(*inputs, self.group.config(way)))

    def _edges(self, clip: HeldClip) -> Tensor:
        """Where chunks meet if the clip is streamed, in frames [E]."""
        size = self.group.layout.block_size
        config = replace(self.group.decode, mode="cached").resolve(self.group.layout)
        return torch.tensor(config.edges(-(-len(clip.mel) // size)), dtype=torch.long) * size

    def _score(
        self, way: Way, clip: HeldClip, made: Chunk, offline: Chunk | None, latency: LatencyReport | None
    ) -> None:
        vocoder = self.decoder.vocoder
        late = vocoder.right if self.group.decode.exact_vocoder else 0
        edges = self._edges(clip)
        edges = (edges - late)[edges > late] * vocoder.mel.hop_length
        wave = resampled(made.wave, vocoder.sample_rate, vocoder.mel.sample_rate)
        values = {} if offline is None else {"gap": gap([made.mel], [offline.mel])}
        if latency is not None:
            measured = latency.values()
            values |= {name: measured[name] for name in TIMES}
        chunk_ms = latency.chunk_ms if latency else ()
        line = Line(way.id, clip.key, clip.drawn.language, len(clip.mel), values, chunk_ms)
        self.put(line, self.scoring.start(clip.key, wave, clip.wave, made.mel, clip.mel, edges))

    def _keep(self, way: Way, clip: HeldClip, made: Chunk, offline: Chunk | None) -> None:
        """Writes a picture of the mels of a streamed clip, then the sound: where it is, the rest is there."""
        vocoder = self.decoder.vocoder
        if offline is not None:
            mels = {"reference": clip.mel, "offline": offline.mel, "streamed": made.mel}
            path = self.results.sample(clip.key, f"{way.id}.webp")
            draw_mels(mels, self._edges(clip), vocoder.mel.frame_rate, path, width=8.0)
        sounds = {self.results.sample(clip.key, "reference.flac"): (clip.wave, vocoder.mel.sample_rate)}
        if not clip.drawn.is_own_reference:
            path = self.results.sample(clip.key, "voice.flac")
            sounds[path] = torch.from_numpy(clip.drawn.reference), vocoder.mel.sample_rate
        sounds[self.results.sound(way, clip.key)] = made.wave, vocoder.sample_rate
        for path, (wave, rate) in sounds.items():
            fresh = path.with_name(f".{path.name}")
            write_wave(fresh, wave.cpu().numpy(), rate)
            fresh.replace(path)


def _read(chunks: Sequence[Chunk]) -> list[Chunk]:
    """Chunks of a batch, on the CPU."""
    return [*map(Chunk, _on_cpu([chunk.mel for chunk in chunks]), _on_cpu([chunk.wave for chunk in chunks]))]


def _on_cpu(some: Sequence[Tensor]) -> list[Tensor]:
    """Tensors that differ in their first size alone, read at once: on a GPU each time waits for the device."""
    return [*torch.cat([*some]).cpu().split([len(each) for each in some])] if some else []
