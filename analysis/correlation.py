"""Whether two quantities of several networks go together, and what so few networks can tell."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

_LEVEL = 0.05
_POWER = 0.8
_MOST_COMPARED = 5_000_000
"""Pairs in all draws together."""
_MOST_SIMULATED = 50_000
_BISECTIONS = 12
_MOST_DRAWN = 50_000
"""Orders to test ties with: all of up to eight pairs."""
_MOST_COUNTED = 33
"""Pairs whose distribution is made exactly or by drawing; that of more is nearly normal."""


@dataclass(frozen=True, kw_only=True)
class RankCorrelation:
    """Kendall's rank correlation of two quantities, with what the number of pairs allows to say."""

    tau: float
    """tau-b; NaN with fewer than two pairs, or where one of the quantities is always the same."""
    low: float
    high: float
    """95 % interval of the tau of the population; NaN where `tau` is."""
    p_value: float
    """Two-sided, of "they are independent". Of up to 33 pairs it is exact, but with ties of more than eight of them by
    50,000 drawn orders; of more it is by the normal approximation."""
    num: int
    """Pairs of which both values are there."""
    smallest: float
    """The smallest tau, or -tau, that reaches the level of 5 % without ties; NaN where none does."""
    detectable: float
    """The tau of a population of which so many pairs reach the level in 80 % of draws; NaN where none does."""

    @property
    def direction(self) -> int:
        """1 and -1 where they go together or against each other, 0 without evidence at the level of 5 %."""
        return 0 if not self.p_value < _LEVEL else 1 if self.tau > 0 else -1


def rank_correlation(first: Sequence[float], second: Sequence[float], *, seed: int = 0) -> RankCorrelation:
    """Kendall's tau-b of the pairs of which both values are finite.

    The interval holds those taus of a bivariate normal distribution, or of any monotone transformation of its two
    quantities, of which neither so large nor so small a tau is rarer than 2.5 %: a test, inverted by simulation. It
    needs no large number of pairs, as the usual approximations do, and does not shrink to a point at a tau of 1. Pairs
    are taken as independent draws.

    Args:
        first: One quantity.
        second: The other, in the same order.
        seed: Of the simulation.

    Raises:
        ValueError: If the two differ in length.

    References:
        Kendall 1938, Biometrika 30; Kruskal 1958, JASA 53 (tau = 2 / pi * arcsin(rho) of a normal distribution).

    Example:
        >>> found = rank_correlation([1, 2, 3, 4, 5], [10, 20, 30, 50, 40])
        >>> round(found.tau, 6), round(found.p_value, 6)  # 9 pairs of 10 in order; 10 of the 120 orders are so extreme
        (0.8, 0.083333)
    """
    pairs = np.array([first, second], dtype=float) if len(first) == len(second) else None
    if pairs is None:
        raise ValueError(f"second: {len(second)} values, expected {len(first)} as of the first")
    pairs = pairs[:, np.isfinite(pairs).all(0)]
    num = pairs.shape[1]
    smallest = _smallest_significant(num)
    tau = p_value = low = high = detectable = float("nan")
    if num > 1 and np.ptp(pairs, axis=1).all():
        found = stats.kendalltau(*pairs)
        tau, p_value = float(found.statistic), float(found.pvalue)
        if num <= _MOST_COUNTED and any(len(np.unique(values)) < num for values in pairs):
            p_value = _p_value_with_ties(*pairs, seed=seed)
    if num > 1:
        draws = _Draws(num, seed)
        if not math.isnan(smallest):
            detectable = draws.first(lambda taus: (np.abs(taus) > smallest - 1e-9).mean(), _POWER, start=0.0)
        if not math.isnan(tau):
            low = draws.first(lambda taus: (taus > tau - 1e-9).mean(), (1 - 0.95) / 2)
            high = draws.first(lambda taus: 1 - (taus < tau + 1e-9).mean(), 1 - (1 - 0.95) / 2)
    return RankCorrelation(
        tau=tau, low=low, high=high, p_value=p_value, num=num, smallest=smallest, detectable=detectable
    )


def _p_value_with_ties(first: NDArray[np.float64], second: NDArray[np.float64], *, seed: int) -> float:
    """The share of orders of `second` that go with `first`, or against it, as much as this one."""
    one, other = np.triu_indices(len(first), 1)
    signs = np.sign(first[one] - first[other])

    def agreement(values: NDArray[np.float64], axis: int) -> NDArray[np.float64]:
        values = np.moveaxis(values, axis, -1)
        return np.asarray(np.abs(np.sign(values[..., one] - values[..., other]) @ signs))

    found = stats.permutation_test(
        (second,),
        agreement,
        permutation_type="pairings",
        vectorized=True,
        n_resamples=_MOST_DRAWN,
        batch=5000,
        alternative="greater",
        random_state=seed,
    )
    return float(found.pvalue)


class _Draws:
    """The taus of draws of `num` pairs from normal distributions with any correlation, from the same numbers."""

    def __init__(self, num: int, seed: int) -> None:
        self._pairs = np.triu_indices(num, 1)
        count = int(np.clip(_MOST_COMPARED // len(self._pairs[0]), 500, _MOST_SIMULATED))
        self._x, self._noise = np.random.default_rng(seed).standard_normal((2, count, num))
        self._order = self._ordered(self._x)

    def _ordered(self, values: NDArray[np.float64]) -> NDArray[np.bool_]:
        one, other = self._pairs
        return np.asarray(values[:, one] < values[:, other])

    def taus(self, population: float) -> NDArray[np.float64]:
        """One for each draw from a population with this tau."""
        rho = math.sin(population * math.pi / 2)
        y = rho * self._x + math.sqrt(1 - rho**2) * self._noise
        return np.asarray(2 * (self._order == self._ordered(y)).mean(1) - 1)

    def first(self, share: Callable[[NDArray[np.float64]], float], wanted: float, *, start: float = -1.0) -> float:
        """The smallest tau of a population from `start` on at which a share, which grows with it, is the wanted one."""
        if share(self.taus(start)) >= wanted:
            return start
        low, high = start, 1.0
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            low, high = (low, middle) if share(self.taus(middle)) >= wanted else (middle, high)
        return high


def _smallest_significant(num: int) -> float:
    """By the exact distribution of the number of pairs that are out of order."""
    if num < 2:
        return float("nan")
    shares = np.ones(1)
    for places in range(2, num + 1):  # the next value goes to one of these places, each as likely
        shares = np.convolve(shares, np.full(places, 1 / places))
    tail = np.cumsum(shares)
    usable = np.flatnonzero(2 * tail < _LEVEL)
    return float(1 - 2 * usable[-1] / (len(shares) - 1)) if len(usable) else float("nan")
