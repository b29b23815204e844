"""The order of training clips: a pure function of (seed, epoch, lane), independent of the number of processes.

A run has V fixed *lanes*. Ranks and loader workers own whole lanes, and a training step takes one pack of each. In
every epoch the shards of a set are permuted and dealt to the lanes; a lane reads its shards in groups, each from
start to end, and permutes the samples within a group. Where several sets are mixed, the set of each clip is drawn
by weight. There is no shuffle buffer with hidden state: a lane resumes from a few numbers and reads only its
current groups again. The next groups are read ahead in threads.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from sf_lightning.audio.wave import Wave
from sf_lightning.data.groups import Group, GroupContent, GroupReader, SampleName, ShardSlice
from sf_lightning.data.perturb import Perturbation
from sf_lightning.data.references import References
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import BadSample, Clip
from sf_lightning.data.shards import ShardSet
from sf_lightning.files.text import get_logger
from sf_lightning.flow.noise import keyed_random

log = get_logger(__name__)


class SetPosition(NamedTuple):
    """Position of a lane in one set.

    Attributes:
        epoch: Number of passes of the lane through its shards that are complete.
        sample: Number of the next sample within the lane's epoch; after the last one the next epoch begins.
    """

    epoch: int = 0
    sample: int = 0


@dataclass(frozen=True)
class LaneState:
    """State of a lane; checkpoints store it under these names.

    Attributes:
        places: Position in each set.
        turn: Number of clips drawn so far; key of the draw of the next clip's set.
        block: Number of blocks of the next clip that are packed already.
        pack: Number of packs made so far; key of the random draws of training.
    """

    places: tuple[SetPosition, ...] = ()
    turn: int = 0
    block: int = 0
    pack: int = 0


@dataclass
class DrawnClip:
    """A clip drawn from a set, with a reference crop of the same speaker.

    Attributes:
        clip: The clip.
        reference: Reference crop [N], from another clip of the speaker if there is one.
        state: State of the lane before the clip.
        after: State of the lane when all blocks of the clip are packed.
        language: Language of the clip; empty if unknown, or in training.
        is_own_reference: Whether the crop is of the clip itself, there being no other; always False in training.
        speaker: Speaker of the clip; empty if unknown, or in training.
    """

    clip: Clip
    reference: Wave
    state: LaneState = LaneState()
    after: LaneState = LaneState()
    language: str = ""
    is_own_reference: bool = False
    speaker: str = ""


@dataclass(frozen=True)
class LaneConfig:
    """How lanes read.

    Args:
        seed: Seed of the order.
        num_lanes: Number of lanes V, the same for the whole run.
        requirements: What the model requires of clips; shorter ones are skipped.
        group: Number of shards whose samples are shuffled together.
        max_bad_share: Share of broken samples above which training stops.
        perturbation: Random changes of speed and level.

    Raises:
        ValueError: if `max_bad_share` is not in [0, 1).
    """

    seed: int
    num_lanes: int
    requirements: ClipRequirements
    group: int = 4
    max_bad_share: float = 0.1
    perturbation: Perturbation = Perturbation()

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share < 1:
            # At 1, a lane whose samples are all broken would look for a good one forever.
            raise ValueError(f"data.max_bad_share is {self.max_bad_share}: expected 0 or more, and less than 1")


class Lane:
    """One lane of an endless, shuffled stream of clips from one shard set or several.

    Args:
        sets: The sets.
        lane: Number of this lane, 0 .. num_lanes - 1.
        config: How lanes read.
        weights: Relative frequency of the clips of each set; by default equal.

    Attributes:
        skipped: Number of broken samples met so far, by cause.

    Raises:
        ValueError: if a set has fewer samples than there are lanes.
    """

    def __init__(
        self, sets: Sequence[ShardSet], lane: int, config: LaneConfig, weights: Sequence[float] | None = None
    ) -> None:
        self.lane, self.config = lane, config
        self.skipped: Counter[str] = Counter()
        self.readers = [_SetReader(shards, i, lane, config, self.skipped) for i, shards in enumerate(sets)]
        frequencies = np.asarray(weights or [1.0] * len(sets), np.float64)
        self.probabilities = frequencies / frequencies.sum()

    def draw_clips(self, state: LaneState) -> Iterator[DrawnClip]:
        """Yields clips without end, starting at a state.

        Raises:
            RuntimeError: if too many samples are broken, or all clips are too short.
        """
        positions = list(state.places) or [SetPosition()] * len(self.readers)
        streams = [reader.read_from(position) for reader, position in zip(self.readers, positions, strict=True)]
        turn, block = state.turn, state.block
        while True:
            number = self._draw_set(turn) if len(streams) > 1 else 0
            clip, reference, positions[number] = next(streams[number])
            before = replace(state, places=tuple(positions), turn=turn, block=block)
            epoch, sample = positions[number]
            positions[number], turn, block = SetPosition(epoch, sample + 1), turn + 1, 0
            after = replace(before, places=tuple(positions), turn=turn, block=0)
            yield DrawnClip(clip, reference, before, after)

    def _draw_set(self, turn: int) -> int:
        """Returns the number of the set that the next clip is taken from."""
        random = keyed_random("set", self.config.seed, self.lane, turn)
        return int(random.choice(len(self.readers), p=self.probabilities))


@dataclass
class _SetReader:
    """Reads the clips of one lane from one set."""

    shards: ShardSet
    number: int
    lane: int
    config: LaneConfig
    skipped: Counter[str]
    num_read: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    num_short: int = 0
    longest: int = 0

    def __post_init__(self) -> None:
        if self.shards.samples < self.config.num_lanes:
            raise ValueError(
                f"{self.shards.name} has {self.shards.samples} samples for {self.config.num_lanes} lanes: "
                "lower --data.lanes or build a larger set"
            )

    def read_from(self, position: SetPosition) -> Iterator[tuple[Clip, Wave, SetPosition]]:
        """Yields clips without end, each with its reference crop and position; skips broken ones."""
        groups = self._groups_from(position)
        group = next(groups)
        reader = self._reader_of(group)
        for following in groups:
            next_reader = self._reader_of(following)
            yield from self._draw_group(group, reader.finish(), next_reader)
            group, reader = following, next_reader

    def _reader_of(self, group: Group) -> GroupReader:
        return GroupReader(self.shards, group.slices, self.lane / self.config.num_lanes)

    def _random(self, purpose: str, *key: int) -> np.random.Generator:
        # Adding a set leaves the draws of the first one unchanged.
        return keyed_random(purpose, self.config.seed, self.number, *key)

    def _groups_from(self, position: SetPosition) -> Iterator[Group]:
        """Yields the groups of this lane from a position on, without end."""
        epoch, sample = position
        while True:
            start = 0
            for number, slices in enumerate(self._split_epoch(epoch)):
                end = start + sum(part.size(self.shards.manifest.shards[part.shard].samples) for part in slices)
                if sample < end:
                    yield Group(epoch, number, start, max(0, sample - start), slices)
                start = end
            epoch, sample = epoch + 1, 0

    def _split_epoch(self, epoch: int) -> list[list[ShardSlice]]:
        """Returns the shards or slices of this lane in an epoch, in groups that are shuffled together.

        The first group of some lanes is smaller, so that lanes do not reach the ends of groups at the same time.
        """
        lanes, size = self.config.num_lanes, self.config.group
        shards = [i for i, shard in enumerate(self.shards.manifest.shards) if shard.samples]
        step = -(-lanes // len(shards))
        order = self._random("shards", epoch).permutation(len(shards) * step)[self.lane :: lanes]
        slices = [ShardSlice(shards[i // step], int(i % step), step) for i in order]
        first = size - self.lane % size if len(slices) > size else size
        return [slices[:first], *(slices[i : i + size] for i in range(first, len(slices), size))]

    def _draw_group(
        self, group: Group, content: GroupContent, next_reader: GroupReader
    ) -> Iterator[tuple[Clip, Wave, SetPosition]]:
        rows, raws = content
        random = self._random("samples", group.epoch, self.lane, group.number)
        requirements = self.config.requirements
        decode = partial(self.shards.decode, x_vector_width=requirements.x_vector_width)
        order = [rows[i] for i in random.permutation(len(rows))]
        speakers = [(name, row.speaker) for name, row in order]
        short = [self._frames(row.tokens) < requirements.min_frames for _, row in order]
        crop_starts = random.random(len(order))
        references = References(raws, decode, speakers, crop_starts, requirements.crop_samples, short)
        for i in range(group.skip, len(order)):
            next_reader.read_due(i / len(order))
            name, row = order[i]
            raw = raws.pop(name, None)  # never needed again: the speaker's next clip has its crop
            if self._is_too_short(row.tokens, name):
                continue
            try:
                if raw is None:
                    raise BadSample("damaged", "its bytes do not match the checksum in the index")
                clip = decode(raw)
                reference = references.crop_for(i, clip)
                clip = self._perturb(clip, group.epoch, group.start + i)
                self.num_read += 1
            except BadSample as error:
                self._skip(name, error)
            else:
                if not self._is_too_short(len(clip.tokens), name):  # a clip made faster may have become too short
                    yield clip, reference, SetPosition(group.epoch, group.start + i)

    def _frames(self, tokens: int) -> int:
        return tokens * self.shards.manifest.tokenizer.frames_per_token

    def _is_too_short(self, tokens: int, name: SampleName) -> bool:
        """Returns whether a clip of `tokens` tokens is skipped; raises if the first 20 clips all are."""
        required, folder = self.config.requirements.min_frames, self.shards.name
        frames = self._frames(tokens)
        self.longest = max(self.longest, frames)
        if frames >= required:
            return False
        if self.num_short == 0:
            log.warning("%s of %s: clips of less than %d frames are skipped", name.key, folder, required)
        self.num_short += 1
        if self.num_short >= 20 and self.longest < required:
            raise RuntimeError(
                f"the first {self.num_short} clips of {folder} in lane {self.lane} are too short: the longest has "
                f"{self.longest} frames, expected {required}: lower --model.segments.frames"
            )
        return True

    def _perturb(self, clip: Clip, epoch: int, sample: int) -> Clip:
        if not self.config.perturbation.is_active:
            return clip
        manifest, random = self.shards.manifest, self._random("perturbation", epoch, self.lane, sample)
        return self.config.perturbation.apply(clip, manifest.mel, manifest.tokenizer.frames_per_token, random)

    def _skip(self, name: SampleName, error: BadSample) -> None:
        self.num_read += 1
        self.bad[error.cause] += 1
        self.skipped[error.cause] += 1
        shard, limit = self.shards.manifest.shards[name.shard].name, self.config.max_bad_share
        log.warning("skipped %s in %s of %s: %s", name.key, shard, self.shards.name, error)
        bad = self.bad.total()
        if self.num_read >= 20 and bad > limit * self.num_read:
            causes = ", ".join(f"{cause}: {count}" for cause, count in self.bad.items())
            raise RuntimeError(
                f"{bad} of {self.num_read} samples of {self.shards.name} are broken ({causes}), the last one "
                f"{name.key} in {shard}: repair the set with sf-shards verify, or raise --data.max_bad_share "
                f"above {limit}"
            )
