"""Noise that is a pure function of a key, independent of what was drawn before.

`block_noise` is a function of (seed, absolute block number), so it is unbounded and the same in every
chunk, streamed or offline. `keyed_generator` does the same for training, keyed by lane and pack.
"""

import numpy as np
import torch
from torch import Tensor


def keyed_generator(*key: int, device: torch.device | str = "cpu") -> torch.Generator:
    """Returns a generator on `device` that is a pure function of the key (non-negative integers)."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state >> np.uint64(1)))


def block_noise(seed: int, first: int, count: int, frames: int, bands: int) -> Tensor:
    """Returns normal noise [count, frames, bands] of blocks first .. first + count - 1, on the CPU.

    It is drawn on the CPU so that a stream has the same noise on every device.
    """
    generators = (keyed_generator(seed, number) for number in range(first, first + count))
    return torch.stack([torch.randn(frames, bands, generator=generator) for generator in generators])
