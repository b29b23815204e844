"""Means and their intervals, which hold what they claim."""

import math

import numpy as np
import pytest

from sf_lightning.evaluation.bootstrap import mean_of, mean_over


def test_the_interval_is_that_of_the_normal_law_where_that_holds_and_leaves_nan_out() -> None:
    values = np.random.default_rng(0).normal(3.0, 1.0, 400)
    found = mean_of([*values, math.nan])
    assert found.mean == pytest.approx(values.mean()) and (found.number, found.num_nan) == (400, 1)
    half = 1.96 * values.std() / 20
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), abs=0.02)
    assert mean_of([*values, math.nan]) == found
    assert math.isnan(mean_of([2.0]).low) and mean_of([2.0]).mean == 2.0
    assert math.isnan(mean_of([math.nan]).mean) and mean_of([math.nan]).num_nan == 1


@pytest.mark.parametrize("listeners", [2, 3, 5])
def test_the_interval_over_few_listeners_holds_what_all_would_say_as_often_as_it_claims(listeners: int) -> None:
    random, runs = np.random.default_rng(listeners), 400
    strictness = random.normal(0.0, 0.5, (runs, listeners, 1))  # what one of them says hangs together
    said = 3.0 + strictness + random.normal(0.0, 0.5, (runs, listeners, 10))
    owners = np.repeat(np.arange(listeners), 10).tolist()
    found = [mean_over(owners, each.ravel()) for each in said]
    assert found[0].mean == pytest.approx(said[0].mean()) and found[0].number == 10 * listeners
    held = np.mean([each.low <= 3.0 <= each.high for each in found])
    assert held == pytest.approx(0.95, abs=0.03)
    assert math.isnan(mean_over(["a", "a"], [1.0, 2.0]).low) and math.isnan(mean_over([], []).mean)
