"""The order of samples: a pure function of (seed, epoch, lane) that does not know the world size.

A run has V fixed *lanes*; ranks and workers own whole lanes, and a step takes one pack of each. In every
epoch the shards are permuted and dealt to the lanes; a lane reads its shards in groups, from start to end,
and permutes the samples within a group. There is no buffer with a hidden state: a lane resumes from four
numbers, having read nothing but the group it is in.
"""

import logging
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from sf_lightning.audio.wave import Wave
from sf_lightning.data.sample import BadSample, Clip, Raw, decode_clip, reference_crop, speaker_of
from sf_lightning.data.shards import ShardSet

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LaneState:
    """Where a lane stands.

    Attributes:
        epoch: Times this lane has begun its shards.
        sample: The next sample, counted within the lane's epoch.
        block: Blocks of that sample that are used up already.
        pack: Packs made so far; it keys the noise of training.
    """

    epoch: int = 0
    sample: int = 0
    block: int = 0
    pack: int = 0


@dataclass
class Drawn:
    """A clip that a lane has drawn, and a crop of the same speaker from another clip where there is one."""

    clip: Clip
    reference: Wave
    state: LaneState


@dataclass(frozen=True)
class _Part:
    """Every `of`-th sample of a shard, from the `part`-th on: how few shards feed many lanes."""

    shard: int
    part: int
    of: int

    def size(self, samples: int) -> int:
        return len(range(self.part, samples, self.of))


