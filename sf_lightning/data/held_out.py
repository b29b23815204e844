"""Clips of a shard set in a fixed order, for validation and for commands that decode a few of them."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path

import numpy as np

from sf_lightning.data.lanes import DrawnClip
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import BadSample, reference_crop
from sf_lightning.data.shards import ShardSet
from sf_lightning.files.text import get_logger

log = get_logger(__name__)


def evenly_spaced_clips(shards: ShardSet, count: int, requirements: ClipRequirements) -> Iterator[DrawnClip]:
    """Yields up to `count` clips spread evenly over a set, the same ones at every call; see `read_clips`.

    Args:
        shards: The set.
        count: Number of clips.
        requirements: What the model requires of clips; crop length and x-vector width are used.
    """
    count = min(count, shards.samples)
    return read_clips(
        shards, select_samples(shards, [i * shards.samples // count for i in range(count)]), requirements
    )


def select_samples(shards: ShardSet, numbers: Iterable[int]) -> dict[int, list[int]]:
    """Returns samples, given by their numbers in the whole set, as their numbers in each shard, by shard."""
    ends, selected = list(accumulate(info.samples for info in shards.manifest.shards)), dict[int, list[int]]()
    for i in sorted(set(numbers)):
        number = bisect_right(ends, i)
        selected.setdefault(number, []).append(i - ends[number] + shards.manifest.shards[number].samples)
    return selected


def clip_names(shards: ShardSet, selected: Mapping[int, Sequence[int]]) -> dict[int, list[str]]:
    """Returns the names of selected samples, by shard: the key, or SHARD/KEY where another has the same key.

    Keys are unique within a shard only.
    """
    keys = {}
    for number, samples in selected.items():
        index = shards.read_index(number)
        keys[number] = [index[i].key for i in samples]
    count = Counter(key for found in keys.values() for key in found)
    return {
        number: [key if count[key] == 1 else full_name(shards, number, key) for key in found]
        for number, found in keys.items()
    }


def full_name(shards: ShardSet, number: int, key: str) -> str:
    """Returns SHARD/KEY, which names one sample of a set."""
    return f"{Path(shards.manifest.shards[number].name).stem}/{key}"


def read_clips(
    shards: ShardSet, selected: Mapping[int, Sequence[int]], requirements: ClipRequirements
) -> Iterator[DrawnClip]:
    """Yields selected samples (numbers in each shard, by shard), each under its name; see `clip_names`.

    The reference is a crop of another clip of the same speaker in the same shard, or of the clip itself if there is
    no other. Broken samples are skipped with a warning.
    """
    names = clip_names(shards, selected)
    for number, samples in selected.items():
        index, info = shards.read_index(number), shards.manifest.shards[number]
        speakers = {index[i].speaker for i in samples}
        rows = [row for row in index if row.speaker in speakers]
        raws = {raw["__key__"]: raw for raw in shards.read_samples(number, rows)}
        for i, name in zip(samples, names[number], strict=True):
            key, speaker = index[i].key, index[i].speaker
            others = [row.key for row in rows if row.speaker == speaker and row.key != key and row.key in raws]
            position = np.random.default_rng([0, number, i]).random()
            try:
                if key not in raws:
                    raise BadSample("damaged", "its bytes do not match the checksum in the index")
                clip = shards.decode(raws[key] | {"__key__": name}, requirements.x_vector_width)
                raw, mel = raws[[*others, key][0]], shards.manifest.mel
                reference = reference_crop(raw, mel, requirements.crop_samples, position)
                language, is_own = index[i].language, not others
                yield DrawnClip(clip, reference, language=language, is_own_reference=is_own, speaker=speaker)
            except BadSample as error:
                log.warning("skipped %s in %s of %s: %s", key, info.name, shards.name, error)
