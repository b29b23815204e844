"""The clips that validation listens to, and whoever else wants some of a set in a fixed order."""

import logging
from collections.abc import Iterator

import numpy as np

from sf_lightning.data.lanes import DrawnClip
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import BadSample, decode_clip, reference_crop
from sf_lightning.data.shards import ShardSet

log = logging.getLogger(__name__)


def evenly_spaced_clips(shards: ShardSet, count: int, requirements: ClipRequirements) -> Iterator[DrawnClip]:
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
        index = shards.read_index(number)
        speakers = {index[i].speaker for i in wanted}
        raws = {
            raw["__key__"]: raw
            for raw in shards.read_samples(number, [row for row in index if row.speaker in speakers])
        }
        for i in wanted:
            key, speaker = index[i].key, index[i].speaker
            if key not in raws:
                log.warning(
                    "left %s of %s in %s out: damaged, not in the tar as the index has it",
                    key,
                    info.name,
                    shards.folder,
                )
                continue
            same = [row.key for row in index if row.speaker == speaker and row.key != key and row.key in raws]
            where = np.random.default_rng([0, number, i]).random()
            try:
                clip = decode_clip(
                    raws[key], mel, spec.vocabulary, spec.frames_per_token, requirements.x_vector_width
                )
                reference = reference_crop(raws[[*same, key][0]], mel, requirements.crop_samples, where)
                yield DrawnClip(clip, reference, language=index[i].language, is_own_reference=not same)
            except BadSample as error:
                log.warning("left %s of %s in %s out: %s", key, info.name, shards.folder, error)
