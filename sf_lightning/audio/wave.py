"""Reading and writing waves.

A wave in memory is float32 [N], mono, between -1 and 1; its sample rate is stored elsewhere.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import SEEK_END, SEEK_SET, BytesIO
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from numpy.typing import NDArray
from torch import Tensor

from sf_lightning.audio.streams import Stream, split_streams
from sf_lightning.files.atomic import atomic_path

Wave = NDArray[np.float32]

AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".mp3", ".ogg", ".opus", ".oga"),
    *(".aif", ".aiff", ".aifc", ".au", ".caf", ".rf64", ".snd", ".sph", ".w64"),
)

MIN_RATE, MAX_RATE = 4_000, 768_000
"""Accepted sample rates in Hz: a damaged header of 1 Hz would turn a second into hours."""

MAX_SAMPLES = 1 << 27
"""Longest audio per channel, 46 minutes at 48 kHz: a small file of silence may hold days."""

BLOCK_SAMPLES = 1 << 22
"""Samples of all channels that are decoded at once, before they become mono."""

UNKNOWN_SAMPLES = 1 << 62
"""Numbers of samples from here on are what libsndfile reports for a FLAC that does not say it."""


class TooLongError(ValueError):
    """Audio is longer than the caller accepts."""


class _ForwardFile(soundfile.SoundFile):
    """Reads forward only: codecs of telephony cannot seek, which `read` does after each call otherwise."""

    def seekable(self) -> bool:
        return False


class _EndlessBytes(BytesIO):
    """Reports its end far away: an mp3 whose length would be estimated by its size is read to its last byte."""

    def seek(self, offset: int, whence: int = SEEK_SET) -> int:
        return super().seek(offset + (1 << 40)) if whence == SEEK_END else super().seek(offset, whence)

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        # The decoder looks for a tag in front of the end.
        return len(buffer) if self.tell() > self.getbuffer().nbytes else super().readinto(buffer)


def read_wave(source: Path | bytes, sample_rate: int) -> Wave:
    """Reads an audio file, or its bytes, as a mono wave [N] at `sample_rate` Hz; any rate and number of channels.

    Raises:
        ValueError: as `decode_audio`.
    """
    return join_waves(decode_audio(source.read_bytes() if isinstance(source, Path) else source), sample_rate)


def decode_audio(data: bytes, max_seconds: float = math.inf) -> list[tuple[Wave, int]]:
    """Returns the mono wave [N] and the sample rate in Hz of each stream of an audio file; usually one.

    Files that were joined have several. All of the audio is decoded, or none.

    Args:
        data: Bytes of the file.
        max_seconds: Longest accepted duration; longer audio is not decoded to its end.

    Raises:
        TooLongError: if it is longer than `max_seconds`.
        ValueError: if the audio cannot be decoded or is truncated, is longer than `MAX_SAMPLES`, or its sample rate
            is implausible.
    """
    waves, seconds = [], 0.0
    try:
        for stream in split_streams(data):
            wave, rate = _decode_stream(stream, max_seconds - seconds)
            waves.append((wave, rate))
            seconds += len(wave) / rate
    except (soundfile.LibsndfileError, OSError, MemoryError) as error:
        raise ValueError(f"audio cannot be decoded ({error})") from error
    return waves


def _decode_stream(stream: Stream, max_seconds: float) -> tuple[Wave, int]:
    with _ForwardFile((_EndlessBytes if stream.is_estimated else BytesIO)(stream.data)) as file:
        rate = file.samplerate
        if not MIN_RATE <= rate <= MAX_RATE:
            raise ValueError(f"audio at {rate} Hz: expected {MIN_RATE} to {MAX_RATE} Hz")
        _check_header(file)
        claimed = file.frames if stream.samples is None else stream.samples
        is_counted = claimed < UNKNOWN_SAMPLES
        blocks, total, wanted = list[Wave](), 0, claimed
        while wanted:
            samples = claimed if is_counted else total
            if samples > max_seconds * rate + rate / 100:
                raise TooLongError(f"audio of more than {max_seconds:g} s")
            if samples > MAX_SAMPLES:
                raise ValueError(f"audio of {samples} samples: expected at most {MAX_SAMPLES}")
            block = file.read(min(wanted, max(1, BLOCK_SAMPLES // file.channels)), dtype="float32")
            if not len(block):
                break
            blocks.append(block.mean(axis=1) if block.ndim > 1 else block)
            total, wanted = total + len(block), wanted - len(block)
        if is_counted and total != claimed:
            raise ValueError(f"{total} of {claimed} samples can be decoded: the audio is truncated or damaged")
        if stream.samples is not None and _has_more(file):
            raise ValueError(f"audio of more than the {claimed} samples in its header")
    return blocks[0] if len(blocks) == 1 else np.concatenate([np.zeros(0, np.float32), *blocks]), rate


def _has_more(file: soundfile.SoundFile) -> bool:
    """Returns whether another sample follows; tags of other programs do not count."""
    try:
        return len(file.read(1)) > 0
    except soundfile.LibsndfileError:
        return False


def _check_header(file: soundfile.SoundFile) -> None:
    """Raises ValueError if a file that `split_streams` does not follow is shorter than its header says."""
    if file.format == "MP3" and file.subtype != "MPEG_LAYER_III":
        raise ValueError(f"{file.subtype}: expected MPEG layer III")
    if file.format not in ("WAV", "WAVEX", "RF64", "FLAC", "OGG", "MP3") and "(should be" in file.extra_info:
        raise ValueError(f"{file.format} that is shorter than its header says: the file is truncated")


def join_waves(waves: Sequence[tuple[Wave, int]], sample_rate: int) -> Wave:
    """Returns waves [N] with their sample rates as one wave [N] at `sample_rate` Hz."""
    resampled_waves = [
        wave if rate == sample_rate else soxr.resample(wave, rate, sample_rate) for wave, rate in waves
    ]
    joined = resampled_waves[0] if len(waves) == 1 else np.concatenate(resampled_waves)
    return np.ascontiguousarray(joined, dtype=np.float32)


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
