"""Reading and writing waves. Knows nothing of mels.

A wave in memory is float32 [N], mono, between -1 and 1, at a rate that its owner knows.
"""

from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

Wave = NDArray[np.float32]

AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus")

MIN_RATE, MAX_RATE = 4_000, 768_000
"""In Hz, what audio may have: a header that says 1 Hz would make hours of a second."""


def read_wave(source: Path | bytes, sample_rate: int) -> Wave:
    """Reads audio as a mono wave [N] at `sample_rate` Hz, whatever its own rate and channels.

    Args:
        source: A path, or the bytes of an audio file.
        sample_rate: The rate wanted in Hz; another one is resampled.

    Raises:
        ValueError: if the audio cannot be decoded, or has a rate that none has.
    """
    try:
        with soundfile.SoundFile(BytesIO(source) if isinstance(source, bytes) else source) as file:
            rate = file.samplerate
            if not MIN_RATE <= rate <= MAX_RATE:
                raise ValueError(f"audio at {rate} Hz, wanted {MIN_RATE} to {MAX_RATE}")
            wave = file.read(dtype="float32")
    except (
        soundfile.LibsndfileError,
        OSError,
        MemoryError,
    ) as error:  # a header may promise more than memory holds
        raise ValueError(f"audio that cannot be decoded ({error})") from error
    if wave.ndim > 1:
        wave = wave.mean(axis=1)
    if rate != sample_rate:
        wave = soxr.resample(wave, rate, sample_rate)
    return np.ascontiguousarray(wave, dtype=np.float32)


def resampled(wave: Tensor, rate: int, wanted: int) -> Tensor:
    """Returns a wave [N] of one rate in Hz at another, [N * wanted / rate], on the CPU; itself if it has it."""
    if rate == wanted:
        return wave
    return torch.from_numpy(soxr.resample(wave.cpu().numpy(), rate, wanted))


def write_wave(path: Path, wave: Wave, sample_rate: int) -> None:
    """Writes a wave [N] as 16-bit PCM; samples beyond full scale are clipped."""
    with open_wave(path, sample_rate) as file:
        file.write(to_pcm(wave))


def open_wave(path: Path, sample_rate: int) -> soundfile.SoundFile:
    """Opens a file of 16-bit PCM, mono, to be written piece by piece."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return soundfile.SoundFile(path, "w", sample_rate, channels=1, subtype="PCM_16")


def to_pcm(wave: Wave) -> NDArray[np.int16]:
    """Returns a wave [N] as 16-bit samples; those beyond full scale are clipped."""
    return (np.clip(wave, -1.0, 1.0) * 32767).round().astype(np.int16)
