"""All that is measured of one clip made in one way; what takes long goes on in other processes meanwhile.

Knows nothing of how the clip was made.
"""

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sf_lightning.audio.seam import seam_db
from sf_lightning.audio.wave import Wave
from sf_lightning.metrics.jumps import level_jump, pitch_jump
from sf_lightning.metrics.pool import shared_pool
from sf_lightning.metrics.predicted import Judge
from sf_lightning.metrics.scorers import (
    SAMPLE_RATE,
    SILENCE_PEAK_TO_PEAK,
    pesq_wb,
    require_visqol_lattice,
    stoi,
    visqol,
)

IN_POOL = {"pesq_wb": pesq_wb, "stoi": stoi, "visqol": visqol}

Embed = Callable[[Wave], np.ndarray]
"""A wave at 16 kHz to the embedding [X] of its speaker."""


@dataclass
class Pending:
    """The scores of a clip, some of them still on their way."""

    values: dict[str, float]
    futures: dict[str, Future[float]]

    @property
    def done(self) -> bool:
        """Whether nothing would have to be waited for."""
        return all(future.done() for future in self.futures.values())

    @property
    def failed(self) -> bool:
        """Whether a scorer failed, or was cancelled."""
        return any(future.cancelled() or future.exception() is not None for future in self.futures.values())

    def collect(self) -> dict[str, float]:
        """Returns all scores, NaN where one is undefined; waits for them.

        Raises:
            RuntimeError: if a scorer failed.
        """
        return {name: future.result() for name, future in self.futures.items()} | self.values

    def cancel(self) -> None:
        """Gives up what has not begun."""
        for future in self.futures.values():
            future.cancel()


@dataclass
class Scoring:
    """What clips are scored with.

    Args:
        embed: Speaker encoder, or None to leave `similarity` out.
        judges: Opinion scores predicted from the sound alone, by name.

    Raises:
        RuntimeError: if ViSQOL would run without its lattice model.
    """

    embed: Embed | None = None
    judges: dict[str, Judge] = field(default_factory=dict)
    _voices: dict[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        require_visqol_lattice()

    def start(
        self, key: str, wave: Tensor, reference: Tensor, mel: Tensor, reference_mel: Tensor, edges: Tensor
    ) -> Pending:
        """Scores a clip, and returns before its perceptual scores are there.

        Args:
            key: Of the clip, under which its speaker's embedding is remembered.
            wave: What was made, [N] at 16 kHz.
            reference: What was said, [N].
            mel: The log-mel that was made, [T, F].
            reference_mel: The log-mel of what was said, [T, F].
            edges: Sample numbers at which chunks meet, [E].
        """
        made, said = wave.cpu().float(), reference.cpu().float()
        pair = said.numpy(), made.numpy()
        futures = {name: shared_pool().submit(scorer, *pair) for name, scorer in IN_POOL.items()}
        values = {
            "mel_l1": float((mel - reference_mel).abs().mean()),
            "seam_db": float(seam_db(made, edges)),
            "pitch_jump": pitch_jump(made, edges, SAMPLE_RATE),
            "level_jump": level_jump(made, edges, SAMPLE_RATE),
        }
        if self.embed is not None:
            values["similarity"] = self._similarity(key, *pair)
        values |= {name: judge(made, SAMPLE_RATE) for name, judge in self.judges.items()}
        return Pending(values, futures)

    def _similarity(self, key: str, said: Wave, made: Wave) -> float:
        assert self.embed is not None
        if not np.isfinite(made).all() or np.ptp(made) < SILENCE_PEAK_TO_PEAK:
            return float("nan")
        if key not in self._voices:
            self._voices[key] = self.embed(said)
        a, b = torch.from_numpy(self._voices[key]), torch.from_numpy(self.embed(made))
        return float(torch.cosine_similarity(a, b, dim=0))
