"""The look-up table of a set: the mean mel of each token. Knows nothing of who decodes with it.

The best decoder that has no network, shown as a baseline beside those that have one.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from sf_lightning.audio.mel import MelSpectrogram
from sf_lightning.data.sample import decode_clip
from sf_lightning.data.shards import Manifest, ShardSet

NAME = "lookup.npy"

MAX_FIT_SECONDS = 2 * 3600
"""K-means is fitted, and the look-up table made, on no more speech than this, spread over the corpus."""


def mean_token_mels(shards: ShardSet) -> NDArray[np.float32]:
    """Returns the mean mel of each token, [vocabulary, frames_per_token, F]; tokens never seen get the mean of all.

    Made of at most `MAX_FIT_SECONDS` of the set.
    """
    manifest = shards.manifest
    spec, to_mel = manifest.tokenizer, MelSpectrogram(manifest.mel)
    total = np.zeros(_shape(manifest))
    count, seconds = np.zeros(spec.vocabulary), 0.0
    for number in np.random.default_rng(0).permutation(len(manifest.shards)):
        if seconds >= MAX_FIT_SECONDS:
            break
        for raw in shards.read_samples(int(number)):
            clip = decode_clip(raw, manifest.mel, spec.vocabulary, spec.frames_per_token)
            with torch.inference_mode():
                mel = to_mel(torch.from_numpy(clip.wave)[None])[0].numpy()
            np.add.at(total, clip.tokens, mel.reshape(len(clip.tokens), spec.frames_per_token, -1))
            np.add.at(count, clip.tokens, 1)
            seconds += len(clip.wave) / manifest.mel.sample_rate
    overall, seen = total.sum(0) / max(1.0, count.sum()), count[:, None, None]
    return np.where(seen > 0, total / np.maximum(seen, 1), overall).astype(np.float32)


def reason_against(shards: ShardSet) -> str | None:
    """Returns what is wrong with the table of a set, or None. Whether its means are right is not checked."""
    try:
        with shards.open(NAME) as file:
            table = np.lib.format.read_array(file, allow_pickle=False)
    except FileNotFoundError:
        return "missing"
    except (OSError, ValueError) as error:
        return f"cannot be read: {error}"
    wanted = _shape(shards.manifest)
    if (table.dtype, table.shape) != (np.float32, wanted):
        return f"{table.dtype} of shape {table.shape}, wanted float32 of {wanted}"
    return None if np.isfinite(table).all() else "not finite"


def _shape(manifest: Manifest) -> tuple[int, int, int]:
    return manifest.tokenizer.vocabulary, manifest.tokenizer.frames_per_token, manifest.mel.num_bands
