"""Random values that are a pure function of a key, independent of what was drawn before.

`block_noise` is counter-based: the seed is the key of a Philox generator, and the absolute block number is part of
its counter. No two blocks of a stream share noise, however long it is, and a block has the same noise in every
chunk, streamed or offline. The other generators are seeded with a hash of a key that begins with a purpose, so that
keys of different purposes or lengths differ.
"""

from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

BLOCK_NOISE = 1
"""Second word of the Philox keys of `block_noise`."""


def require_seed(option: str, seed: int, limit: int = 2**63) -> None:
    """Checks a seed.

    Args:
        option: Name of the option or argument, for the error.
        seed: Value to check.
        limit: Smallest integer that is too large.

    Raises:
        ValueError: unless the seed is an integer of 0 or more, below the limit.
    """
    if type(seed) is not int or not 0 <= seed < limit:
        raise ValueError(f"{option} is {seed}: expected an integer from 0 to {limit - 1}")


def keyed_generator(purpose: str, *key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Returns a generator on `device` that is a pure function of purpose and key (any integers).

    On the CPU torch keeps 32 bits of a seed: of 10,000 generators, two are the same with a probability of 1 %.
    """
    return torch.Generator(device).manual_seed(_hash_key(purpose, key) >> 65)


def keyed_random(purpose: str, *key: int) -> np.random.Generator:
    """Returns a NumPy generator that is a pure function of purpose and key (any integers)."""
    return np.random.default_rng(_hash_key(purpose, key))


def _hash_key(purpose: str, key: tuple[int, ...]) -> int:
    """Returns a hash of 128 bits; it depends on the number of integers too."""
    return int.from_bytes(blake2b(repr((purpose, *key)).encode(), digest_size=16).digest())


def block_noise(seed: int, first: int, count: int, frames: int, bands: int) -> Tensor:
    """Returns normal noise [count, frames, bands] of blocks first .. first + count - 1, on the CPU.

    It is drawn on the CPU so that a stream has the same noise on every device.
    """
    noise = np.empty((count, frames, bands), np.float32)
    for i in range(count):
        # The low word of the counter advances within the block.
        philox = np.random.Philox(key=[seed, BLOCK_NOISE], counter=[0, first + i, 0, 0])
        np.random.Generator(philox).standard_normal(dtype=np.float32, out=noise[i])
    return torch.from_numpy(noise)
