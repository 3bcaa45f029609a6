"""Intervals by resampling, and tests over repeated trainings."""

import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

_MOST_PERMUTED = 9
"""Conditions of which all orders can be gone through in about a second."""


def bootstrap_interval(
    statistic: Callable[[NDArray[np.intp]], Any],
    num_samples: int,
    *,
    vectorized: bool = False,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of independent samples.

    Args:
        statistic: Maps indices of drawn samples, shape (num_samples,), to a number.
        num_samples: How many samples there are.
        vectorized: The statistic maps indices of shape (draws, num_samples) to an array of shape (draws,).
        confidence: Coverage of the interval.
        num_resamples: How often samples are drawn.
        seed: Of the draws.

    Returns:
        Lower and upper end; both NaN with fewer than two samples or where the statistic of the samples or of a draw
        is NaN.

    Raises:
        ValueError: If `confidence`, `num_resamples` or `seed` is out of range.

    References:
        Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13; `scipy.stats.bootstrap`.
    """
    _check_confidence(confidence)
    _check_draws(num_resamples, seed)
    if num_samples < 2 or np.isnan(statistic(np.arange(num_samples)[None] if vectorized else np.arange(num_samples))):
        return float("nan"), float("nan")

    def by_index(indices: NDArray[Any], **_axis: int) -> Any:
        found = statistic(indices.astype(np.intp).reshape(-1, num_samples) if vectorized else indices.astype(np.intp))
        return np.reshape(found, indices.shape[:-1])

    with warnings.catch_warnings():
        # A draw of which the statistic is undefined leaves the interval undefined: NaN says so.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            (np.arange(num_samples),),
            by_index,
            vectorized=vectorized,
            method="percentile",
            confidence_level=confidence,
            n_resamples=num_resamples,
            rng=np.random.default_rng(seed),
        )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def cluster_weights(
    clusters: Sequence[NDArray[np.intp]], num_resamples: int, seed: int, *, chunk: int = 500
) -> Iterator[NDArray[np.float64]]:
    """How often each sample is drawn when whole clusters are drawn with replacement.

    Args:
        clusters: One or several ways in which the samples fall into clusters, each the number of its cluster for every
            sample, shape (N,). With several ways, clusters of each are drawn on their own and a sample counts as often
            as the product says: the bootstrap of crossed factors.
        num_resamples: How often clusters are drawn.
        seed: Of the draws.
        chunk: Largest number of draws in one array.

    Yields:
        Multiplicities, shape (draws, N).

    Raises:
        ValueError: If `num_resamples` or `seed` is out of range.

    References:
        Owen 2007, "The pigeonhole bootstrap", Annals of Applied Statistics 1, arXiv:0712.1111.
    """
    _check_draws(num_resamples, seed)
    counts = [_draws(int(numbers.max()) + 1, num_resamples, seed, way) for way, numbers in enumerate(clusters)]
    for first in range(0, num_resamples, chunk):
        weights = np.ones(1)
        for numbers, drawn in zip(clusters, counts, strict=True):
            weights = weights * drawn[first : first + chunk].take(numbers, axis=1)
        yield weights.astype(np.float64, copy=False)


@lru_cache(maxsize=4)  # many observers see the same images
def _draws(size: int, num_resamples: int, seed: int, way: int) -> NDArray[np.float32]:
    """How often each of `size` clusters is drawn, shape (num_resamples, size)."""
    generator = np.random.default_rng((seed, way))
    return generator.multinomial(size, np.full(size, 1 / size), size=num_resamples).astype(np.float32)


def percentile_interval(draws: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    """Ends of the percentile interval of bootstrap draws; draws of which the statistic is undefined do not count.

    Raises:
        ValueError: If `confidence` is not between 0 and 1.
    """
    _check_confidence(confidence)
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return float("nan"), float("nan")
    between: Any = "linear" if np.isfinite(draws).all() else "inverted_cdf"  # inf - inf has no value
    low, high = np.quantile(draws, ((1 - confidence) / 2, (1 + confidence) / 2), method=between)
    return float(low), float(high)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: expected a number between 0 and 1")


def _check_draws(num_resamples: int, seed: int) -> None:
    if num_resamples < 1:
        raise ValueError(f"num_resamples={num_resamples}: expected at least 1")
    if seed < 0:
        raise ValueError(f"seed={seed}: expected at least 0")


def bootstrap_p_value(draws: NDArray[np.float64]) -> float:
    """Two-sided p-value of "the statistic is 0": the smallest level at which the percentile interval excludes 0.

    References:
        Davison and Hinkley 1997, "Bootstrap Methods and their Application", section 4.4 (the added 1).
    """
    draws = draws[~np.isnan(draws)]
    if not len(draws):
        return float("nan")
    tail = min(np.count_nonzero(draws <= 0), np.count_nonzero(draws >= 0))
    return float(min(1.0, 2 * (tail + 1) / (len(draws) + 1)))


def wilson_interval(hits: int, number: int, *, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share of independent draws; NaN of none.

    Raises:
        ValueError: If `confidence` is not between 0 and 1.

    References:
        Wilson 1927, JASA 22; `scipy.stats.binomtest`.
    """
    _check_confidence(confidence)
    if not number:
        return float("nan"), float("nan")
    found = stats.binomtest(hits, number).proportion_ci(confidence_level=confidence, method="wilson")
    return float(found.low), float(found.high)


def mean_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Student's interval of the mean of independent repeats; NaN with fewer than two or where one is not finite.

    Raises:
        ValueError: If `confidence` is not between 0 and 1.
    """
    _check_confidence(confidence)
    numbers = np.asarray(values, dtype=float)
    if len(numbers) < 2 or not np.isfinite(numbers).all():
        return float("nan"), float("nan")
    error = numbers.std(ddof=1) / np.sqrt(len(numbers))
    half = stats.t.ppf((1 + confidence) / 2, len(numbers) - 1) * error
    return float(numbers.mean() - half), float(numbers.mean() + half)


def anytime_interval(values: Sequence[float], *, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of the mean of normal repeats that holds after each further one, however it is decided when to stop.

    It inverts `anytime_p_value`, a test martingale: the likelihood ratio of Student's t between a standardised mean
    drawn from the standard normal distribution and none. By Ville's inequality it excludes the true mean at any time
    with probability 1 - confidence at most; for twenty repeats it is 1.64 times as wide as Student's, which holds at
    one number of repeats that was fixed before.

    Args:
        values: One for each repeat, in order or not.
        confidence: Probability that all intervals of a growing sample hold the mean.

    Returns:
        Lower and upper end: infinite while there are too few repeats, NaN with fewer than two or where one is not
        finite.

    Raises:
        ValueError: If `confidence` is not between 0 and 1.

    References:
        Lai 1976, "On confidence sequences", Annals of Statistics 4; Wang and Ramdas 2025, "Anytime-valid t-tests and
        confidence sequences for Gaussian means with unknown variance", arXiv:2310.03722.
    """
    _check_confidence(confidence)
    numbers = np.asarray(values, dtype=float)
    count = len(numbers)
    if count < 2 or not np.isfinite(numbers).all():
        return float("nan"), float("nan")
    factor = (math.sqrt(1 + count) / (1 - confidence)) ** (2 / count)
    if factor >= 1 + count:
        return -math.inf, math.inf
    t = math.sqrt((count - 1) * (factor - 1) / (1 - factor / (1 + count)))
    half = t * numbers.std(ddof=1) / math.sqrt(count)
    return float(numbers.mean() - half), float(numbers.mean() + half)


def anytime_p_value(values: Sequence[float]) -> float:
    """Of "the mean is 0": the smallest level at which `anytime_interval` excludes 0; NaN where there is no interval."""
    numbers = np.asarray(values, dtype=float)
    count = len(numbers)
    if count < 2 or not np.isfinite(numbers).all() or not np.ptp(numbers) > 1e-12:
        return float("nan")
    share = count * numbers.mean() ** 2 / numbers.var(ddof=1) / (count - 1)
    log_ratio = count / 2 * math.log((1 + share) / (1 + share / (1 + count))) - math.log(1 + count) / 2
    return math.exp(min(0.0, -log_ratio))


@dataclass(frozen=True, kw_only=True)
class Trend:
    """Whether a quantity rises or falls over ordered conditions that every repeat went through."""

    difference: float
    """Mean over repeats of the last condition minus the first."""
    low: float
    high: float
    """95 % interval of `difference`, Student's or always valid; NaN with a single repeat."""
    p_value: float
    """Two-sided; NaN where no test is possible."""
    test: str
    """"Page's L" over three or more conditions, "paired t" over two, "always-valid t" of a sequence, "none" with a
    single repeat."""
    rises: bool
    """The side that the test favours."""
    num_repeats: int
    decidable: bool
    """Whether some order of the values could have reached the level of 5 %."""

    @property
    def direction(self) -> int:
        """1 for a rise, -1 for a fall, 0 where the test gives no evidence at the level of 5 %."""
        return 0 if not self.p_value < 0.05 else 1 if self.rises else -1


def trend(values: NDArray[np.float64], *, sequential: bool = False) -> Trend:
    """Test for a monotone trend.

    Page's L is tested exactly for up to nine conditions, and by its normal approximation for more.

    Args:
        values: Shape (repeats, conditions), conditions in order. Repeats with a value that is not finite do not count.
        sequential: Their number was not fixed before: only the difference of the two ends is tested, by an interval
            that holds whenever one stops.

    Raises:
        ValueError: If there are fewer than two conditions.

    References:
        Page 1963, "Ordered hypotheses for multiple treatments", JASA 58; `scipy.stats.page_trend_test`.
    """
    if values.ndim != 2 or values.shape[1] < 2:
        raise ValueError(f"values of shape {values.shape}: expected (repeats, conditions) with two or more conditions")
    complete = values[np.isfinite(values).all(1)]
    nothing = float("nan")
    if len(complete) == 0:
        return Trend(
            difference=nothing,
            low=nothing,
            high=nothing,
            p_value=nothing,
            test="none",
            rises=False,
            num_repeats=0,
            decidable=False,
        )
    differences = complete[:, -1] - complete[:, 0]
    interval = anytime_interval if sequential else mean_interval
    low, high = interval(differences.tolist())
    p_value, test, rises = nothing, "none", bool(differences.mean() > 0)
    if len(complete) > 1 and sequential:
        p_value, test = anytime_p_value(differences.tolist()), "always-valid t"
    elif len(complete) > 1 and values.shape[1] > 2:
        method: Literal["exact", "asymptotic"] = "exact" if values.shape[1] <= _MOST_PERMUTED else "asymptotic"
        rising, falling = (
            float(stats.page_trend_test(signed, method=method).pvalue) for signed in (complete, -complete)
        )
        p_value, test = min(1.0, 2 * min(rising, falling)), "Page's L"
        rises = rising < falling
    elif len(complete) > 1:
        test = "paired t"
        if np.ptp(differences) > 1e-12:
            p_value = float(stats.ttest_1samp(differences, 0.0).pvalue)
        elif not differences.any():
            p_value = 1.0  # equal differences other than 0 have no t: p stays NaN
    return Trend(
        difference=float(differences.mean()),
        low=low,
        high=high,
        p_value=p_value,
        test=test,
        rises=rises,
        num_repeats=len(complete),
        decidable=math.isfinite(low)
        if sequential
        else test == "paired t" or 2 / math.factorial(values.shape[1]) ** len(complete) < 0.05,
    )
