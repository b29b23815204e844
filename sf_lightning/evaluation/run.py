"""Decodes clips in every way and scores them meanwhile; what is done is kept, and not done again.

Perceptual scores are made in other processes while the next batch is decoded; the times of a group are taken
before, when nothing else is going on.
"""

import contextlib
import hashlib
import itertools
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from torch import nn

from sf_lightning.data.lanes import DrawnClip
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.evaluation.clips import Clips, spread
from sf_lightning.evaluation.decoding import Decoding
from sf_lightning.evaluation.grid import OWN, Group, short_names
from sf_lightning.evaluation.results import Line, Results
from sf_lightning.evaluation.scores import Pending, Scoring
from sf_lightning.metrics.pool import gather, shared_pool
from sf_lightning.streaming.decoder import StreamingDecoder
from sf_lightning.vocoder.config import VocoderConfig

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


def digests_of(groups: Sequence[Group]) -> dict[str, str]:
    """Returns digests of all that groups are made with, by what it is called: weights, layouts, vocoders.

    Raises:
        FileNotFoundError, ValueError: if a vocoder is missing, or another mel's.
    """
    digests = dict[str, str]()
    for group in groups:
        path, layout = group.subject.path, group.ways[-1].layout
        digests[path] = group.subject.digest
        if layout != OWN:
            digests[f"layout {layout} of {path}"] = hashlib.sha256(repr(group.layout).encode()).hexdigest()[:16]
    for vocoder, mel in dict.fromkeys((group.vocoder, group.subject.description.model.mel) for group in groups):
        digests[_name(vocoder)] = vocoder.make(mel).digest
    return digests


def _name(vocoder: VocoderConfig) -> str:
    return f"vocoder {vocoder.checkpoint}"


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
        FileNotFoundError, ValueError: if a vocoder is missing, or another mel's; if a checkpoint or a vocoder is
            not what it was when the evaluation began.
        FloatingPointError: if a decoder makes something that is not finite.
        RuntimeError: if a scorer failed.
    """
    todo = [drawing.undone(group, results, settings.keep) for group in groups]
    total, done, what = sum(map(len, todo)), 0, ""

    def one_more() -> None:
        nonlocal done
        done += 1
        progress(what, done, total)

    waiting, models = _Waiting(results, one_more), _Models(settings.device, results.digests)
    if total:
        gather(shared_pool().warm_up())
        for pid in shared_pool().worker_pids:
            _put_behind(pid)
    try:
        for group, missing in zip(groups, todo, strict=True):
            if missing:
                waiting.settle(0)  # while times are taken nothing else is going on
                what = f"{short_names([group.subject.path])[group.subject.path]}, {group.ways[-1].layout}"
                progress(what, done, total)
                decoder, shown = models.decoder(group), drawing.shown(group, settings.keep)
                decoding = Decoding(group, decoder, results, scoring, settings.batch, shown, waiting.put, one_more)
                decoding.run(drawing.of(group), missing)
        waiting.settle(0)
    except BaseException:
        waiting.give_up()
        raise


def _put_behind(pid: int) -> None:
    """Lets decoding go before a process: its threads wait for each other, and one kept from its core keeps all."""
    with contextlib.suppress(OSError):  # it has ended, or is another user's; it scores alike in any case
        os.setpriority(os.PRIO_PROCESS, pid, max(METRICS_NICE, os.getpriority(os.PRIO_PROCESS, pid)))


class Drawing:
    """Clips as each checkpoint wants them, read once.

    Args:
        clips: Where they are taken from.
        count: How many, spread evenly.
    """

    def __init__(self, clips: Clips, count: int) -> None:
        self.clips, self.count = clips, count
        self.known: dict[ClipRequirements, list[DrawnClip]] = {}

    def of(self, group: Group) -> list[DrawnClip]:
        """Returns the clips of a group.

        Raises:
            ValueError: if none can be used.
        """
        description = group.subject.description
        requirements = ClipRequirements.from_config(description.model, description.tokenizer)
        if requirements not in self.known:
            self.known[requirements] = self.clips.draw(requirements, self.count)
            if not self.known[requirements]:
                raise ValueError("--data: no clip of it can be used; the lines above say why")
        return self.known[requirements]

    def shown(self, group: Group, keep: int) -> set[str]:
        """Keys of clips that are kept as sound and pictures: first those whose speaker has another clip."""
        drawn = self.of(group)
        return {
            each.clip.key
            for each in sorted((drawn[i] for i in spread(len(drawn))), key=lambda each: each.is_own_reference)[
                :keep
            ]
        }

    def undone(self, group: Group, results: Results, keep: int) -> set[tuple[str, str]]:
        """Ids of ways and keys of clips that have no line yet, or no sound where it is to be kept."""
        pairs = {(way.id, each.clip.key) for way in group.ways for each in self.of(group)} - results.lines.keys()
        shown = itertools.product(group.ways, self.shown(group, keep))
        return pairs | {(way.id, key) for way, key in shown if not results.sound(way, key).is_file()}


class _Models:
    """The decoder of the last group: the next one often has the same weights."""

    def __init__(self, device: str, digests: Mapping[str, str]) -> None:
        self.device, self.digests = device, digests
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
        if self.digests[_name(group.vocoder)] != vocoder.digest:
            raise ValueError(f"--vocoder {group.vocoder.checkpoint} changed while it was evaluated: copy it first")
        if isinstance(vocoder, nn.Module):
            vocoder = vocoder.to(self.device)
        self.last = group, StreamingDecoder(model, vocoder, group.decode, timed=False)
        return self.last[1]
