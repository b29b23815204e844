"""What there is to say and in whose voice, read from pipes, files and shard sets."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sf_lightning.audio.wave import Wave
from sf_lightning.data.held_out import evenly_spaced_clips
from sf_lightning.data.lanes import DrawnClip
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import BadSample, read_speech
from sf_lightning.data.shards import ShardSet
from sf_lightning.model.pretrained import Pretrained
from sf_lightning.model.streamflow import StreamFlow

MAX_LINE = 65536
"""Bytes of a line of tokens; what is longer is no text."""


def read_stdin(stdin_format: str) -> Iterator[Tensor]:
    """Yields tokens [L] as they come, in the format of `--stdin_format`.

    Raises:
        ValueError: if a line holds something else than whole numbers, or half a number is left at the end.
    """
    if stdin_format == "lines":
        while line := sys.stdin.buffer.readline(MAX_LINE):
            try:
                yield torch.tensor([int(word) for word in line.split()], dtype=torch.long)
            except (ValueError, OverflowError, RuntimeError):
                came = line.strip()[:40].decode(errors="replace")
                raise ValueError(f"--stdin: {came!r}: wanted whole numbers, or --stdin_format=int16") from None
        return
    rest = b""
    while piece := os.read(sys.stdin.fileno(), 4096):
        piece = rest + piece
        whole = len(piece) // 2 * 2
        rest = piece[whole:]
        yield torch.from_numpy(np.frombuffer(piece[:whole], "<i2").astype(np.int64))
    if rest:
        raise ValueError("--stdin: an odd number of bytes came: wanted two for each token (--stdin_format=int16)")


def find_clip(shards: ShardSet, key: str | None, trained: Pretrained) -> DrawnClip:
    """Returns a clip of a shard set that fits the model, by default its first, and a crop of its speaker.

    Raises:
        ValueError: if the set does not fit, or has no such clip.
    """
    requirements = ClipRequirements.from_config(trained.description.model, trained.description.tokenizer)
    requirements.check_set(shards)
    samples = shards.samples if key is not None else 1
    for drawn in evenly_spaced_clips(shards, samples, requirements):
        if key in (None, drawn.clip.key):
            return drawn
    raise ValueError(f"--clip: {shards.folder} has no clip {key} that can be decoded")


def _load_array(path: Path) -> np.ndarray:
    try:
        return np.load(path, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        raise ValueError(f"{path} is no .npy array ({error})") from error


def load_tokens(path: Path) -> Tensor:
    """Returns the tokens [L] in a `.npy`.

    Raises:
        ValueError: if it holds no whole numbers.
    """
    array = _load_array(path)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"--tokens: {path} holds {array.dtype}: wanted whole numbers [L]")
    return torch.from_numpy(array.astype(np.int64))


@torch.inference_mode()
def embed_speaker(model: StreamFlow, path: Path, x_vector: str | None) -> Tensor:
    """Returns the embedding [S] in a `.npy`, or that of the first seconds of an audio file and an x-vector.

    Raises:
        ValueError: if there is no voice in the file, or an x-vector beside a whole embedding.
    """
    if path.suffix == ".npy":
        if x_vector is not None:
            raise ValueError(f"--speaker {path} is a whole embedding: leave --x_vector out")
        return torch.from_numpy(_load_array(path)).float()
    mel = model.mel.config
    try:
        wave = read_speech(path.read_bytes(), mel)
    except BadSample as error:
        raise ValueError(f"--speaker: {path} is no voice to speak in: {error}") from error
    # Crops have one length, always: a shorter one is repeated, as in training.
    crop = np.resize(wave, model.speaker.crop_samples(mel.sample_rate))
    stored = np.zeros(0, np.float32) if x_vector is None else _load_array(Path(x_vector))
    return embed(model, crop, torch.from_numpy(stored))


@torch.inference_mode()
def embed(model: StreamFlow, crop: Wave, x_vector: Tensor) -> Tensor:
    """Returns the embedding [S] of a crop [N] and an x-vector [X]."""
    inputs = (torch.from_numpy(crop)[None], x_vector.float()[None])
    device = model.dit.from_mel.weight.device
    return model.encode_speaker(*(each.to(device) for each in inputs))[0]
