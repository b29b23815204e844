"""One sample of a shard: from the bytes of its files to a clip that can be cut into blocks.

A broken sample raises `BadSample` with a cause; the caller skips and counts it.

Letters: L tokens, N samples of audio, X width of an x-vector.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sf_lightning.audio.mel import MelConfig
from sf_lightning.audio.silence import is_silent
from sf_lightning.audio.wave import AUDIO_SUFFIXES, TooLongError, Wave, decode_audio, join_waves
from sf_lightning.files.npy import read_npy
from sf_lightning.tokens.base import Tokens

PEAK = 0.7
"""Peak to which every clip is scaled when it is read: levels of corpora differ by 15 dB."""

MIN_PEAK = 1e-3
"""Peak below which a clip is silent, measured from the middle between its highest and its lowest sample."""

MIN_SLACK = 4
"""Frames by which tokens and audio may differ at least; where a token has more frames, one token."""

RawSample = dict[str, Any]
"""A sample as WebDataset reads it: `__key__`, and the bytes of each file by suffix."""


class BadSample(Exception):
    """A sample that must be skipped.

    Args:
        cause: Cause under which it is counted: "undecodable", "silent", "not finite", "too short", "token count",
            "x-vector", "incomplete", "damaged"; while a set is built also "too long", "duplicate key",
            "damaged tar", "unreadable JSON", "unreadable file", "link out of the corpus", "link out of the tar".
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


def read_speech(source: bytes, mel: MelConfig, max_seconds: float = math.inf) -> Wave:
    """Returns the wave [N] of an audio file, resampled to the rate of the mel and scaled to `PEAK`.

    Raises:
        BadSample: if it cannot be decoded, is silent, has NaN or infinite samples, is too short for a mel frame, or
            is longer than `max_seconds`.
    """
    try:
        streams = decode_audio(source, max_seconds)
    except TooLongError as error:
        raise BadSample("too long", str(error)) from error
    except ValueError as error:
        raise BadSample("undecodable", str(error)) from error
    wave = join_waves(streams, mel.sample_rate)
    if len(wave) <= mel.pad:
        raise BadSample("too short", f"{len(wave)} samples, expected more than {mel.pad}")
    peak = max(float(wave.max()), -float(wave.min()))
    if not np.isfinite(peak):
        raise BadSample("not finite", "NaN or infinite samples")
    # Before resampling, which rings at the ends of a constant.
    if all(is_silent(stream, 2 * MIN_PEAK) for stream, _ in streams):
        raise BadSample("silent", f"peak {peak:.1e}, but constant within {2 * MIN_PEAK}")
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

    A tokenizer that drops a partial token leaves less than a token of audio; one that rounds up ends with silence.
    The tokens are kept as they are, so that the audio follows them frame by frame.

    Raises:
        BadSample: if the lengths differ by more than one token and `MIN_SLACK` frames, or there is no token.
    """
    frames, expected = len(wave) / mel.hop_length, len(tokens) * frames_per_token
    if len(tokens) == 0 or abs(frames - expected) > max(MIN_SLACK, frames_per_token):
        raise BadSample("token count", f"{len(tokens)} tokens are {expected} frames, the audio has {frames:.1f}")
    missing = expected * mel.hop_length - len(wave)
    return np.pad(wave, (0, missing)) if missing > 0 else wave[: expected * mel.hop_length]


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
