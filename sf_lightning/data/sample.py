"""One sample of a shard: from the bytes of its files to a clip that can be cut into blocks.

A broken sample raises `BadSample` with a cause; the caller skips and counts it.

Letters: L tokens, N samples of audio, X width of an x-vector.
"""

import io
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sf_lightning.audio.mel import MelConfig
from sf_lightning.audio.wave import AUDIO_SUFFIXES, Wave, read_wave
from sf_lightning.tokens.base import Tokens

PEAK = 0.7
"""Peak to which every clip is scaled when it is read: levels of corpora differ by 15 dB."""

MAX_EXTRA_FRAMES = 3
"""Largest difference in frames between tokens and audio; the audio is trimmed or padded to the tokens."""

RawSample = dict[str, Any]
"""A sample as WebDataset reads it: `__key__`, and the bytes of each file by suffix."""


class BadSample(Exception):
    """A sample that must be skipped.

    Args:
        cause: Cause under which it is counted: "undecodable", "silent", "not finite", "too short", "token count",
            "x-vector", "incomplete", "damaged"; while a set is built also "duplicate key", "damaged tar",
            "unreadable JSON", "unreadable file", "link out of the corpus", "link out of the tar".
        detail: Value that was found and value that is expected.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause, self.detail = cause, detail


@dataclass
class Clip:
    """Speech with its tokens, ready to be cut into blocks.

    Attributes:
        key: Key of the sample.
        wave: Samples scaled to `PEAK`, [L * frames_per_token * hop_length].
        tokens: Tokens [L].
        x_vector: X-vector of the speaker [X]; X is 0 where none is read.
    """

    key: str
    wave: Wave
    tokens: Tokens
    x_vector: NDArray[np.float32]


def find_audio(raw: RawSample) -> tuple[str, bytes]:
    """Returns suffix and bytes of the audio file of a sample.

    Raises:
        BadSample: if it has none.
    """
    for suffix in AUDIO_SUFFIXES:
        if suffix[1:] in raw:
            return suffix[1:], raw[suffix[1:]]
    found = ", ".join(name for name in raw if not name.startswith("__"))
    raise BadSample("incomplete", f"found {found or 'nothing'}, no audio")


def read_speech(source: bytes, mel: MelConfig) -> Wave:
    """Returns the wave [N] of an audio file, resampled to the rate of the mel and scaled to `PEAK`.

    Raises:
        BadSample: if it cannot be decoded, is silent, has NaN or infinite samples, or is too short for a mel frame.
    """
    try:
        wave = read_wave(source, mel.sample_rate)
    except ValueError as error:
        raise BadSample("undecodable", str(error)) from error
    if len(wave) <= mel.pad:
        raise BadSample("too short", f"{len(wave)} samples, expected more than {mel.pad}")
    peak = max(float(wave.max()), -float(wave.min()))
    if not np.isfinite(peak):
        raise BadSample("not finite", "NaN or infinite samples")
    if peak < 1e-3:
        raise BadSample("silent", f"peak {peak:.1e}, expected at least 1e-3")
    wave *= np.float32(PEAK / peak)
    return wave


def decode_clip(
    raw: RawSample, mel: MelConfig, vocabulary: int, frames_per_token: int, x_vector_width: int = 0
) -> Clip:
    """Decodes a sample; the wave is trimmed or zero-padded to whole tokens.

    Args:
        raw: Files of the sample.
        mel: Mel settings, for sample rate and hop length.
        vocabulary: Number of codes of the tokenizer.
        frames_per_token: Mel frames per token.
        x_vector_width: Width X of the x-vector to read; 0 reads none.

    Raises:
        BadSample: if a file is missing or broken, or tokens and audio differ in length.
    """
    tokens = read_tokens(raw.get("tokens.npy", b""), vocabulary)
    x_vector = read_x_vector(raw.get("speaker.npy", b""), x_vector_width)
    wave = fit_to_tokens(read_speech(find_audio(raw)[1], mel), tokens, mel, frames_per_token)
    return Clip(str(raw["__key__"]), wave, tokens, x_vector)


def fit_to_tokens(wave: Wave, tokens: Tokens, mel: MelConfig, frames_per_token: int) -> Wave:
    """Returns a wave [N] trimmed or zero-padded to its tokens [L]: [L * frames_per_token * hop_length].

    Raises:
        BadSample: if the lengths differ by more than `MAX_EXTRA_FRAMES`, or there is no token.
    """
    frames, expected = len(wave) // mel.hop_length, len(tokens) * frames_per_token
    # A tokenizer that drops a partial token leaves up to frames_per_token - 1 frames; one that rounds up, as many
    # more.
    if len(tokens) == 0 or abs(frames - expected) > MAX_EXTRA_FRAMES:
        raise BadSample("token count", f"{len(tokens)} tokens are {expected} frames, the audio has {frames}")
    missing = expected * mel.hop_length - len(wave)
    return np.pad(wave, (0, missing)) if missing > 0 else wave[: expected * mel.hop_length]


def read_npy(data: bytes) -> NDArray:
    """Returns the array in the bytes of a `.npy` file, read-only.

    Raises:
        ValueError: if it is broken, or an array of objects.
    """
    # Not np.load: it parses the header for longer than everything else takes but the audio decoder.
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, dtype = _parse_npy_header(data[:start])
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


@lru_cache(maxsize=4096)
def _parse_npy_header(header: bytes) -> tuple[tuple[int, ...], np.dtype]:
    stream = io.BytesIO(header)
    if (version := np.lib.format.read_magic(stream)) != (1, 0):
        raise ValueError(f".npy of version {version}, expected (1, 0)")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran_order and len(shape) > 1:
        raise ValueError(".npy in Fortran order, expected C order")
    return shape, dtype


def read_x_vector(data: bytes, width: int) -> NDArray[np.float32]:
    """Returns the x-vector [width] in the bytes of a `.npy` file; nothing is read where the width is 0.

    Raises:
        BadSample: if it is missing, broken, of another width or not finite.
    """
    if width == 0:
        return np.zeros(0, np.float32)
    x_vector = _read_array("speaker.npy", data)
    if x_vector.shape != (width,) or not np.isfinite(x_vector).all():
        raise BadSample("x-vector", f"speaker.npy of shape {x_vector.shape}, expected ({width},), all finite")
    return x_vector.astype(np.float32)


def read_tokens(data: bytes, vocabulary: int) -> Tokens:
    """Returns the tokens [L] in the bytes of a `.npy` file.

    Raises:
        BadSample: if they are missing, broken, or outside the vocabulary.
    """
    tokens = _read_array("tokens.npy", data)
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise BadSample(
            "undecodable", f"tokens.npy of shape {tokens.shape} and {tokens.dtype}, expected integers [L]"
        )
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocabulary:
        raise BadSample("token count", f"tokens {tokens.min()} to {tokens.max()}: expected 0 to {vocabulary - 1}")
    return tokens.astype(np.int64)


def _read_array(name: str, data: bytes) -> NDArray:
    if not data:
        raise BadSample("incomplete", f"no {name}")
    try:
        return read_npy(data)
    except ValueError as error:
        raise BadSample("undecodable", f"{name} ({error})") from error


def reference_crop(raw: RawSample, mel: MelConfig, samples: int, position: float) -> Wave:
    """Returns a crop [samples] of the audio of a sample; see `crop_wave`.

    Raises:
        BadSample: as `read_speech`.
    """
    return crop_wave(read_speech(find_audio(raw)[1], mel), samples, position)


def crop_wave(wave: Wave, samples: int, position: float) -> Wave:
    """Returns a crop [samples] of a wave [N], which is repeated if it is shorter.

    A `position` of 0 is the earliest possible start of the crop, 1 the latest.
    """
    start = int(position * max(0, len(wave) - samples))
    # A copy, because a crop is kept longer than its clip.
    return wave[start : start + samples].copy() if len(wave) >= samples else np.resize(wave, samples)
