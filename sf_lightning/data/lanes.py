"""The order of training clips: a pure function of (seed, epoch, lane), independent of the number of processes.

A run has V fixed *lanes*. Ranks and loader workers own whole lanes, and a training step takes one pack of each. In
every epoch the shards of a set are permuted and dealt to the lanes; a lane reads its shards in groups, each from
start to end, and permutes the samples within a group. Where several sets are mixed, the set of each clip is drawn
by weight. There is no shuffle buffer with hidden state: a lane resumes from a few numbers and reads only its
current groups again.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple

import numpy as np

from sf_lightning.audio.wave import Wave
from sf_lightning.data.perturb import Perturbation
from sf_lightning.data.references import References, SampleName
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import BadSample, Clip, RawSample
from sf_lightning.data.shards import ShardSet
from sf_lightning.files.text import get_logger

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
    """

    clip: Clip
    reference: Wave
    state: LaneState = LaneState()
    after: LaneState = LaneState()
    language: str = ""
    is_own_reference: bool = False


@dataclass(frozen=True)
class _ShardSlice:
    """Every `step`-th sample of a shard from `first` on: with few shards, several lanes share one."""

    shard: int
    first: int
    step: int

    def size(self, samples: int) -> int:
        """Returns the number of samples in the slice of a shard that has `samples` samples."""
        return len(range(self.first, samples, self.step))


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
        random = np.random.default_rng([self.config.seed, self.lane, turn, 2])
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
        epoch, sample = position
        while True:
            start = 0
            for number, group in enumerate(self._groups(epoch)):
                size = sum(part.size(self.shards.manifest.shards[part.shard].samples) for part in group)
                if sample < start + size:
                    yield from self._read_group(group, (epoch, number), start, sample)
                    sample = start + size
                start += size
            epoch, sample = epoch + 1, 0

    def _random(self, *key: int) -> np.random.Generator:
        # Adding a set leaves the draws of the first one unchanged.
        return np.random.default_rng([self.config.seed + self.number, *key])

    def _groups(self, epoch: int) -> list[list[_ShardSlice]]:
        """Returns the shards or slices of this lane in an epoch, in groups that are shuffled together."""
        lanes, group = self.config.num_lanes, self.config.group
        shards = [i for i, shard in enumerate(self.shards.manifest.shards) if shard.samples]
        step = -(-lanes // len(shards))
        order = self._random(epoch).permutation(len(shards) * step)[self.lane :: lanes]
        slices = [_ShardSlice(shards[i // step], int(i % step), step) for i in order]
        return [slices[i : i + group] for i in range(0, len(slices), group)]

    def _read_group(
        self, group: list[_ShardSlice], key: tuple[int, int], start: int, sample: int
    ) -> Iterator[tuple[Clip, Wave, SetPosition]]:
        epoch, number = key
        raws: dict[SampleName, RawSample] = {}
        samples, tokens = list[tuple[SampleName, str]](), list[int]()
        for part in group:
            rows = self.shards.read_index(part.shard)[part.first :: part.step]
            samples += [(SampleName(part.shard, row.key), row.speaker) for row in rows]
            tokens += [row.tokens for row in rows]
            for raw in self.shards.read_samples(part.shard, rows):
                raws[SampleName(part.shard, raw["__key__"])] = raw
        random = self._random(epoch, self.lane, number)
        order = random.permutation(len(samples))
        requirements = self.config.requirements
        decode = partial(self.shards.decode, x_vector_width=requirements.x_vector_width)
        shuffled, crop_starts = [samples[i] for i in order], random.random(len(samples))
        references = References(raws, decode, shuffled, crop_starts, requirements.crop_samples)
        for i in range(max(0, sample - start), len(order)):
            name = shuffled[i][0]
            if self._is_too_short(tokens[order[i]], name):
                continue
            try:
                if name not in raws:
                    raise BadSample("damaged", "its bytes do not match the checksum in the index")
                clip = decode(raws[name])
                reference = references.crop_for(i, clip)
                clip = self._perturb(clip, epoch, start + i)
                self.num_read += 1
            except BadSample as error:
                self._skip(name, error)
            else:
                if not self._is_too_short(len(clip.tokens), name):  # a clip made faster may have become too short
                    yield clip, reference, SetPosition(epoch, start + i)

    def _is_too_short(self, tokens: int, name: SampleName) -> bool:
        """Returns whether a clip of `tokens` tokens is skipped; raises if the first 20 clips all are."""
        required, folder = self.config.requirements.min_frames, self.shards.name
        frames = tokens * self.shards.manifest.tokenizer.frames_per_token
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
        manifest, random = self.shards.manifest, self._random(epoch, self.lane, sample, 3)
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
