"""Scores of one clip against its recording; the perceptual ones are computed in worker processes meanwhile.

Independent of how the clip was decoded.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sf_lightning.audio.seam import seam_db
from sf_lightning.audio.silence import is_silent
from sf_lightning.audio.wave import Wave
from sf_lightning.metrics.jumps import level_jump, pitch_jump
from sf_lightning.metrics.pool import shared_pool
from sf_lightning.metrics.predicted import OpinionPredictor
from sf_lightning.metrics.scorers import (
    SAMPLE_RATE,
    Scorer,
    periodicity_error,
    pesq_wb,
    require_visqol_lattice,
    stoi,
    visqol,
)
from sf_lightning.metrics.spectral import stft_distance

PERCEPTUAL_SCORERS: dict[str, Scorer] = {"pesq_wb": pesq_wb, "stoi": stoi, "visqol": visqol}

Embed = Callable[[Wave], np.ndarray]
"""Speaker encoder: wave [N] at 16 kHz to embedding [X]."""


@dataclass
class PendingScores:
    """Scores of a clip, some of which are still being computed."""

    values: dict[str, float]
    futures: dict[str, Future[float]]

    @property
    def done(self) -> bool:
        """Whether `collect` would return at once."""
        return all(future.done() for future in self.futures.values())

    @property
    def failed(self) -> bool:
        """Whether a scorer failed or was cancelled; valid once `done`."""
        return any(future.cancelled() or future.exception() is not None for future in self.futures.values())

    def collect(self) -> dict[str, float]:
        """Returns all scores, NaN where one is undefined; blocks until they are computed.

        Raises:
            RuntimeError: if a scorer failed.
        """
        return {name: future.result() for name, future in self.futures.items()} | self.values

    def cancel(self) -> None:
        """Cancels the scores whose computation has not started."""
        for future in self.futures.values():
            future.cancel()


@dataclass
class ClipScorer:
    """Scores clips; the same scores in a training run and in `sf-eval`.

    Args:
        embed: Speaker encoder; None leaves `similarity` out.
        predictors: Predictors of opinion scores from the sound alone, by name.
        copies: Whether the clips are vocoded from the recording's own mel, and so are aligned with it sample by
            sample: then `mr_stft` and `periodicity` are computed too.
        sample_rate: Sample rate of the recordings in Hz.

    Raises:
        ValueError: if the sample rate is not 16,000 Hz, where the perceptual scores are defined.
        RuntimeError: if ViSQOL's lattice model is missing.
    """

    embed: Embed | None = None
    predictors: dict[str, OpinionPredictor] = field(default_factory=dict)
    copies: bool = False
    sample_rate: int = SAMPLE_RATE
    _embeddings: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if self.sample_rate != SAMPLE_RATE:
            raise ValueError(
                f"the mel has {self.sample_rate} Hz, but PESQ-WB, STOI and ViSQOL are defined at {SAMPLE_RATE} Hz: "
                f"use a model with mel.sample_rate={SAMPLE_RATE}"
            )
        require_visqol_lattice()

    @property
    def names(self) -> list[str]:
        """Names of the scores of each clip."""
        copies = ["periodicity", "mr_stft"] if self.copies else []
        similarity = ["similarity"] if self.embed is not None else []
        jumps = ["seam_db", "pitch_jump", "level_jump"]
        return [*PERCEPTUAL_SCORERS, "mel_l1", *jumps, *copies, *similarity, *self.predictors]

    def start(
        self, key: str, wave: Tensor, recording: Tensor, mel: Tensor, recording_mel: Tensor, edges: Tensor
    ) -> PendingScores:
        """Starts scoring a clip and returns before its perceptual scores are computed.

        Args:
            key: Key of the clip; the embedding of its recording is cached under it.
            wave: Decoded wave, [N] at 16 kHz.
            recording: Wave of the recording, [N] at 16 kHz.
            mel: Log-mel of the decoded clip, [T, F].
            recording_mel: Log-mel of the recording, [T, F], on the same device.
            edges: Sample numbers at which chunks meet, [E].
        """
        wave, recording, edges = wave.cpu().float(), recording.cpu().float(), edges.cpu()
        pair = recording.numpy(), wave.numpy()
        scorers = PERCEPTUAL_SCORERS | ({"periodicity": periodicity_error} if self.copies else {})
        futures = {name: shared_pool().submit(scorer, *pair) for name, scorer in scorers.items()}
        values = {
            "mel_l1": float((mel - recording_mel).abs().mean()),
            "seam_db": float(seam_db(wave, edges, SAMPLE_RATE)),
            "pitch_jump": pitch_jump(wave, edges, SAMPLE_RATE),
            "level_jump": level_jump(wave, edges, SAMPLE_RATE),
        }
        if self.copies:
            values["mr_stft"] = float(stft_distance(wave, recording))
        if self.embed is not None:
            values["similarity"] = self._similarity(key, *pair)
        values |= {name: predict(wave, SAMPLE_RATE) for name, predict in self.predictors.items()}
        return PendingScores(values, futures)

    def _similarity(self, key: str, recording: Wave, wave: Wave) -> float:
        assert self.embed is not None
        if not np.isfinite(wave).all() or is_silent(wave):
            return float("nan")
        if key not in self._embeddings:
            self._embeddings[key] = self.embed(recording)
        a, b = torch.from_numpy(self._embeddings[key]), torch.from_numpy(self.embed(wave))
        return float(torch.cosine_similarity(a, b, dim=0))
