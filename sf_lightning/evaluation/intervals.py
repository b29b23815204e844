"""Means with 95 % confidence intervals that hold for few values, skewed scores and clips that share a speaker."""

import math
from collections.abc import Hashable, Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t

CONFIDENCE = 0.95

FEWEST_FOR_SKEW = 8
"""Number of groups from which on their skewness is estimated; with fewer the estimate is noise."""


class Mean(NamedTuple):
    """Mean of the values that are defined (not NaN), with its 95 % confidence interval.

    The mean is NaN if no value is defined, and the ends of the interval are NaN if fewer than two are.
    """

    mean: float
    low: float
    high: float
    num_values: int
    num_nan: int


def mean_of(
    values: Iterable[float], weights: Iterable[float] | None = None, groups: Iterable[Hashable] | None = None
) -> Mean:
    """Returns the mean of values with its interval; equal values give an equal interval.

    Values of one group, such as clips of one speaker, may be correlated: the interval holds for other groups drawn
    from the same population, so its width depends on the number of groups. For paired differences between two
    systems give the difference of each clip.

    The standard error is the jackknife's, leaving out one group at a time. The quantiles are those of Student's t
    with as many degrees of freedom as there are groups of equal weight, less one, transformed for skewness (Hall,
    1992, "On the removal of skewness by transformation"): scores are bounded on one side, and a symmetric interval
    would miss their mean too often.

    Args:
        values: Values; NaN where one is undefined.
        weights: Weight of each value, by default 1: for a mean over frames the number of frames of each clip.
        groups: Group of each value; None is a group of its own. If there is one group, the interval holds for
            other values of this group.

    >>> mean_of([1.0, 1.0, float("nan")])
    Mean(mean=1.0, low=1.0, high=1.0, num_values=2, num_nan=1)
    >>> mean_of([1.0, 4.0], weights=[200, 100]).mean
    2.0
    """
    numbers = np.array([*values], dtype=float)
    factors = np.ones(len(numbers)) if weights is None else np.array([*weights], dtype=float)
    names = [None] * len(numbers) if groups is None else [*groups]
    defined = np.isfinite(numbers) & (factors > 0)
    num_values, num_nan = int(defined.sum()), int((~defined).sum())
    if not num_values:
        return Mean(math.nan, math.nan, math.nan, 0, num_nan)
    group = _numbered([name for name, is_defined in zip(names, defined, strict=True) if is_defined])
    weight = np.bincount(group, factors[defined]).astype(float)
    total = np.bincount(group, factors[defined] * numbers[defined]).astype(float)
    mean = float(total.sum() / weight.sum())
    return Mean(mean, *_interval(mean, total, weight), num_values, num_nan)


def _numbered(names: list[Hashable]) -> NDArray[np.int64]:
    """Returns a number for each name; None, or every name if all are equal, has a number of its own."""
    if len(set(names)) == 1:
        return np.arange(len(names))
    numbers: dict[Hashable, int] = {}
    keys = ((i, None) if name is None else name for i, name in enumerate(names))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def _interval(mean: float, total: NDArray[np.float64], weight: NDArray[np.float64]) -> tuple[float, float]:
    """Returns the ends of the interval of the mean of groups [G] with these sums of weighted values and weights."""
    count = len(total)
    if count < 2:
        return math.nan, math.nan
    # How much each group moves the mean: the difference that leaving it out makes.
    moves = (total - mean * weight) / (weight.sum() - weight) * (count - 1) / count
    deviation = math.sqrt(float(np.square(moves).mean()))
    if deviation <= 1e-12 * abs(mean):
        return mean, mean
    error = deviation * count / math.sqrt(count - 1)
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, max(1.0, weight.sum() ** 2 / np.square(weight).sum() - 1)))
    skew = float((moves**3).mean()) / deviation**3 / math.sqrt(count) if count >= FEWEST_FOR_SKEW else 0.0

    def untransformed(q: float) -> float:
        """Returns the quantile of the skewed statistic for that of a symmetric one."""
        return 3 / skew * float(np.cbrt(1 + skew * (q - skew / 6)) - 1) if abs(skew) > 1e-6 else q

    return mean - error * untransformed(quantile), mean - error * untransformed(-quantile)
