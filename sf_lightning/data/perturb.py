"""Random changes of speed and level of training clips: more voices from the same speech. Off by default."""

from dataclasses import dataclass, replace

import numpy as np
import soxr

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.sample import Clip


@dataclass(frozen=True)
class Perturbation:
    """Bounds of the random changes, drawn uniformly for each clip.

    Args:
        speed: Largest relative change of speed, and with it of pitch: 0.1 gives 0.9 to 1.1 times the speed.
        level_db: Largest attenuation in dB.

    Raises:
        ValueError: if `speed` is not between 0 and 0.5, or `level_db` is negative.
    """

    speed: float = 0.0
    level_db: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.speed <= 0.5 or self.level_db < 0:
            raise ValueError(
                f"data.speed is {self.speed} and data.level_db is {self.level_db}: expected 0 to 0.5, and 0 or more"
            )

    @property
    def is_active(self) -> bool:
        """Whether clips are changed at all."""
        return bool(self.speed or self.level_db)

    def apply(self, clip: Clip, mel: MelConfig, frames_per_token: int, random: np.random.Generator) -> Clip:
        """Returns a changed clip, or the clip itself if both bounds are 0.

        A token of the changed clip is the token at the corresponding time of the original.
        """
        if self.speed:
            factor = 1 + random.uniform(-self.speed, self.speed)
            length = max(1, round(len(clip.tokens) / factor))
            original = ((np.arange(length) + 0.5) * len(clip.tokens) / length).astype(int)
            changed = soxr.resample(clip.wave, mel.sample_rate * len(clip.tokens) / length, mel.sample_rate)
            wave = np.zeros(length * frames_per_token * mel.hop_length, np.float32)
            wave[: len(changed)] = changed[: len(wave)]
            clip = replace(clip, wave=wave, tokens=clip.tokens[original])
        if self.level_db:
            gain = 10 ** (-random.uniform(0, self.level_db) / 20)
            clip = replace(clip, wave=clip.wave * np.float32(gain))
        return clip
