"""Reading and writing waves.

A wave in memory is float32 [N], mono, between -1 and 1; its sample rate is stored elsewhere.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from sf_lightning.files.atomic import atomic_path

Wave = NDArray[np.float32]

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga"),
    *(".aif", ".aiff", ".aifc", ".au", ".caf", ".rf64", ".snd", ".sph", ".w64"),
)

MIN_RATE, MAX_RATE = 4_000, 768_000
"""Accepted sample rates in Hz: a damaged header of 1 Hz would turn a second into hours."""


def read_wave(source: Path | bytes, sample_rate: int) -> Wave:
    """Reads an audio file, or its bytes, as a mono wave [N] at `sample_rate` Hz; any rate and number of channels.

    Raises:
        ValueError: if the audio cannot be decoded, or its sample rate is implausible.
    """
    try:
        with soundfile.SoundFile(BytesIO(source) if isinstance(source, bytes) else source) as file:
            rate = file.samplerate
            if not MIN_RATE <= rate <= MAX_RATE:
                raise ValueError(f"audio at {rate} Hz: expected {MIN_RATE} to {MAX_RATE} Hz")
            wave = file.read(dtype="float32")
    except (
        soundfile.LibsndfileError,
        OSError,
        MemoryError,
    ) as error:  # a header may claim more than fits in memory
        raise ValueError(f"audio cannot be decoded ({error})") from error
    if wave.ndim > 1:
        wave = wave.mean(axis=1)
    if rate != sample_rate:
        wave = soxr.resample(wave, rate, sample_rate)
    return np.ascontiguousarray(wave, dtype=np.float32)


def resampled(wave: Tensor, rate: int, new_rate: int) -> Tensor:
    """Returns a wave [N] of `rate` Hz resampled to `new_rate` Hz on the CPU, or the wave itself."""
    if rate == new_rate:
        return wave
    return torch.from_numpy(soxr.resample(wave.cpu().numpy(), rate, new_rate))


def write_wave(path: Path, wave: Wave, sample_rate: int) -> None:
    """Writes a wave [N] as 16-bit PCM; samples beyond full scale are clipped."""
    with open_wave(path, sample_rate) as file:
        file.write(to_pcm(wave))


@contextmanager
def open_wave(path: Path, sample_rate: int) -> Iterator[soundfile.SoundFile]:
    """Yields a 16-bit PCM mono file to write to in pieces; it has its name when it is complete.

    Raises:
        OSError: if it cannot be written; there is no part of it then.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        with soundfile.SoundFile(temporary, "w", sample_rate, channels=1, subtype="PCM_16") as file:
            yield file
            frames = file.frames
        if soundfile.info(temporary).frames != frames:  # where the disk is full, libsndfile loses the end silently
            raise OSError(f"{path} cannot be written")


def to_pcm(wave: Wave) -> NDArray[np.int16]:
    """Returns a wave [N] as 16-bit samples; samples beyond full scale are clipped."""
    return (np.clip(wave, -1.0, 1.0) * 32767).round().astype(np.int16)
