"""Means with 95 % intervals, by the bootstrap, of few by Student's t. Knows nothing of what is measured."""

import math
from collections.abc import Hashable, Iterable
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap, t

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


def mean_of(values: Iterable[float], weights: Iterable[float] | None = None) -> Mean:
    """Returns the mean of values and its percentile interval; the same for the same values.

    Args:
        values: NaN where a value is undefined.
        weights: Of each, by default alike: a mean over frames weighs clips by theirs.

    >>> mean_of([1.0, 1.0, float("nan")])
    Mean(mean=1.0, low=1.0, high=1.0, number=2, num_nan=1)
    >>> mean_of([1.0, 4.0], weights=[200, 100]).mean
    2.0
    """
    numbers = np.array([*values], dtype=float)
    weighing = np.ones(len(numbers)) if weights is None else np.array([*weights], dtype=float)
    defined = np.isfinite(numbers)
    count, num_nan = int(defined.sum()), int((~defined).sum())
    if not count:
        return Mean(math.nan, math.nan, math.nan, 0, num_nan)
    numbers, weighing = numbers[defined], weighing[defined]
    mean = float((numbers * weighing).sum() / weighing.sum())
    if count < 2:
        return Mean(mean, math.nan, math.nan, count, num_nan)
    drawn = bootstrap(
        (numbers * weighing, weighing),
        lambda total, weight, axis: total.sum(axis=axis) / weight.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Mean(mean, float(drawn.low), float(drawn.high), count, num_nan)


def mean_over(owners: Iterable[Hashable], values: Iterable[float]) -> Mean:
    """Returns the mean over those whose the values are, and its interval by Student's t over their own means.

    What one listener says hangs together, and listeners are few: to draw from so few, as the bootstrap does, makes
    an interval that the truth often lies outside of.

    Args:
        owners: Whose each value is.
        values: Finite.

    >>> mean_over(["Ada", "Ada", "Ben"], [4.0, 6.0, 3.0]).mean
    4.0
    """
    of: dict[Hashable, list[float]] = {}
    for owner, value in zip(owners, values, strict=True):
        of.setdefault(owner, []).append(value)
    number, means = sum(map(len, of.values())), np.array([np.mean(each) for each in of.values()])
    if not number:
        return Mean(math.nan, math.nan, math.nan, 0, 0)
    mean = float(means.mean())
    if len(means) < 2:
        return Mean(mean, math.nan, math.nan, number, 0)
    half = float(t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means)))
    return Mean(mean, mean - half, mean + half, number, 0)
