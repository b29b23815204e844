"""Sets mixed by weight, and perturbed clips."""

from collections import Counter
from itertools import islice

import numpy as np
import pytest

from sf_lightning.audio.mel import MelConfig
from sf_lightning.data.lanes import Lane, LaneConfig, LaneState
from sf_lightning.data.perturb import Perturbation
from sf_lightning.data.requirements import ClipRequirements
from sf_lightning.data.sample import Clip, decode_clip
from sf_lightning.data.shards import ShardSet
from tests.toys.audio import synthetic_voice
from tests.toys.shards import copy_shards, lane_packs, packs_equal, raw_sample


@pytest.fixture(scope="module")
def other(shards: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Returns a second set, a copy of the `shards` fixture."""
    return copy_shards(shards, tmp_path_factory.mktemp("other") / "set")


def mixed(sets: list[ShardSet], weights: list[float]) -> Lane:
    """Returns the only lane over several sets."""
    return Lane(sets, 0, LaneConfig(0, 1, ClipRequirements(crop_samples=4000)), weights)


def test_sets_are_mixed_by_weight_and_each_keeps_its_own_order(shards: ShardSet, other: ShardSet) -> None:
    clips = list(islice(mixed([shards, other], [3, 1]).draw_clips(LaneState()), 400))
    before = [drawn.state.places for drawn in clips]
    after = [drawn.after.places for drawn in clips]
    sources = [int(a[1] != b[1]) for a, b in zip(before, after, strict=True)]
    assert 0.18 < np.mean(sources) < 0.32
    alone = [drawn.clip.key for drawn in islice(mixed([shards], [1]).draw_clips(LaneState()), 100)]
    mine = [drawn.clip.key for drawn, index in zip(clips, sources, strict=True) if index == 0]
    assert mine[:100] == alone  # its order does not depend on the other set
    theirs = Counter(drawn.clip.key for drawn, index in zip(clips, sources, strict=True) if index == 1)
    assert len(theirs) == 23 and max(theirs.values()) - min(theirs.values()) <= 1


def test_a_mix_resumes_after_any_pack_with_the_next_one(shards: ShardSet, other: ShardSet) -> None:
    whole = lane_packs(mixed([shards, other], [2, 1]), 26)
    assert max(place.epoch for place in whole[-1].states[0].places) >= 1
    for stop in range(25):
        (after,) = lane_packs(mixed([shards, other], [2, 1]), 1, whole[stop].states[0])
        assert packs_equal(after, whole[stop + 1])


def clip(seconds: float) -> Clip:
    """Returns a clip with tokens 0, 1, 2, …"""
    made = decode_clip(raw_sample(synthetic_voice(seconds), round(25 * seconds)), MelConfig(), 50, 4)
    made.tokens = np.arange(len(made.tokens))
    return made


def envelope(wave: np.ndarray) -> np.ndarray:
    """Returns the level of a wave at 200 times."""
    loud = np.abs(wave).reshape(-1, 160).mean(1)
    return np.interp(np.linspace(0, 1, 200), np.linspace(0, 1, len(loud)), loud)


def test_clips_are_unchanged_by_default() -> None:
    one = clip(1.0)
    assert Perturbation().apply(one, MelConfig(), 4, np.random.default_rng(0)) is one


def test_faster_speech_is_shorter_and_its_tokens_are_resampled_in_time() -> None:
    one, lengths = clip(2.0), set()
    for seed in range(20):
        changed = Perturbation(speed=0.2).apply(one, MelConfig(), 4, np.random.default_rng(seed))
        length = len(changed.tokens)
        lengths.add(length)
        assert len(changed.wave) == 640 * length and 41 <= length <= 63
        positions = (np.arange(length) + 0.5) * 50 / length
        assert np.abs(changed.tokens + 0.5 - positions).max() <= 0.5

        # The same speech: its envelope, rescaled in time, is that of the clip.
        def loud(wave: np.ndarray) -> np.ndarray:
            return np.interp(
                np.linspace(0, 1, 200), np.linspace(0, 1, len(wave) // 160), np.abs(wave).reshape(-1, 160).mean(1)
            )

        assert np.corrcoef(loud(changed.wave), loud(one.wave))[0, 1] > 0.9
    assert len(lengths) > 5


def test_attenuation_stays_within_its_bound() -> None:
    one = clip(1.0)
    gains = [
        np.abs(Perturbation(level_db=12).apply(one, MelConfig(), 4, np.random.default_rng(seed)).wave).max() / 0.7
        for seed in range(40)
    ]
    assert 10 ** (-12 / 20) <= min(gains) < 0.35 and 0.85 < max(gains) <= 1 + 1e-6


def test_perturbations_out_of_range_are_refused() -> None:
    with pytest.raises(ValueError, match=r"data.speed is 0.9 and data.level_db is 0.0: expected 0 to 0.5"):
        Perturbation(speed=0.9)
