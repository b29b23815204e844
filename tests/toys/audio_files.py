"""Audio files as other programs write them: joined, written to a pipe, of telephones, with tags."""

import io
from contextlib import suppress
from typing import Any

import av
import numpy as np
import soundfile

from tests.toys.audio import synthetic_voice

ID3 = b"ID3\x03\0\0\0\0\0\x0a" + bytes(10)
ID3V1 = b"TAG" + bytes(125)

MPEG2_KBITS = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def encoded(seconds: float, kind: str = "WAV", subtype: str | None = None, rate: int = 16000, **more: Any) -> bytes:
    """Returns speech-like audio of a format and subtype of libsndfile."""
    channels = more.pop("channels", 1)
    wave = synthetic_voice(seconds)
    wave = np.interp(np.arange(round(seconds * rate)) / rate, np.arange(len(wave)) / 16000, wave)
    buffer = io.BytesIO()
    soundfile.write(buffer, np.stack([wave] * channels, 1), rate, format=kind, subtype=subtype, **more)
    return buffer.getvalue()


def without_xing(data: bytes) -> bytes:
    """Returns an mp3 of MPEG 2 at 16 kHz without its first frame, as encoders write it to a pipe."""
    size = 72000 * MPEG2_KBITS[data[2] >> 4] // 16000 + (data[2] >> 1 & 1)
    assert b"Xing" in data[:size] or b"Info" in data[:size]
    return data[size:]


def with_data_size(wav: bytes, size: int) -> bytes:
    """Returns a WAV with another size in the header of its audio."""
    at = wav.index(b"data") + 4
    return wav[:at] + size.to_bytes(4, "little") + wav[at + 4 :]


def without_length(flac: bytes) -> bytes:
    """Returns a FLAC without the number of its samples, as encoders write it to a pipe."""
    return flac[:21] + bytes([flac[21] & 0xF0]) + bytes(4) + flac[26:]


def seconds_by_ffmpeg(data: bytes) -> float:
    """Returns the duration of a file as FFmpeg decodes it, in seconds."""
    with av.open(io.BytesIO(data)) as container:
        seconds = 0.0
        for packet in container.demux(audio=0):
            with suppress(av.error.InvalidDataError):  # bytes that are no audio
                seconds += sum(frame.samples / frame.sample_rate for frame in packet.decode())
        return seconds
