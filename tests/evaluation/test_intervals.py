"""Means and the coverage of their confidence intervals."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from sf_lightning.evaluation.intervals import mean_of

Draw = Callable[[np.random.Generator], tuple[np.ndarray, np.ndarray]]
"""Draws values and the group of each."""


def normal(count: int) -> Draw:
    return lambda random: (random.normal(0, 1, count), np.arange(count))


def like_pesq(count: int) -> Draw:
    """Scores above a lower bound, with a long tail; their mean is 0."""
    return lambda random: (random.gamma(1.2, 0.15, count) - 0.18, np.arange(count))


def speakers(count: int) -> Draw:
    """32 clips of `count` speakers, who differ: 30 % of the variance is between them."""

    def draw(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        speaker = np.arange(32) % count
        return random.normal(0, 0.3**0.5, count)[speaker] + random.normal(0, 0.7**0.5, 32), speaker

    return draw


def unequal_speakers(count: int) -> Draw:
    """60 clips of speakers of whom the first has far more than the last."""

    def draw(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        shares = 1 / np.arange(1, count + 1)
        speaker = random.choice(count, 60, p=shares / shares.sum())
        return random.normal(0, 0.3**0.5, count)[speaker] + random.normal(0, 0.7**0.5, 60), speaker

    return draw


def differences(count: int) -> Draw:
    """Paired differences of two systems over 32 clips of speakers who prefer one of the systems."""

    def draw(random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        speaker = np.arange(32) % count
        clip, taste = random.gamma(1.2, 0.15, 32), random.normal(0, 0.05, count)[speaker]
        return clip + taste + random.normal(0, 0.1, 32) - clip, speaker

    return draw


CASES = {
    **{f"normal {n}": normal(n) for n in (8, 16, 32, 125)},
    **{f"like PESQ {n}": like_pesq(n) for n in (8, 16, 32, 125)},
    **{f"{n} speakers": speakers(n) for n in (2, 3, 4, 8, 16)},
    **{f"differences, {n} speakers": differences(n) for n in (4, 8, 16)},
}


def coverage(draw: Draw, trials: int) -> float:
    """Returns the share of trials whose interval contains the true mean, 0."""
    random, covered = np.random.default_rng(0), 0
    for _ in range(trials):
        values, groups = draw(random)
        mean = mean_of(values, groups=groups.tolist())
        covered += mean.low <= 0 <= mean.high
    return covered / trials


@pytest.mark.parametrize("name", CASES)
def test_an_interval_contains_the_true_mean_in_95_percent_of_trials(name: str) -> None:
    assert coverage(CASES[name], 1000) == pytest.approx(0.95, abs=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_an_interval_contains_the_true_mean_in_93_to_97_percent_of_many_trials(name: str) -> None:
    assert coverage(CASES[name], 20_000) == pytest.approx(0.95, abs=0.02)


@pytest.mark.parametrize("count", [5, 10, 20])
def test_the_interval_holds_if_one_speaker_has_most_clips(count: int) -> None:
    assert coverage(unequal_speakers(count), 1000) == pytest.approx(0.95, abs=0.045)


def test_clips_of_few_speakers_are_worth_less_than_as_many_of_different_ones() -> None:
    values, speaker = speakers(4)(np.random.default_rng(0))
    grouped, single = mean_of(values, groups=speaker.tolist()), mean_of(values)
    assert grouped.mean == pytest.approx(single.mean) and grouped.num_values == single.num_values == 32
    assert grouped.high - grouped.low > single.high - single.low


def test_the_interval_equals_the_normal_one_for_many_normal_values_and_leaves_nan_out() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    mean = mean_of([*values, math.nan])
    assert mean.mean == pytest.approx(values.mean()) and (mean.num_values, mean.num_nan) == (400, 1)
    half = 1.96 * values.std() / 20
    assert (mean.low, mean.high) == pytest.approx((mean.mean - half, mean.mean + half), abs=0.02)


def test_few_values_have_no_interval_and_equal_ones_an_empty_one() -> None:
    assert math.isnan(mean_of([2.0]).low) and mean_of([2.0]).mean == 2.0
    assert math.isnan(mean_of([math.nan]).mean) and mean_of([math.nan]).num_nan == 1 and mean_of([]).num_values == 0
    assert mean_of([0.1] * 30)[:3] == pytest.approx((0.1, 0.1, 0.1))
    assert math.isfinite(mean_of([1.0, 1.0, 5.0]).low) and math.isfinite(mean_of([1.0] * 9 + [5.0]).high)


def test_values_of_one_group_or_of_none_are_groups_of_their_own() -> None:
    values = [1.0, 2.0, 4.0, 3.0]
    assert mean_of(values, groups=["a"] * 4) == mean_of(values, groups=[None] * 4) == mean_of(values)
    assert mean_of(values, groups=["a", "a", None, None]) == mean_of(values, groups=["a", "a", "b", "c"])


def test_the_interval_of_skewed_scores_reaches_further_into_their_tail() -> None:
    mean = mean_of(1 + np.random.default_rng(0).gamma(1.2, 0.15, 16))
    assert mean.high - mean.mean > mean.mean - mean.low > 0
