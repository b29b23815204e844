"""K-means tokens: the default, which needs no download; fitted on the user's own speech, not a semantic model.

A token is the centroid nearest to the cepstra of its frames minus their mean over the utterance, so that no codes
are spent on level and average voice.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dct
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import pairwise_distances_argmin

from sf_lightning.audio.mel import MelConfig, MelSpectrogram
from sf_lightning.audio.wave import Wave
from sf_lightning.files.atomic import atomic_path
from sf_lightning.files.digest import digest_of
from sf_lightning.tokens.base import TokenizerSpec, Tokens

FRAMES_PER_TOKEN = 4
NUM_CEPSTRA = 20

MAX_BYTES = 2**26
"""Largest accepted size of the centroids: those of 200,000 codes."""


class KMeansTokenizer:
    """Encodes the cepstra of each token as the number of the nearest centroid.

    Args:
        centroids: Centroids, float32 [K, FRAMES_PER_TOKEN * NUM_CEPSTRA].
    """

    def __init__(self, centroids: NDArray[np.float32]) -> None:
        self.centroids = np.ascontiguousarray(centroids, dtype=np.float32)
        self.spec = TokenizerSpec("kmeans", len(centroids), FRAMES_PER_TOKEN, digest_of(self.centroids.tobytes()))
        self.mel = MelSpectrogram(MelConfig())

    @classmethod
    def fit(cls, waves: Iterable[Wave], vocabulary: int, seed: int = 0) -> "KMeansTokenizer":
        """Fits centroids on speech.

        Args:
            waves: Waves [N] at 16 kHz; at least a few thousand tokens per hundred codes.
            vocabulary: Number of codes K.
            seed: Seed of the initial centroids.

        Raises:
            ValueError: if there are fewer tokens than codes.
        """
        mel = MelSpectrogram(MelConfig())
        features = [cepstra(mel, wave) for wave in waves]
        total = sum(map(len, features))
        if total < vocabulary:
            raise ValueError(f"kmeans: {total} tokens of speech for {vocabulary} codes: lower --vocabulary")
        kmeans = MiniBatchKMeans(vocabulary, batch_size=8192, n_init=1, max_iter=30, random_state=seed)
        kmeans.fit(np.concatenate(features))
        return cls(kmeans.cluster_centers_.astype(np.float32))

    def encode(self, waves: Sequence[Wave]) -> list[Tokens]:
        """Returns one token for every 4 whole frames of each wave, 25 a second at 16 kHz."""
        return [
            pairwise_distances_argmin(features, self.centroids).astype(np.int64)
            if len(features := cepstra(self.mel, wave))
            else np.zeros(0, np.int64)
            for wave in waves
        ]

    def save(self, path: Path) -> None:
        """Writes the centroids to an `.npz` file, whole or not at all, because other jobs may wait for it."""
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            np.savez(temporary, centroids=self.centroids)

    @classmethod
    def load(cls, path: Path) -> "KMeansTokenizer":
        """Reads a file that `save` wrote.

        Raises:
            ValueError: if the file is not a k-means tokenizer.
        """
        try:
            with ZipFile(path) as archive:
                stored = archive.getinfo("centroids.npy").file_size
            if stored > MAX_BYTES:
                raise ValueError(f"{stored} bytes, more than {MAX_BYTES}")
            with np.load(path) as file:
                centroids = file["centroids"]
            if centroids.ndim != 2 or centroids.shape[1] != FRAMES_PER_TOKEN * NUM_CEPSTRA or not len(centroids):
                raise ValueError(f"centroids {[*centroids.shape]}, expected [K, {FRAMES_PER_TOKEN * NUM_CEPSTRA}]")
            if centroids.dtype.kind != "f" or not np.isfinite(centroids).all():
                raise ValueError("centroids that are not finite numbers")
            return cls(centroids)
        except Exception as error:  # bytes that are no archive may raise almost any error
            raise ValueError(f"tokenizer {path} is not a k-means tokenizer ({error!s:.200})") from error


def cepstra(mel: MelSpectrogram, wave: Wave) -> NDArray[np.float32]:
    """Returns the features of a wave [N], one row per token, float32 [L, FRAMES_PER_TOKEN * NUM_CEPSTRA]."""
    length = len(wave) // mel.config.hop_length // FRAMES_PER_TOKEN
    if length == 0:
        return np.zeros((0, FRAMES_PER_TOKEN * NUM_CEPSTRA), np.float32)
    with torch.inference_mode():
        frames = mel(torch.from_numpy(wave)[None])[0, : length * FRAMES_PER_TOKEN].numpy()
    rows = dct(frames, axis=1, norm="ortho")[:, :NUM_CEPSTRA]
    return (rows - rows.mean(axis=0)).reshape(length, -1).astype(np.float32)
