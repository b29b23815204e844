"""Means with 95 % intervals, by the bootstrap. Knows nothing of what is measured."""

import math
from collections.abc import Hashable, Iterable
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap

RESAMPLES = 2000


class Mean(NamedTuple):
    """A mean over what is defined, between the ends of its 95 % interval.

    Attributes:
        mean: NaN where nothing is defined.
        low: NaN where there are fewer than two to draw from, as is `high`.
        high: See `low`.
        number: Of what is defined.
        num_nan: Of what is not; it is in no mean.
    """

    mean: float
    low: float
    high: float
    number: int
    num_nan: int


def mean_of(values: Iterable[float], of: Iterable[Hashable] | None = None) -> Mean:
    """Returns the mean of values and its percentile interval; the same for the same values.

    Args:
        values: NaN where a value is undefined.
        of: Whose each value is: values of one listener stand or fall together. By default each is its own.

    >>> mean_of([1.0, 1.0, float("nan")])
    Mean(mean=1.0, low=1.0, high=1.0, number=2, num_nan=1)
    """
    all_values = [float(value) for value in values]
    owners = list(range(len(all_values))) if of is None else list(of)
    sums: dict[Hashable, list[float]] = {}
    for value, owner in zip(all_values, owners, strict=True):
        if math.isfinite(value):
            total = sums.setdefault(owner, [0.0, 0.0])
            total[0] += value
            total[1] += 1
    count = sum(math.isfinite(value) for value in all_values)
    num_nan = len(all_values) - count
    if not count:
        return Mean(math.nan, math.nan, math.nan, 0, num_nan)
    totals, counts = np.array(list(sums.values())).T
    mean = float(totals.sum() / counts.sum())
    if len(totals) < 2:
        return Mean(mean, math.nan, math.nan, count, num_nan)
    drawn = bootstrap(
        (totals, counts),
        lambda total, number, axis: total.sum(axis=axis) / number.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Mean(mean, float(drawn.low), float(drawn.high), count, num_nan)
