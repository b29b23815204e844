"""The order of samples: a pure function of (seed, epoch, lane) that does not know the world size.

A run has V fixed *lanes*; ranks and workers own whole lanes, and a step takes one pack of each. In every
epoch the shards of a set are permuted and dealt to the lanes; a lane reads its shards in groups, from start to
end, and permutes the samples within a group. Where sets are mixed, whose turn it is is drawn by weight. There is
no buffer with a hidden state: a lane resumes from a few numbers, having read nothing but the groups it is in.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import numpy as np

from sf_lightning.audio.wave import Wave
from sf_lightning.data.perturb import Perturbation
from sf_lightning.data.references import References, SampleName
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import BadSample, Clip, RawSample, decode_clip
from sf_lightning.data.shards import ShardSet

log = logging.getLogger(__name__)


class SetPosition(NamedTuple):
    """Where a lane stands in one set.

    Attributes:
        epoch: Times it has begun its shards.
        sample: The next sample, counted within the lane's epoch; past its last one the next epoch begins.
    """

    epoch: int = 0
    sample: int = 0


@dataclass(frozen=True)
class LaneState:
    """Where a lane stands.

    Attributes:
        places: In each set.
        turn: Clips drawn so far; it keys whose turn it is.
        block: Blocks of the next clip that are used up already.
        pack: Packs made so far; it keys the noise of training.
    """

    places: tuple[SetPosition, ...] = ()
    turn: int = 0
    block: int = 0
    pack: int = 0


@dataclass
class DrawnClip:
    """A clip that a lane has drawn, and a crop of the same speaker from another clip where there is one.

    Attributes:
        clip: The clip.
        reference: The crop, [N].
        state: Where the lane stood before it.
        after: Where the lane stands when the clip is used up.
        language: Of the clip, where it was asked for and is known.
        is_own_reference: Whether the crop is of the clip itself, there being no other, where it was asked for.
    """

    clip: Clip
    reference: Wave
    state: LaneState = LaneState()
    after: LaneState = LaneState()
    language: str = ""
    is_own_reference: bool = False


@dataclass(frozen=True)
class _Part:
    """Every `of`-th sample of a shard, from the `part`-th on: how few shards feed many lanes."""

    shard: int
    part: int
    of: int

    def size(self, samples: int) -> int:
        return len(range(self.part, samples, self.of))


@dataclass(frozen=True)
class LaneConfig:
    """How lanes read.

    Args:
        seed: Of the order.
        num_lanes: V, the same for the whole life of a run.
        requirements: What the model requires of clips; shorter ones are passed over.
        group: Shards whose samples are shuffled together.
        max_bad_share: Stop when more than this share of the samples is broken.
        perturbation: Of clips, at random.
    """

    seed: int
    num_lanes: int
    requirements: ClipRequirements
    group: int = 4
    max_bad_share: float = 0.1
    perturbation: Perturbation = Perturbation()

    def __post_init__(self) -> None:
        if not 0 <= self.max_bad_share < 1:
            # At 1, a lane whose samples are all broken would look for a good one for ever.
            raise ValueError(f"data.max_bad_share is {self.max_bad_share}: wanted 0 or more, and less than 1")


class Lane:
    """One lane of an endless, shuffled stream over one shard set or several.

    Args:
        sets: The sets.
        lane: Number of this lane, 0 .. num_lanes - 1.
        reading: How.
        weights: Of each set, how often it is drawn from; by default all alike.

    Attributes:
        skipped: Broken samples by cause, counted while reading.

    Raises:
        ValueError: if a set has fewer samples than there are lanes.
    """

    def __init__(
        self, sets: Sequence[ShardSet], lane: int, config: LaneConfig, weights: Sequence[float] | None = None
    ) -> None:
        self.lane, self.config = lane, config
        self.skipped: Counter[str] = Counter()
        self.readers = [_SetReader(each, i, lane, config, self.skipped) for i, each in enumerate(sets)]
        weighed = np.asarray(weights or [1.0] * len(sets), np.float64)
        self.chances = weighed / weighed.sum()

    def draw_clips(self, state: LaneState) -> Iterator[DrawnClip]:
        """Yields clips without end, from a state on.

        Raises:
            RuntimeError: if too many samples are broken.
        """
        places = list(state.places) or [SetPosition()] * len(self.readers)
        streams = [reader.draw_clips(place) for reader, place in zip(self.readers, places, strict=True)]
        turn, block = state.turn, state.block
        while True:
            which = self._turn(turn) if len(streams) > 1 else 0
            found = next(streams[which])
            places[which] = found.place
            before = replace(state, places=tuple(places), turn=turn, block=block)
            places[which], turn, block = SetPosition(found.place.epoch, found.place.sample + 1), turn + 1, 0
            after = replace(before, places=tuple(places), turn=turn, block=0)
            yield DrawnClip(found.clip, found.reference, before, after)

    def _turn(self, turn: int) -> int:
        """Which set is drawn from."""
        random = np.random.default_rng([self.config.seed, self.lane, turn, 2])
        return int(random.choice(len(self.readers), p=self.chances))


class _Found(NamedTuple):
    """A clip of a set, a crop of its speaker, and where it lies."""

    clip: Clip
    reference: Wave
    place: SetPosition


@dataclass
class _SetReader:
    """A lane's way through one set."""

    shards: ShardSet
    number: int
    lane: int
    config: LaneConfig
    skipped: Counter[str]
    seen: int = 0
    bad: Counter[str] = field(default_factory=Counter)
    short: int = 0
    longest: int = 0

    def __post_init__(self) -> None:
        if self.shards.samples < self.config.num_lanes:
            raise ValueError(
                f"{self.shards.folder} has {self.shards.samples} samples for {self.config.num_lanes} lanes: "
                "lower --data.lanes or build a larger set"
            )

    def draw_clips(self, place: SetPosition) -> Iterator[_Found]:
        """Yields clips without end; what is broken is passed over, unless it is too much."""
        epoch, sample = place
        while True:
            start = 0
            for number, group in enumerate(self._groups(epoch)):
                size = sum(part.size(self._samples(part)) for part in group)
                if sample < start + size:
                    yield from self._draw_group(group, (epoch, number), start, sample)
                    sample = start + size
                start += size
            epoch, sample = epoch + 1, 0

    def _samples(self, part: _Part) -> int:
        return self.shards.manifest.shards[part.shard].samples

    def _random(self, *key: int) -> np.random.Generator:
        # The first set's numbers do not change when another is added.
        return np.random.default_rng([self.config.seed + self.number, *key])

    def _groups(self, epoch: int) -> list[list[_Part]]:
        """The parts of this lane in an epoch, in groups that are shuffled together."""
        lanes, group = self.config.num_lanes, self.config.group
        held = [i for i, shard in enumerate(self.shards.manifest.shards) if shard.samples]
        of = -(-lanes // len(held))
        order = self._random(epoch).permutation(len(held) * of)[self.lane :: lanes]
        mine = [_Part(held[i // of], int(i % of), of) for i in order]
        return [mine[i : i + group] for i in range(0, len(mine), group)]

    def _draw_group(self, group: list[_Part], key: tuple[int, int], start: int, sample: int) -> Iterator[_Found]:
        epoch, number = key
        raws: dict[SampleName, RawSample] = {}
        rows, tokens = list[tuple[SampleName, str]](), list[int]()
        for part in group:
            mine = self.shards.read_index(part.shard)[part.part :: part.of]
            rows += [(SampleName(part.shard, row.key), row.speaker) for row in mine]
            tokens += [row.tokens for row in mine]
            raws |= {
                SampleName(part.shard, raw["__key__"]): raw for raw in self.shards.read_samples(part.shard, mine)
            }
        random = self._random(epoch, self.lane, number)
        order = random.permutation(len(rows))
        references = References(
            raws,
            self._decode,
            [rows[i] for i in order],
            random.random(len(rows)),
            self.config.requirements.crop_samples,
        )
        for place in range(max(0, sample - start), len(order)):
            name = rows[order[place]][0]
            if self._too_short(tokens[order[place]], name):
                continue
            try:
                if name not in raws:
                    raise BadSample("damaged", "not in the tar as the index has it")
                clip = self._decode(raws[name])
                reference = references.crop_for(place, clip)
                clip = self._perturbed(clip, epoch, start + place)
                self.seen += 1
            except BadSample as error:
                self._skip(name, error)
            else:
                if not self._too_short(len(clip.tokens), name):  # made faster, it may have become so
                    yield _Found(clip, reference, SetPosition(epoch, start + place))

    def _too_short(self, tokens: int, name: SampleName) -> bool:
        """Whether a clip of so many tokens is passed over, which is said of the first.

        Raises:
            RuntimeError: if the first 20 all are: so may be the others, without end.
        """
        frames = tokens * self.shards.manifest.tokenizer.frames_per_token
        self.longest = max(self.longest, frames)
        if frames >= self.config.requirements.min_frames:
            return False
        folder, wanted = self.shards.folder, self.config.requirements.min_frames
        if self.short == 0:
            log.warning("%s of %s: clips of less than %d frames are passed over", name.key, folder, wanted)
        self.short += 1
        if self.short >= 20 and self.longest < wanted:
            raise RuntimeError(
                f"all {self.short} clips of {folder} that lane {self.lane} has met are too short: the longest has "
                f"{self.longest} frames, wanted are {wanted}: lower --model.segments.frames"
            )
        return True

    def _perturbed(self, clip: Clip, epoch: int, sample: int) -> Clip:
        if not self.config.perturbation.is_active:
            return clip
        manifest, random = self.shards.manifest, self._random(epoch, self.lane, sample, 3)
        return self.config.perturbation.apply(clip, manifest.mel, manifest.tokenizer.frames_per_token, random)

    def _decode(self, raw: RawSample) -> Clip:
        manifest = self.shards.manifest
        spec = manifest.tokenizer
        return decode_clip(
            raw, manifest.mel, spec.vocabulary, spec.frames_per_token, self.config.requirements.x_vector_width
        )

    def _skip(self, name: SampleName, error: BadSample) -> None:
        self.seen += 1
        self.bad[error.cause] += 1
        self.skipped[error.cause] += 1
        shard = self.shards.manifest.shards[name.shard].name
        log.warning("skipped %s in %s of %s: %s", name.key, shard, self.shards.folder, error)
        bad = self.bad.total()
        if self.seen >= 20 and bad > self.config.max_bad_share * self.seen:
            raise RuntimeError(
                f"{bad} of {self.seen} samples of {self.shards.folder} are broken "
                f"({', '.join(f'{cause}: {n}' for cause, n in self.bad.items())}), the last one {name.key} "
                f"in {shard}: mend the set, or raise --data.max_bad_share above {self.config.max_bad_share}"
            )
