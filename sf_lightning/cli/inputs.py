"""Inputs of `sf-decode`: tokens and the speaker, from pipes, files and shard sets."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sf_lightning.audio.wave import Wave
from sf_lightning.data.held_out import evenly_spaced_clips, full_name, read_clips
from sf_lightning.data.lanes import DrawnClip
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import BadSample, read_speech
from sf_lightning.data.shards import ShardSet
from sf_lightning.files.foreign import require_regular
from sf_lightning.files.npy import read_npy
from sf_lightning.model.pretrained import Pretrained
from sf_lightning.model.streamflow import StreamFlow

MAX_PIECE = 65536
"""Bytes of a line of tokens that are read at once; no integer is that long."""


def read_stdin(stdin_format: str) -> Iterator[Tensor]:
    """Yields tokens [L] from standard input as they arrive, in one of the formats of `--stdin_format`.

    Raises:
        ValueError: if a line holds anything but integers, or the input ends within a token.
    """
    if stdin_format == "lines":
        yield from _read_lines()
        return
    rest = b""
    while data := os.read(sys.stdin.fileno(), 4096):
        data = rest + data
        complete = len(data) // 2 * 2
        rest = data[complete:]
        yield torch.from_numpy(np.frombuffer(data[:complete], "<i2").astype(np.int64))
    if rest:
        raise ValueError("--stdin has an odd number of bytes: expected two per token (--stdin_format=int16)")


def _read_lines() -> Iterator[Tensor]:
    """Yields the tokens of each line; those of a long line in pieces, of which none ends within a number."""
    rest = b""
    while piece := sys.stdin.buffer.readline(MAX_PIECE):
        words, piece = (rest + piece).split(), rest + piece
        rest = words.pop() if words and not piece[-1:].isspace() else b""
        if len(rest) >= MAX_PIECE:
            break
        yield _parse_tokens(words)
    if rest:
        yield _parse_tokens([rest])


def _parse_tokens(words: list[bytes]) -> Tensor:
    try:
        return torch.tensor([int(word) for word in words], dtype=torch.long)
    except (ValueError, OverflowError, RuntimeError):
        text = b" ".join(words)[:40].decode(errors="replace")
        raise ValueError(f"--stdin is {text!r}: expected integers, or --stdin_format=int16") from None


def find_clip(shards: ShardSet, key: str | None, trained: Pretrained) -> DrawnClip:
    """Returns a clip of a shard set (the first one if `key` is None), with a reference crop of its speaker.

    Raises:
        ValueError: if the set does not meet the requirements of the decoder `trained`, or has no such clip.
    """
    requirements = ClipRequirements.from_config(trained.description.model, trained.description.tokenizer)
    requirements.check_set(shards)
    if key is None:
        clips = evenly_spaced_clips(shards, 1, requirements)
    else:
        clips = read_clips(shards, _find_sample(shards, key), requirements)
    if (drawn := next(clips, None)) is None:
        raise ValueError(f"--clip: {shards.name} has no clip {key or ''} that can be decoded".replace("  ", " "))
    return drawn


def _find_sample(shards: ShardSet, name: str) -> dict[int, list[int]]:
    """Returns number of shard and of sample of the clip with a key, or SHARD/KEY; nothing if there is none.

    Raises:
        ValueError: if several have the key.
    """
    found = {}
    for number in range(len(shards.manifest.shards)):
        for i, row in enumerate(shards.read_index(number)):
            if name in (row.key, full := full_name(shards, number, row.key)):
                found[full] = number, i
    if len(found) > 1 and name not in found:
        raise ValueError(f"--clip: {len(found)} clips of {shards.name} are {name}: expected {' or '.join(found)}")
    return {number: [i] for full, (number, i) in found.items() if full == name or len(found) == 1}


def _load_array(path: Path) -> np.ndarray:
    try:
        return read_npy(_read_file(path)).copy()
    except (ValueError, OSError) as error:
        raise ValueError(f"{path} is no .npy array ({error})") from error


def _read_file(path: Path) -> bytes:
    require_regular(path)
    return path.read_bytes()


def load_tokens(path: Path) -> Tensor:
    """Returns the tokens [L] in a `.npy`.

    Raises:
        ValueError: if it is damaged or holds no integers.
    """
    array = _load_array(path)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"--tokens: {path} holds {array.dtype}: expected integers [L]")
    return torch.from_numpy(array.astype(np.int64))


@torch.inference_mode()
def embed_speaker(model: StreamFlow, path: Path, x_vector: str | None) -> Tensor:
    """Returns a speaker embedding [S].

    Args:
        model: The model whose encoder embeds audio.
        path: Audio of the speaker, of which the first seconds are used; or a `.npy` of the embedding itself.
        x_vector: A `.npy` of the speaker's x-vector [X], beside audio if the model uses x-vectors.

    Raises:
        ValueError: if the audio cannot be used, or there is an x-vector beside an embedding.
    """
    if path.suffix == ".npy":
        if x_vector is not None:
            raise ValueError(f"--speaker {path} is an embedding, which includes the x-vector: leave out --x_vector")
        return torch.from_numpy(_load_array(path)).float()
    mel = model.mel.config
    try:
        wave = read_speech(_read_file(path), mel)
    except BadSample as error:
        raise ValueError(f"--speaker: {path} cannot be used as a reference: {error}") from error
    # All crops have one length: a shorter one is repeated, as in training.
    crop = np.resize(wave, model.speaker.crop_samples(mel.sample_rate))
    stored = np.zeros(0, np.float32) if x_vector is None else _load_array(Path(x_vector))
    return embed(model, crop, torch.from_numpy(stored))


@torch.inference_mode()
def embed(model: StreamFlow, crop: Wave, x_vector: Tensor) -> Tensor:
    """Returns the embedding [S] of a crop [N] and an x-vector [X]."""
    inputs = (torch.from_numpy(crop)[None], x_vector.float()[None])
    device = model.dit.from_mel.weight.device
    return model.encode_speaker(*(part.to(device) for part in inputs))[0]
