"""Intervals by resampling."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats


def bootstrap_interval(
    statistic: Callable[[NDArray[np.intp]], float],
    num_samples: int,
    *,
    confidence: float = 0.95,
    num_resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of independent samples.

    Args:
        statistic: Maps indices of drawn samples, shape (num_samples,), to a number.
        num_samples: How many samples there are.
        confidence: Coverage of the interval.
        num_resamples: How often samples are drawn.
        seed: Of the draws.

    Returns:
        Lower and upper end; both NaN with fewer than two samples or where the statistic of the samples or of a draw
        is NaN.

    References:
        Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13; `scipy.stats.bootstrap`.
    """
    if num_samples < 2 or np.isnan(statistic(np.arange(num_samples))):
        return float("nan"), float("nan")

    def by_index(indices: NDArray[Any]) -> float:
        return statistic(indices.astype(np.intp))

    with warnings.catch_warnings():
        # A draw of which the statistic is undefined leaves the interval undefined: NaN says so.
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        result = stats.bootstrap(
            (np.arange(num_samples),),
            by_index,
            vectorized=False,
            method="percentile",
            confidence_level=confidence,
            n_resamples=num_resamples,
            rng=np.random.default_rng(seed),
        )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)
