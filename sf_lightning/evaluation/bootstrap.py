"""Means with 95 % confidence intervals: by the bootstrap, or by Student's t for few groups of values."""

import math
from collections.abc import Hashable, Iterable
from typing import NamedTuple

import numpy as np
from scipy.stats import bootstrap, t

RESAMPLES = 2000


class Mean(NamedTuple):
    """Mean of the values that are defined (not NaN), with its 95 % confidence interval.

    The mean is NaN if no value is defined, and the ends of the interval are NaN if fewer than two are.
    """

    mean: float
    low: float
    high: float
    num_values: int
    num_nan: int


def bootstrap_mean(values: Iterable[float], weights: Iterable[float] | None = None) -> Mean:
    """Returns the mean of values with its bootstrap percentile interval; equal values give an equal interval.

    Args:
        values: Values; NaN where one is undefined.
        weights: Weight of each value, by default 1: for a mean over frames the number of frames of each clip.

    >>> bootstrap_mean([1.0, 1.0, float("nan")])
    Mean(mean=1.0, low=1.0, high=1.0, num_values=2, num_nan=1)
    >>> bootstrap_mean([1.0, 4.0], weights=[200, 100]).mean
    2.0
    """
    numbers = np.array([*values], dtype=float)
    factors = np.ones(len(numbers)) if weights is None else np.array([*weights], dtype=float)
    defined = np.isfinite(numbers)
    num_values, num_nan = int(defined.sum()), int((~defined).sum())
    if not num_values:
        return Mean(math.nan, math.nan, math.nan, 0, num_nan)
    numbers, factors = numbers[defined], factors[defined]
    mean = float((numbers * factors).sum() / factors.sum())
    if num_values < 2:
        return Mean(mean, math.nan, math.nan, num_values, num_nan)
    interval = bootstrap(
        (numbers * factors, factors),
        lambda total, weight, axis: total.sum(axis=axis) / weight.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=RESAMPLES,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return Mean(mean, float(interval.low), float(interval.high), num_values, num_nan)


def mean_over_groups(groups: Iterable[Hashable], values: Iterable[float]) -> Mean:
    """Returns the mean over the means of groups with an interval by Student's t over these means.

    For ratings grouped by listener: those of one listener are correlated, and listeners are few. Resampling so few
    listeners, as the bootstrap does, gives intervals that miss the true mean too often.

    Args:
        groups: Group of each value.
        values: Finite values.

    >>> mean_over_groups(["Ada", "Ada", "Ben"], [4.0, 6.0, 3.0]).mean
    4.0
    """
    by_group: dict[Hashable, list[float]] = {}
    for group, value in zip(groups, values, strict=True):
        by_group.setdefault(group, []).append(value)
    num_values, means = sum(map(len, by_group.values())), np.array([np.mean(v) for v in by_group.values()])
    if not num_values:
        return Mean(math.nan, math.nan, math.nan, 0, 0)
    mean = float(means.mean())
    if len(means) < 2:
        return Mean(mean, math.nan, math.nan, num_values, 0)
    half = float(t.ppf(0.975, len(means) - 1) * means.std(ddof=1) / math.sqrt(len(means)))
    return Mean(mean, mean - half, mean + half, num_values, 0)
