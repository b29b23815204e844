"""Clips made a little faster, slower, louder or softer: more voices from the same speech. Off by default."""

from dataclasses import dataclass, replace

import numpy as np
import soxr

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.sample import Clip


@dataclass(frozen=True)
class Perturbation:
    """How much clips are changed at random, evenly up to these bounds.

    Args:
        speed: Share by which speech is faster or slower, pitch and all; 0.1 is from 0.9 to 1.1 times. Each token
            of the changed clip is the one that was spoken at that moment.
        level_db: Decibels by which it is softer.
    """

    speed: float = 0.0
    level_db: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.speed <= 0.5 or self.level_db < 0:
            raise ValueError(
                f"perturbation: speed {self.speed} and level_db {self.level_db}: wanted 0 to 0.5, and 0 or more"
            )

    @property
    def is_active(self) -> bool:
        """Whether it does anything."""
        return bool(self.speed or self.level_db)

    def apply(self, clip: Clip, mel: MelConfig, frames_per_token: int, random: np.random.Generator) -> Clip:
        """Returns a changed clip; the clip itself where nothing is to be changed."""
        if self.speed:
            factor = 1 + random.uniform(-self.speed, self.speed)
            length = max(1, round(len(clip.tokens) / factor))
            spoken = ((np.arange(length) + 0.5) * len(clip.tokens) / length).astype(int)
            changed = soxr.resample(clip.wave, mel.sample_rate * len(clip.tokens) / length, mel.sample_rate)
            wave = np.zeros(length * frames_per_token * mel.hop_length, np.float32)
            wave[: len(changed)] = changed[: len(wave)]
            clip = replace(clip, wave=wave, tokens=clip.tokens[spoken])
        if self.level_db:
            gain = 10 ** (-random.uniform(0, self.level_db) / 20)
            clip = replace(clip, wave=clip.wave * np.float32(gain))
        return clip