@dataclass
class Lane:
    """One lane of an endless, shuffled stream over a shard set.

    Args:
        shards: The set.
        seed: Of the order.
        lane: Number of this lane, 0 .. num_lanes - 1.
        num_lanes: V, the same for the whole life of a run.
        crop_samples: Length of the reference crops.
        x_vector_width: Width of the x-vectors to read; 0 reads none.
        group: Shards whose samples are shuffled together.
        max_bad_share: Stop when more than this share of the samples is broken.
        skipped: Broken samples by cause, counted while reading.

    Raises:
        ValueError: if the set has fewer samples than there are lanes.
    """

    shards: ShardSet
    seed: int
    lane: int
    num_lanes: int
    crop_samples: int
    x_vector_width: int = 0
    group: int = 4
    max_bad_share: float = 0.1

    def __post_init__(self) -> None:
        self.skipped: Counter[str] = Counter()
        self.seen = 0
        if self.shards.samples < self.num_lanes:
            raise ValueError(
                f"{self.shards.folder} has {self.shards.samples} samples for {self.num_lanes} lanes: "
                "lower --data.lanes or build a larger set"
            )

    def draws(self, state: LaneState) -> Iterator[Drawn]:
        """Yields clips without end, from a state on; each carries the state that begins with it.

        Raises:
            RuntimeError: if too many samples are broken.
        """
        while True:
            groups = self._groups(state.epoch)
            start = 0
            for number, group in enumerate(groups):
                size = sum(part.size(self._samples(part)) for part in group)
                if state.sample < start + size:
                    yield from self._draw_group(group, number, start, state)
                    # Only the first sample after a resume can be partly used.
                    state = replace(state, sample=start + size, block=0)
                start += size
            state = replace(state, epoch=state.epoch + 1, sample=0, block=0)

    def _samples(self, part: _Part) -> int:
        return self.shards.manifest.shards[part.shard].samples

    def _random(self, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, *key])

    def _groups(self, epoch: int) -> list[list[_Part]]:
        """The parts of this lane in an epoch, in groups that are shuffled together."""
        held = [i for i, shard in enumerate(self.shards.manifest.shards) if shard.samples]
        of = -(-self.num_lanes // len(held))
        parts = [_Part(shard, part, of) for shard in held for part in range(of)]
        order = self._random(epoch).permutation(len(parts))[self.lane :: self.num_lanes]
        mine = [parts[i] for i in order]
        return [mine[i : i + self.group] for i in range(0, len(mine), self.group)]

    def _draw_group(self, group: list[_Part], number: int, start: int, state: LaneState) -> Iterator[Drawn]:
        raws: dict[tuple[int, str], Raw] = {}
        names: list[tuple[int, str]] = []
        for part in group:
            mine = [row.key for row in self.shards.index(part.shard)][part.part :: part.of]
            names += [(part.shard, key) for key in mine]
            wanted = set(mine)
            raws |= {(part.shard, r["__key__"]): r for r in self.shards.read(part.shard) if r["__key__"] in wanted}
        by_speaker = defaultdict(list)
        for name, raw in raws.items():
            by_speaker[speaker_of(raw)].append(name)
        order = self._random(state.epoch, self.lane, number).permutation(len(names))
        for place in range(max(0, state.sample - start), len(names)):
            name = names[order[place]]
            here = replace(state, sample=start + place, block=state.block if start + place == state.sample else 0)
            try:
                if name not in raws:
                    raise BadSample("damaged", "not in the tar as the index has it")
                yield self._draw(raws, name, by_speaker, here)
                self.seen += 1
            except BadSample as error:
                self._skip(name, error)

    def _draw(
        self,
        raws: dict[tuple[int, str], Raw],
        name: tuple[int, str],
        by_speaker: dict[str, list[tuple[int, str]]],
        state: LaneState,
    ) -> Drawn:
        manifest = self.shards.manifest
        spec, mel = manifest.tokenizer, manifest.mel
        clip = decode_clip(raws[name], mel, spec.vocabulary, spec.frames_per_token, self.x_vector_width)
        random = self._random(state.epoch, self.lane, state.sample, 1)
        others = [other for other in by_speaker[clip.speaker] if other != name] or [name]
        other = raws[others[random.integers(len(others))]]
        try:
            reference = reference_crop(other, mel, self.crop_samples, random)
        except BadSample:
            # The clip itself is good: a broken neighbour must not cost it.
            reference = reference_crop(raws[name], mel, self.crop_samples, random)
        return Drawn(clip, reference, state)

    def _skip(self, name: tuple[int, str], error: BadSample) -> None:
        self.seen += 1
        self.skipped[error.cause] += 1
        shard = self.shards.manifest.shards[name[0]].name
        log.warning("skipped %s in %s of %s: %s", name[1], shard, self.shards.folder, error)
        bad = self.skipped.total()
        if self.seen >= 20 and bad > self.max_bad_share * self.seen:
            raise RuntimeError(
                f"{bad} of {self.seen} samples of {self.shards.folder} are broken "
                f"({', '.join(f'{cause}: {n}' for cause, n in self.skipped.items())}), the last one {name[1]} "
                f"in {shard}: mend the set, or raise --data.max_bad_share above {self.max_bad_share}"
            )


def first_clips(shards: ShardSet, count: int, crop_samples: int, x_vector_width: int = 0) -> Iterator[Drawn]:
    """Yields up to `count` clips spread evenly over a set, in a fixed order: what validation listens to.

    A broken sample is left out; the reference is a crop of another clip of the same speaker in the same
    shard where there is one.
    """
    count = min(count, shards.samples)
    chosen = {i * shards.samples // count for i in range(count)} if count else set()
    spec, mel = shards.manifest.tokenizer, shards.manifest.mel
    start = 0
    for number, info in enumerate(shards.manifest.shards):
        wanted = [i for i in range(info.samples) if start + i in chosen]
        start += info.samples
        if not wanted:
            continue
        index = shards.index(number)
        by_key = {raw["__key__"]: raw for raw in shards.read(number)}
        raws = list(by_key.values())
        for i in wanted:
            key = index[i].key
            if key not in by_key:
                log.warning(
                    "left %s of %s in %s out: damaged, not in the tar as the index has it",
                    key,
                    info.name,
                    shards.folder,
                )
                continue
            raw = by_key[key]
            same = [r for r in raws if speaker_of(r) == speaker_of(raw) and r is not raw] or [raw]
            random = np.random.default_rng([0, number, i])
            try:
                clip = decode_clip(raw, mel, spec.vocabulary, spec.frames_per_token, x_vector_width)
                reference = reference_crop(same[0], mel, crop_samples, random)
                yield Drawn(clip, reference, LaneState())
            except BadSample as error:
                log.warning("left %s of %s in %s out: %s", key, info.name, shards.folder, error)
