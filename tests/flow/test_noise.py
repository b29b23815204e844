"""Keyed noise: no two keys share it, and it is normal."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from sf_lightning.flow.noise import block_noise, keyed_generator, keyed_random, require_seed
from sf_lightning.streaming.state import DecodeConfig
from sf_lightning.training.datamodule import ShardDataModule
from sf_lightning.training.module import StreamFlowModule
from sf_lightning.training.vocoder_module import VocoderModule


def test_noise_depends_only_on_seed_and_block() -> None:
    long = block_noise(3, 0, 6, 24, 80)
    assert torch.equal(long[2:5], block_noise(3, 2, 3, 24, 80))
    assert not torch.equal(long[2], block_noise(4, 2, 1, 24, 80)[0])
    assert not torch.equal(long[2], long[3])
    assert block_noise(3, 10**12, 1, 24, 80).isfinite().all()


def test_no_two_blocks_share_noise_even_where_32_bits_of_a_hash_collide() -> None:
    # As a hash of 32 bits, (0, 50699) and (0, 55170) had the same noise, as had seeds that differ by 2**32.
    blocks = [(0, 50699), (0, 55170), (5 + 3 * 2**32, 0), (5, 3), (5 + 2**32, 3), (2**63 - 1, 2**62), (0, 2**62)]
    first = {block: block_noise(block[0], block[1], 1, 24, 80)[0, 0, 0].item() for block in blocks}
    assert len(set(first.values())) == len(blocks)
    many = block_noise(0, 0, 70_000, 1, 2).numpy().view(np.int64).reshape(-1)  # two values of each block
    assert len(np.unique(many)) == len(many)


def test_noise_is_normal_and_independent_of_neighboring_blocks_and_seeds() -> None:
    noise = torch.stack([block_noise(seed, 0, 40, 24, 80) for seed in (0, 1)]).double()
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        error = (noise**power).std() / noise.numel() ** 0.5
        assert abs(float((noise**power).mean()) - moment) < 4 * error
    flat = noise.flatten(2)
    for pair in (flat[:, 1:] * flat[:, :-1], flat[0] * flat[1], flat[..., 1:] * flat[..., :-1]):
        assert abs(float(pair.mean())) < 4 / pair.numel() ** 0.5


def test_noise_is_the_same_in_every_version() -> None:
    expected = [-1.431463, 1.6707169, -0.402724, -1.295642]
    np.testing.assert_allclose(block_noise(0, 0, 1, 24, 80)[0, 0, :4], expected, atol=1e-6)


def test_keys_of_different_purpose_digits_length_or_sign_differ() -> None:
    keys = [
        ("a", 1, 23),
        ("a", 12, 3),
        ("a", 123),
        ("a", 1, 23, 0),
        ("a", 1, 23, 0, 0),
        ("b", 1, 23),
        ("a", -1, 23),
    ]
    keys += [("a", 1 + 2**32, 23), ("a", 1, 23 + 2**64), ("a1", 23), ("a",)]
    values = {torch.rand(1, generator=keyed_generator(*key), dtype=torch.float64).item() for key in keys}
    assert len(values) == len(keys)
    assert len({keyed_random(*key).random() for key in keys}) == len(keys)
    assert keyed_random("a", 1).random() == keyed_random("a", 1).random()


@pytest.mark.parametrize("seed", [-1, 2**63, 1.5, True, "1"])
@pytest.mark.parametrize(
    ("option", "use"),
    [
        ("decode.seed", lambda seed: DecodeConfig(seed=seed)),
        ("data.seed", lambda seed: ShardDataModule("train", "dev", seed=seed)),
        ("model.seed", lambda seed: StreamFlowModule(seed=seed)),
        ("model.seed", lambda seed: VocoderModule(seed=seed)),
    ],
    ids=["decode", "data", "decoder", "vocoder"],
)
def test_a_seed_out_of_range_is_refused_with_its_option(option: str, use: Callable, seed: object) -> None:
    with pytest.raises(ValueError, match=rf"^{option} is {seed}: expected an integer from 0 to {2**63 - 1}$"):
        use(seed)


def test_seeds_within_the_range_are_accepted() -> None:
    for seed in (0, 2**32, 2**63 - 1):
        require_seed("decode.seed", seed)
        assert DecodeConfig(seed=seed).seed == seed
    block_noise(2**63 - 1, 0, 1, 24, 80)
