"""The lookup table of a set: the mean mel of each token. Independent of decoders.

It is the lookup baseline of validation: the best decoder without a network.
"""

import numpy as np
import torch
from numpy.typing import NDArray

from sf_lightning.audio.mel import MelSpectrogram
from sf_lightning.data.shards import Manifest, ShardSet

NAME = "lookup.npy"

MAX_FIT_SECONDS = 2 * 3600
"""Seconds of speech, spread over the corpus, that k-means and the lookup table are computed from at most."""


def mean_token_mels(shards: ShardSet) -> NDArray[np.float32]:
    """Returns the mean mel of each token, [vocabulary, frames_per_token, F].

    Computed from at most `MAX_FIT_SECONDS` of the set; tokens that do not occur get the mean of all.
    """
    manifest = shards.manifest
    spec, to_mel = manifest.tokenizer, MelSpectrogram(manifest.mel)
    total = np.zeros(table_shape(manifest))
    count, seconds = np.zeros(spec.vocabulary), 0.0
    for number in np.random.default_rng(0).permutation(len(manifest.shards)):
        if seconds >= MAX_FIT_SECONDS:
            break
        for raw in shards.read_samples(int(number)):
            clip = shards.decode(raw)
            with torch.inference_mode():
                mel = to_mel(torch.from_numpy(clip.wave)[None])[0].numpy()
            np.add.at(total, clip.tokens, mel.reshape(len(clip.tokens), spec.frames_per_token, -1))
            np.add.at(count, clip.tokens, 1)
            seconds += len(clip.wave) / manifest.mel.sample_rate
    overall, seen = total.sum(0) / max(1.0, count.sum()), count[:, None, None]
    return np.where(seen > 0, total / np.maximum(seen, 1), overall).astype(np.float32)


def table_shape(manifest: Manifest) -> tuple[int, int, int]:
    """Returns the shape of the table of a set."""
    return manifest.tokenizer.vocabulary, manifest.tokenizer.frames_per_token, manifest.mel.num_bands
