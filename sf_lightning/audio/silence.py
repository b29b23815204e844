"""When a wave is silent. Independent of torch, because worker processes of scores import it."""

import numpy as np

SILENCE_PEAK_TO_PEAK = 2.0**-15
"""One step of 16-bit audio: a wave with a smaller range is silent in a file."""


def is_silent(wave: np.ndarray, peak_to_peak: float = SILENCE_PEAK_TO_PEAK) -> bool:
    """Returns whether a wave [N] stays within a range: zeros, or the constant offset of a dead microphone.

    >>> is_silent(np.full(100, 0.2, np.float32))
    True
    """
    return len(wave) == 0 or bool(np.ptp(wave) < peak_to_peak)
