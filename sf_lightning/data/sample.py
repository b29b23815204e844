"""One sample of a shard: from the bytes of its files to a clip that can be cut into blocks.

A broken sample raises `BadSample` with a cause; who reads decides whether to skip and count it.
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
"""Every clip is scaled to this peak when it is read: corpora differ by 15 dB."""

MAX_FRAMES_APART = 3
"""Tokens may cover up to 3 frames more or fewer than the mel has; the wave is trimmed or padded to them."""

RawSample = dict[str, Any]
"""A sample as WebDataset reads it: `__key__`, and bytes by suffix."""


class BadSample(Exception):
    """A sample that must be skipped.

    Args:
        cause: Short and countable: "undecodable", "silent", "not finite", "too short", "token count", "x-vector",
            "incomplete", "damaged"; while a set is built also "duplicate key", "damaged tar".
        detail: What came and what was wanted.
    """

    def __init__(self, cause: str, detail: str) -> None:
        super().__init__(f"{cause}: {detail}")
        self.cause = cause


@dataclass
class Clip:
    """Speech with its tokens, ready to be cut.

    Attributes:
        key: Of the sample.
        wave: [L * frames_per_token * hop_length], scaled to `PEAK`.
        tokens: [L].
        x_vector: [X], of the speaker in this clip; X is 0 where none is wanted.
    """

    key: str
    wave: Wave
    tokens: Tokens
    x_vector: NDArray[np.float32]


def find_audio(raw: RawSample) -> tuple[str, bytes]:
    """Returns suffix and bytes of the sample's audio file.

    Raises:
        BadSample: if it has none.
    """
    for suffix in AUDIO_SUFFIXES:
        if suffix[1:] in raw:
            return suffix[1:], raw[suffix[1:]]
    raise BadSample(
        "incomplete", f"no audio among {', '.join(k for k in raw if not k.startswith('__')) or 'nothing'}"
    )


def read_speech(source: bytes, mel: MelConfig) -> Wave:
    """Returns a wave at the mel's rate, scaled to `PEAK`.

    Raises:
        BadSample: if it cannot be decoded, is silent, holds NaN or is shorter than a mel needs.
    """
    try:
        wave = read_wave(source, mel.sample_rate)
    except ValueError as error:
        raise BadSample("undecodable", str(error)) from error
    if len(wave) <= mel.pad:
        raise BadSample("too short", f"{len(wave)} samples, more than {mel.pad} wanted")
    peak = max(float(wave.max()), -float(wave.min()))
    if not np.isfinite(peak):
        raise BadSample("not finite", "NaN or infinity among the samples")
    if peak < 1e-3:
        raise BadSample("silent", f"peak {peak:.1e}, at least 1e-3 wanted")
    wave *= np.float32(PEAK / peak)
    return wave


def decode_clip(
    raw: RawSample, mel: MelConfig, vocabulary: int, frames_per_token: int, x_vector_width: int = 0
) -> Clip:
    """Decodes a sample; the wave is trimmed or zero-padded to whole tokens.

    Raises:
        BadSample: if a part is missing or broken, or tokens and audio are of different length.
    """
    tokens = read_tokens(raw.get("tokens.npy", b""), vocabulary)
    x_vector = read_x_vector(raw.get("speaker.npy", b""), x_vector_width)
    wave = fit_to_tokens(read_speech(find_audio(raw)[1], mel), tokens, mel, frames_per_token)
    return Clip(str(raw["__key__"]), wave, tokens, x_vector)


def fit_to_tokens(wave: Wave, tokens: Tokens, mel: MelConfig, frames_per_token: int) -> Wave:
    """Returns a wave [N] trimmed or zero-padded to its tokens [L], [L * frames_per_token * hop_length].

    Raises:
        BadSample: if the two are of different length.
    """
    frames, wanted = len(wave) // mel.hop_length, len(tokens) * frames_per_token
    # A tokenizer that drops a partial token leaves up to frames_per_token - 1 frames, and as many the other way.
    if len(tokens) == 0 or abs(frames - wanted) > MAX_FRAMES_APART:
        raise BadSample("token count", f"{len(tokens)} tokens are {wanted} frames, the audio has {frames}")
    missing = wanted * mel.hop_length - len(wave)
    return np.pad(wave, (0, missing)) if missing > 0 else wave[: wanted * mel.hop_length]


def read_npy(data: bytes) -> NDArray:
    """Returns the array of a `.npy`, read only.

    Raises:
        ValueError: if it is broken, or of objects.
    """
    # Not np.load: to parse a header takes it longer than all else that is done for a clip but decoding.
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, dtype = _npy_header(data[:start])
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


@lru_cache(maxsize=4096)
def _npy_header(header: bytes) -> tuple[tuple[int, ...], np.dtype]:
    stream = io.BytesIO(header)
    if (version := np.lib.format.read_magic(stream)) != (1, 0):
        raise ValueError(f".npy of version {version}: wanted (1, 0)")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(stream)
    if fortran_order and len(shape) > 1:
        raise ValueError(".npy in Fortran order")
    return shape, dtype


def read_x_vector(data: bytes, width: int) -> NDArray[np.float32]:
    """Reads an x-vector [width] from the bytes of a `.npy`; of width 0, nothing is read.

    Raises:
        BadSample: if it is missing, broken, of another width or not finite.
    """
    if width == 0:
        return np.zeros(0, np.float32)
    if not data:
        raise BadSample("incomplete", "no speaker.npy")
    try:
        x_vector = read_npy(data)
    except ValueError as error:
        raise BadSample("undecodable", f"speaker.npy ({error})") from error
    if x_vector.shape != (width,) or not np.isfinite(x_vector).all():
        raise BadSample("x-vector", f"speaker.npy of shape {x_vector.shape}: wanted ({width},), all finite")
    return x_vector.astype(np.float32)


def read_tokens(data: bytes, vocabulary: int) -> Tokens:
    """Reads tokens [L] from the bytes of a `.npy`.

    Raises:
        BadSample: if they are missing, broken, or outside the vocabulary.
    """
    if not data:
        raise BadSample("incomplete", "no tokens.npy")
    try:
        tokens = read_npy(data)
    except ValueError as error:
        raise BadSample("undecodable", f"tokens.npy ({error})") from error
    if tokens.ndim != 1 or not np.issubdtype(tokens.dtype, np.integer):
        raise BadSample("undecodable", f"tokens.npy of shape {tokens.shape} and {tokens.dtype}")
    if len(tokens) and not 0 <= tokens.min() <= tokens.max() < vocabulary:
        raise BadSample("token count", f"tokens {tokens.min()} to {tokens.max()}, vocabulary {vocabulary}")
    return tokens.astype(np.int64)


def reference_crop(raw: RawSample, mel: MelConfig, samples: int, where: float) -> Wave:
    """Returns a crop [samples] of a sample's audio; see `crop_wave`.

    Raises:
        BadSample: as `read_speech`.
    """
    return crop_wave(read_speech(find_audio(raw)[1], mel), samples, where)


def crop_wave(wave: Wave, samples: int, where: float) -> Wave:
    """Returns a crop [samples] of a wave, repeated if the wave is shorter.

    Args:
        wave: [N].
        samples: Its length.
        where: 0 is the first place it may have, 1 the last.
    """
    start = int(where * max(0, len(wave) - samples))
    # A copy, for a crop is kept longer than its clip.
    return wave[start : start + samples].copy() if len(wave) >= samples else np.resize(wave, samples)
