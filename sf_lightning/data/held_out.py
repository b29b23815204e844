"""Clips of a shard set in a fixed order, for validation and for commands that decode a few of them."""

import logging
from collections.abc import Iterator

import numpy as np

from sf_lightning.data.lanes import DrawnClip
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import BadSample, reference_crop
from sf_lightning.data.shards import ShardSet

log = logging.getLogger(__name__)


def evenly_spaced_clips(shards: ShardSet, count: int, requirements: ClipRequirements) -> Iterator[DrawnClip]:
    """Yields up to `count` clips spread evenly over a set, the same ones at every call.

    The reference is a crop of another clip of the same speaker in the same shard, or of the clip itself if there is
    no other. Broken samples are skipped with a warning.

    Args:
        shards: The set.
        count: Number of clips.
        requirements: What the model requires of clips; crop length and x-vector width are used.
    """
    count = min(count, shards.samples)
    chosen = {i * shards.samples // count for i in range(count)} if count else set()
    start = 0
    for number, info in enumerate(shards.manifest.shards):
        selected = [i for i in range(info.samples) if start + i in chosen]
        start += info.samples
        if not selected:
            continue
        index = shards.read_index(number)
        speakers = {index[i].speaker for i in selected}
        rows = [row for row in index if row.speaker in speakers]
        raws = {raw["__key__"]: raw for raw in shards.read_samples(number, rows)}
        for i in selected:
            key, speaker = index[i].key, index[i].speaker
            others = [row.key for row in rows if row.speaker == speaker and row.key != key and row.key in raws]
            position = np.random.default_rng([0, number, i]).random()
            try:
                if key not in raws:
                    raise BadSample("damaged", "its bytes do not match the checksum in the index")
                clip = shards.decode(raws[key], requirements.x_vector_width)
                raw, mel = raws[[*others, key][0]], shards.manifest.mel
                reference = reference_crop(raw, mel, requirements.crop_samples, position)
                yield DrawnClip(clip, reference, language=index[i].language, is_own_reference=not others)
            except BadSample as error:
                log.warning("skipped %s in %s of %s: %s", key, info.name, shards.folder, error)
