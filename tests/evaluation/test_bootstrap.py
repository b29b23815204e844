"""Means and the coverage of their confidence intervals."""

import math

import numpy as np
import pytest

from sf_lightning.evaluation.bootstrap import bootstrap_mean, mean_over_groups


def test_the_interval_equals_the_normal_one_for_normal_values_and_leaves_nan_out() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    mean = bootstrap_mean([*values, math.nan])
    assert mean.mean == pytest.approx(values.mean()) and (mean.num_values, mean.num_nan) == (400, 1)
    half = 1.96 * values.std() / 20
    assert (mean.low, mean.high) == pytest.approx((mean.mean - half, mean.mean + half), abs=0.02)
    assert bootstrap_mean([*values, math.nan]) == mean
    assert math.isnan(bootstrap_mean([2.0]).low) and bootstrap_mean([2.0]).mean == 2.0
    assert math.isnan(bootstrap_mean([math.nan]).mean) and bootstrap_mean([math.nan]).num_nan == 1


@pytest.mark.parametrize("listeners", [2, 3, 5])
def test_the_interval_over_few_listeners_covers_the_true_mean_in_95_percent_of_trials(listeners: int) -> None:
    random, trials = np.random.default_rng(listeners), 400
    strictness = random.normal(0.0, 0.5, (trials, listeners, 1))  # ratings of one listener are correlated
    ratings = 3.0 + strictness + random.normal(0.0, 0.5, (trials, listeners, 10))
    groups = np.repeat(np.arange(listeners), 10).tolist()
    means = [mean_over_groups(groups, trial.ravel()) for trial in ratings]
    assert means[0].mean == pytest.approx(ratings[0].mean()) and means[0].num_values == 10 * listeners
    coverage = np.mean([mean.low <= 3.0 <= mean.high for mean in means])
    assert coverage == pytest.approx(0.95, abs=0.03)
    assert math.isnan(mean_over_groups(["a", "a"], [1.0, 2.0]).low) and math.isnan(mean_over_groups([], []).mean)
