"""Shard sets, lanes and packs of tests."""

import io
import shutil
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.lanes import Lane, LaneConfig, LaneState
from sf_lightning.data.packing import Batch, PackShape, pack_clips
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import RawSample
from sf_lightning.data.shards import ShardSet
from sf_lightning.tokens.base import Tokenizer
from sf_lightning.tokens.load import load_tokenizer

PACK_SHAPE = PackShape(num_blocks=16, block_size=24, frames_per_token=4, max_pieces=6, mel=MelConfig())


def tokenizer_beside(shards: ShardSet) -> Tokenizer:
    """Loads the tokenizer that the `shards` fixture saved beside its set."""
    return load_tokenizer(Path(shards.folder).parent / "kmeans-50.npz")


def copy_shards(shards: ShardSet, folder: Path) -> ShardSet:
    """Copies a set to a folder, to be damaged there."""
    shutil.copytree(shards.folder, folder)
    return ShardSet(folder)


def raw_sample(wave: np.ndarray, tokens: int, rate: int = 16000) -> RawSample:
    """Returns a sample as WebDataset reads it: a wave [N], and zeros for its tokens."""
    audio, array = io.BytesIO(), io.BytesIO()
    soundfile.write(audio, wave, rate, format="WAV", subtype="FLOAT")
    np.save(array, np.zeros(tokens, np.int32))
    return {"__key__": "a", "wav": audio.getvalue(), "tokens.npy": array.getvalue()}


def make_lane(
    shards: ShardSet, number: int = 0, num_lanes: int = 1, seed: int = 0, crop_samples: int = 4000, **change: Any
) -> Lane:
    """Returns a lane over one set, with short reference crops."""
    requirements = ClipRequirements(crop_samples=crop_samples)
    return Lane([shards], number, LaneConfig(seed, num_lanes, requirements, **change))


def lane_packs(
    lane: Lane, count: int, state: LaneState = LaneState(), shape: PackShape = PACK_SHAPE
) -> list[Batch]:
    """Returns the next packs of a lane after a state."""
    return list(islice(pack_clips(lane.draw_clips(state), shape, lane.lane, state), count))


def set_packs(shards: ShardSet, count: int, state: LaneState = LaneState(), **change: Any) -> list[Batch]:
    """Returns the next packs of a lane over one set after a state; see `make_lane`."""
    return lane_packs(make_lane(shards, **change), count, state)


def packs_equal(a: Batch, b: Batch) -> bool:
    """Returns whether two packs are equal bit by bit."""
    tensors = (
        (a.wave, b.wave),
        (a.tokens, b.tokens),
        (a.reference, b.reference),
        (a.blocks.valid, b.blocks.valid),
    )
    return (
        a.keys == b.keys
        and a.packs == b.packs
        and a.states == b.states
        and all(torch.equal(*pair) for pair in tensors)
    )
