"""What difference a study could have found, and how many seeds would find a smaller one; by simulation."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

_LEVEL = 0.05
_MOST_PERMUTED = 7
"""Conditions of which the distribution of Page's L is made exactly; of more, as it is nearly normal."""
_FEWEST_SEEDS, _MOST_SEEDS = 3, 1000
Test = Callable[[NDArray[np.float64]], NDArray[np.bool_]]


@dataclass(frozen=True, kw_only=True)
class Power:
    """Of the tests for a difference between the smallest and the largest kernel, at the level of 5 %, two-sided.

    The spread is taken from the seeds, and known from few of them no better than `spread_interval` says.
    """

    num_seeds: int
    spread: float
    """Standard deviation over seeds of the difference between two conditions, the same for any two: pooled over all."""
    spread_interval: tuple[float, float]
    """At 95 %, of normal values."""
    smallest_by_trend: float
    """Total rise over the conditions, equal at each step, that Page's L finds in 80 % of such studies; of two
    conditions it is not tested, and this is NaN."""
    smallest_by_difference: float
    """Difference of the two ends that the paired t-test finds in 80 %."""
    seeds_by_trend: dict[float, int]
    """How many seeds would find a difference of so much in 80 %; absent where more than 1000 are needed."""
    seeds_by_difference: dict[float, int]


def study_power(
    values: NDArray[np.float64],
    differences: tuple[float, ...] = (0.1, 0.2),
    *,
    power: float = 0.8,
    num_simulations: int = 2000,
    seed: int = 0,
) -> Power | None:
    """Simulate studies with the spread of this one.

    Seeds are drawn from the normal distribution with one standard deviation for all conditions and one correlation
    between any two, those of the values; a rise is added, equal at each step.

    Args:
        values: Shape (seeds, conditions), conditions in order. Seeds with a value that is not finite do not count.
        differences: Between the last and the first condition.
        power: Probability of finding a difference that is there.
        num_simulations: Studies for each question: the probability is known to one hundredth.
        seed: Of the draws.

    Returns:
        None with fewer than three seeds or two conditions, or without any spread.

    References:
        Page 1963, JASA 58; Cohen 1988, "Statistical Power Analysis for the Behavioral Sciences" (the 80 %).
    """
    complete = values[np.isfinite(values).all(1)]
    seeds, conditions = complete.shape
    if seeds < _FEWEST_SEEDS or conditions < 2:
        return None
    covariance = np.cov(complete, rowvar=False)
    off = covariance[~np.eye(conditions, dtype=bool)].mean()
    covariance = np.where(np.eye(conditions, dtype=bool), np.trace(covariance) / conditions, off)
    own = np.sqrt(max(covariance[0, 0] - off, 0.0))  # what is left of a value without what its seed adds everywhere
    if not own > 1e-12:
        return None
    generator = np.random.default_rng(seed)
    noise = own * generator.standard_normal((num_simulations, _MOST_SEEDS, conditions), dtype=np.float32)
    rise = np.linspace(0.0, 1.0, conditions)

    def found(test: Test, count: int, difference: float) -> float:
        return float(test(noise[:, :count] + difference * rise).mean())

    def smallest(make: Callable[[int], Test]) -> float:
        test, low, high = make(seeds), 0.0, 16 * own
        if found(test, seeds, high) < power:
            return float("inf")
        for _ in range(12):
            middle = (low + high) / 2
            low, high = (low, middle) if found(test, seeds, middle) >= power else (middle, high)
        return float(high)

    def fewest(make: Callable[[int], Test], difference: float) -> int | None:
        low, high = _FEWEST_SEEDS - 1, _FEWEST_SEEDS
        while found(make(high), high, difference) < power:
            if high == _MOST_SEEDS:
                return None
            low, high = high, min(2 * high, _MOST_SEEDS)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if found(make(middle), middle, difference) >= power else (middle, high)
        return high

    def numbers(make: Callable[[int], Test]) -> dict[float, int]:
        asked = {difference: fewest(make, difference) for difference in differences}
        return {difference: count for difference, count in asked.items() if count is not None}

    def trend_test(count: int) -> Test:
        return _page_test(count, conditions)

    spread, freedom = float(np.sqrt(2) * own), (seeds - 1) * (conditions - 1)
    low, high = spread * np.sqrt(freedom / stats.chi2.ppf((0.975, 0.025), freedom))
    return Power(
        num_seeds=seeds,
        spread=spread,
        spread_interval=(float(low), float(high)),
        smallest_by_trend=smallest(trend_test) if conditions > 2 else float("nan"),
        smallest_by_difference=smallest(_paired_test),
        seeds_by_trend=numbers(trend_test) if conditions > 2 else {},
        seeds_by_difference=numbers(_paired_test),
    )


def _paired_test(count: int) -> Test:
    critical = stats.t.ppf(1 - _LEVEL / 2, count - 1)

    def significant(values: NDArray[np.float64]) -> NDArray[np.bool_]:
        ends = values[:, :, -1] - values[:, :, 0]
        found: NDArray[np.bool_] = np.abs(ends.mean(1)) > critical * ends.std(1, ddof=1) / np.sqrt(count)
        return found

    return significant


def _page_test(count: int, conditions: int) -> Test:
    """Twice the smaller of the two one-sided p-values is below the level."""
    critical = page_critical(count, conditions)
    least = count * int(np.dot(np.arange(1, conditions + 1), np.arange(conditions, 0, -1)))
    most = count * int(np.sum(np.arange(1, conditions + 1) ** 2))

    def significant(values: NDArray[np.float64]) -> NDArray[np.bool_]:
        ranks = values.argsort(-1).argsort(-1) + 1
        observed = (ranks.sum(1) * np.arange(1, conditions + 1)).sum(-1)
        found: NDArray[np.bool_] = (observed >= critical) | (observed <= most + least - critical)
        return found

    return significant


def page_critical(count: int, conditions: int) -> float:
    """The smallest L of so many seeds that is significant by itself at half the level; infinite if none is."""
    weights = np.arange(1, conditions + 1)
    if conditions > _MOST_PERMUTED:
        mean = count * conditions * (conditions + 1) ** 2 / 4
        deviation = np.sqrt(count * conditions**2 * (conditions + 1) * (conditions**2 - 1) / 144)
        return float(mean + stats.norm.ppf(1 - _LEVEL / 2) * deviation)
    sums = np.array([np.dot(weights, order) for order in permutations(weights)])
    one = np.bincount(sums - sums.min()) / len(sums)
    total = np.ones(1)
    for digit in bin(count)[2:]:  # the count-fold convolution by squaring
        total = np.convolve(total, total)
        total = np.convolve(total, one) if digit == "1" else total
    tail = np.cumsum(total[::-1])[::-1]
    reached = np.flatnonzero(tail < _LEVEL / 2)
    return float(count * sums.min() + reached[0]) if len(reached) else float("inf")
