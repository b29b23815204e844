"""Decodes clips in every way and scores them meanwhile; what is done is kept, and not done again.

A *group* is decoded batch by batch: offline once, then streamed with each look-ahead. Perceptual scores are made
in other processes while the next batch is decoded; times are taken before, when nothing else is going on.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sf_lightning.audio.wave import write_wave
from sf_lightning.data.lanes import Drawn
from sf_lightning.evaluation.clips import Clips, Needs, kept
from sf_lightning.evaluation.grid import Group, Way, short_names
from sf_lightning.evaluation.pictures import draw_mels
from sf_lightning.evaluation.results import Line, Results
from sf_lightning.evaluation.scores import Pending, Scoring
from sf_lightning.metrics.pool import gather, shared_pool
from sf_lightning.metrics.speech import gap, resampled
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.streaming.latency import Latency, measure_latency
from sf_lightning.streaming.state import Chunk

MAX_TIMED = 3
"""Clips of each way, the longest ones, that are streamed by themselves to take the time."""

METRICS_NICE = 10
"""Of the processes that score, beside one that decodes."""

MAX_WAITING = 32
"""Clips whose scores may be on their way: memory stays bounded where metrics are slower than decoding."""


@dataclass(frozen=True)
class Settings:
    """How an evaluation runs.

    Args:
        keep: Clips whose sound and pictures are kept.
        batch: Clips that are decoded side by side.
        device: Where.
    """

    keep: int = 3
    batch: int = 8
    device: str = "cpu"


class _Clip(NamedTuple):
    """A clip on the device: what was drawn, its wave [N] and mel [T, F], the embedding [S] of its speaker."""

    drawn: Drawn
    wave: Tensor
    mel: Tensor
    speaker: Tensor

    @property
    def key(self) -> str:
        return self.drawn.clip.key

    @property
    def tokens(self) -> Tensor:
        return torch.from_numpy(self.drawn.clip.tokens)


@dataclass
class _Waiting:
    """Scores on their way into the results, in the order in which they were begun."""

    results: Results
    each: Callable[[], None]
    queue: deque[tuple[Line, Pending]] = field(default_factory=deque)

    def put(self, line: Line, pending: Pending) -> None:
        """Adds a clip, and keeps those that are ready."""
        self.queue.append((line, pending))
        self.settle(MAX_WAITING)

    def settle(self, most: int) -> None:
        """Keeps what is ready, and waits until no more than so many are not."""
        while self.queue and (len(self.queue) > most or self.queue[0][1].done):
            line, pending = self.queue.popleft()
            self.results.add(replace(line, scores=line.scores | pending.collect()))
            self.each()

    def give_up(self) -> None:
        """Keeps what is ready, and leaves the rest to the next time."""
        for line, pending in self.queue:
            if pending.done and not pending.failed:
                self.results.add(replace(line, scores=line.scores | pending.collect()))
            pending.cancel()
        self.queue.clear()


def evaluate(
    groups: Sequence[Group],
    drawing: "Drawing",
    results: Results,
    scoring: Scoring,
    settings: Settings,
    progress: Callable[[str, int, int], None],
) -> None:
    """Does what is not done yet.

    Args:
        groups: What is wanted.
        drawing: The clips.
        results: What is done, and where the rest goes.
        scoring: What clips are scored with.
        settings: How.
        progress: Told what is being done, clips done in all ways, and all there are to do.

    Raises:
        FileNotFoundError, ValueError: if a vocoder is missing, or another mel's.
        FloatingPointError: if a decoder makes something that is not finite.
        RuntimeError: if a scorer failed.
    """
    todo = [drawing.undone(group, results) for group in groups]
    total, done, what = sum(map(len, todo)), 0, ""

    def one_more() -> None:
        nonlocal done
        done += 1
        progress(what, done, total)

    waiting, models = _Waiting(results, one_more), _Models(settings.device)
    if total:
        gather(shared_pool().warm_up())
        for pid in shared_pool().worker_pids:
            # Decoding goes first: its threads wait for each other, and one that is kept from its core keeps all.
            os.setpriority(os.PRIO_PROCESS, pid, METRICS_NICE)
    try:
        for group, missing in zip(groups, todo, strict=True):
            if missing:
                waiting.settle(0)  # while times are taken nothing else is going on
                what = f"{short_names([group.subject.path])[group.subject.path]}, {group.ways[-1].layout}"
                progress(what, done, total)
                decoding = _Decoding(group, models.decoder(group), results, scoring, settings, waiting)
                decoding.run(drawing.of(group), missing)
        waiting.settle(0)
    except BaseException:
        waiting.give_up()
        raise


class Drawing:
    """Clips as each checkpoint wants them, read once.

    Args:
        clips: Where they are taken from.
        count: How many, spread evenly.
    """

    def __init__(self, clips: Clips, count: int) -> None:
        self.clips, self.count = clips, count
        self.known: dict[Needs, list[Drawn]] = {}

    def of(self, group: Group) -> list[Drawn]:
        """Returns the clips of a group.

        Raises:
            ValueError: if none can be used.
        """
        needs = Needs.of(group.subject.description)
        if needs not in self.known:
            self.known[needs] = self.clips.draw(needs, self.count)
            if not self.known[needs]:
                raise ValueError("--data: no clip of it can be used; the lines above say why")
        return self.known[needs]

    def undone(self, group: Group, results: Results) -> set[tuple[str, str]]:
        """Ids of ways and keys of clips."""
        return {(way.id, each.clip.key) for way in group.ways for each in self.of(group)} - results.lines.keys()


class _Models:
    """The decoder of the last group: the next one often has the same weights."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.last: tuple[Group, StreamingDecoder] | None = None

    def decoder(self, group: Group) -> StreamingDecoder:
        if self.last is None or (self.last[0].subject, self.last[0].layout) != (group.subject, group.layout):
            self.last = None  # before the next is there: two of them might not fit
            trained = group.subject.load()
            model = trained.model
            if group.layout != model.layout:
                model = replace(trained.description.model, layout=group.layout).build(model.state_dict())
            model = model.to(self.device)
        else:
            model = self.last[1].model
        vocoder = group.vocoder.make(model.mel.config)
        if isinstance(vocoder, nn.Module):
            vocoder = vocoder.to(self.device)
        self.last = group, StreamingDecoder(model, vocoder, group.decode)
        return self.last[1]


@dataclass
class _Decoding:
    """A group on its way; see `evaluate`."""

    group: Group
    decoder: StreamingDecoder
    results: Results
    scoring: Scoring
    settings: Settings
    waiting: _Waiting

    @torch.inference_mode()
    def run(self, drawn: Sequence[Drawn], missing: set[tuple[str, str]]) -> None:
        """Decodes and scores what is missing, by way and clip."""
        wanted = {key for _, key in missing}
        longest = sorted(drawn, key=lambda each: -len(each.clip.tokens))[:MAX_TIMED]
        times = self._take_times(self._clips([each for each in longest if each.clip.key in wanted]), missing)
        shown = {drawn[i].clip.key for i in kept(len(drawn), self.settings.keep)}
        todo = [each for each in drawn if each.clip.key in wanted]
        for start in range(0, len(todo), self.settings.batch):
            batch = self._clips(todo[start : start + self.settings.batch])
            offline: list[Chunk] = []
            for way in self.group.ways:
                if way.kind != "copy_synthesis" and not offline:
                    offline = self.decoder.offline([c.tokens for c in batch], [c.speaker for c in batch])
                mine = [i for i, clip in enumerate(batch) if (way.id, clip.key) in missing]
                made = self._made(way, [batch[i] for i in mine], [offline[i] for i in mine] if offline else [])
                for i, chunk in zip(mine, made, strict=True):
                    whole = offline[i] if way.kind == "streamed" else None
                    if batch[i].key in shown:  # before its line: what has a line is not done again
                        self._keep(way, batch[i], chunk, whole)
                    self._score(way, batch[i], chunk, whole, times.get((way.id, batch[i].key)))

    def _clips(self, drawn: Sequence[Drawn]) -> list[_Clip]:
        if not drawn:
            return []
        model, device = self.decoder.model, self.decoder.device
        crops = torch.stack([torch.from_numpy(each.reference) for each in drawn]).to(device)
        x_vectors = torch.stack([torch.from_numpy(each.clip.x_vector) for each in drawn]).to(device)
        waves = [torch.from_numpy(each.clip.wave).to(device) for each in drawn]
        mels = [model.mel(wave[None])[0] for wave in waves]
        return [*map(_Clip, drawn, waves, mels, model.encode_speaker(crops, x_vectors))]

    def _take_times(self, clips: Sequence[_Clip], missing: set[tuple[str, str]]) -> dict[tuple[str, str], Latency]:
        times = dict[tuple[str, str], Latency]()
        for way in (way for way in self.group.ways if way.kind == "streamed"):
            mine = [clip for clip in clips if (way.id, clip.key) in missing]
            self.decoder.config = self.group.config(way)
            for clip in mine[:1]:  # once for nothing: the first call of all is slower than any other
                measure_latency(self.decoder, clip.tokens[: 4 * self.decoder.tokens_per_block], clip.speaker)
            times |= {(way.id, clip.key): measure_latency(self.decoder, clip.tokens, clip.speaker) for clip in mine}
        return times

    def _made(self, way: Way, clips: Sequence[_Clip], offline: list[Chunk]) -> list[Chunk]:
        if way.kind == "copy_synthesis":
            return [Chunk(clip.mel, self.decoder.vocoder.decode(clip.mel[None])[0]) for clip in clips]
        if way.kind == "offline" or not clips:
            return offline
        inputs = [clip.tokens for clip in clips], [clip.speaker for clip in clips]
        return self.decoder.streamed(*inputs, self.group.config(way))

    def _edges(self, clip: _Clip) -> Tensor:
        """Where chunks meet if the clip is streamed, in frames [E]."""
        size = self.group.layout.block_size
        config = replace(self.group.decode, mode="cached").of(self.group.layout)
        return torch.tensor(config.edges(-(-len(clip.mel) // size)), dtype=torch.long) * size

    def _score(self, way: Way, clip: _Clip, made: Chunk, offline: Chunk | None, latency: Latency | None) -> None:
        vocoder = self.decoder.vocoder
        late = vocoder.right if self.group.decode.exact_vocoder else 0
        edges = self._edges(clip)
        edges = (edges - late)[edges > late] * vocoder.mel.hop_length
        wave = resampled(made.wave, vocoder.sample_rate, vocoder.mel.sample_rate)
        values = {} if offline is None else {"gap": gap([made.mel], [offline.mel])}
        if latency is not None:
            measured = latency.values()
            values |= {name: measured[name] for name in TIMES}
        line = Line(way.id, clip.key, clip.drawn.language, values, latency.chunk_ms if latency else ())
        self.waiting.put(line, self.scoring.start(clip.key, wave, clip.wave, made.mel, clip.mel, edges))

    def _keep(self, way: Way, clip: _Clip, made: Chunk, offline: Chunk | None) -> None:
        """Writes the sound, and of a streamed clip a picture of its mels."""
        vocoder = self.decoder.vocoder
        sounds = {
            "reference.flac": (clip.wave, vocoder.mel.sample_rate),
            "voice.flac": (torch.from_numpy(clip.drawn.reference), vocoder.mel.sample_rate),
            f"{way.id}.flac": (made.wave, vocoder.sample_rate),
        }
        for name, (wave, rate) in sounds.items():
            write_wave(self.results.sample(clip.key, name), wave.cpu().numpy(), rate)
        if offline is not None:
            mels = {"reference": clip.mel, "offline": offline.mel, "streamed": made.mel}
            path = self.results.sample(clip.key, f"{way.id}.webp")
            draw_mels(mels, self._edges(clip), vocoder.mel.frame_rate, path, width=8.0)


TIMES = ("wait_ms", "first_packet_ms", "real_time_factor", "chunk_ms")
"""Of an account of latency, what goes into the table."""
