"""Where the shape bias of a study comes from: what goes with it among networks of the same kernel."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from analysis.statistics import cluster_weights, percentile_interval

PREDICTORS = {
    "erf_area_0.5": "area with half of the gradient",
    "shape_only_accuracy": "accuracy with only shape",
    "texture_only_accuracy": "accuracy with only texture",
}
"""Measures that may go with the shape bias, in words."""
_FEWEST_SEEDS = 5
_NUM_RESAMPLES = 2000


@dataclass(frozen=True, kw_only=True)
class Association:
    """How one measure goes with the shape bias among networks of the same kernel.

    Args:
        measures: Names in the table of the study; two or more are taken together.
        correlation: Of what is left after the mean of each kernel; of several measures the multiple correlation.
        interval: Of it at 95 %, seeds drawn with replacement; NaN for several measures, whose correlation is never
            below 0.
        difference: Of the shape bias between the largest and the smallest kernel, networks with the same measures
            compared (analysis of covariance).
        difference_interval: Of it, likewise.
    """

    measures: tuple[str, ...]
    correlation: float
    interval: tuple[float, float]
    difference: float
    difference_interval: tuple[float, float]


def associations(table: pd.DataFrame) -> list[Association]:
    """Each predictor alone, the two accuracies together, and none of them (the difference as it is).

    Args:
        table: Of one setting of small kernel and shortcut, as `study_table` makes it. Seeds without all values do not
            count.

    Returns:
        Nothing with fewer than five seeds or fewer than two kernels.

    References:
        Bland and Altman 1995, "Calculating correlation coefficients with repeated observations: Part 1", BMJ 310
        (correlation within subjects; here within kernels); Hesterberg 2015, "What Teachers Should Know About the
        Bootstrap", American Statistician 69 (percentiles expanded for few samples).
    """
    names = [name for name in PREDICTORS if name in table]
    rows = table.dropna(subset=["shape_bias", *names])
    kernels, counts = table["kernel"].unique(), rows.groupby("seed")["kernel"].transform("count")
    rows = rows[counts == len(kernels)]
    seeds, clusters = np.unique(rows["seed"], return_inverse=True)
    conditions = np.unique(rows["kernel"], return_inverse=True)[1]
    if len(seeds) < _FEWEST_SEEDS or len(kernels) < 2 or len(names) < len(PREDICTORS):
        return []
    bias = rows["shape_bias"].to_numpy(dtype=float)
    weights = np.concatenate(list(cluster_weights([clusters.astype(np.intp)], _NUM_RESAMPLES, seed=0)))
    # Percentiles of a mean of few seeds are narrower than Student's interval by this much.
    edge = np.sqrt(len(seeds) / (len(seeds) - 1)) * stats.t.ppf(0.975, len(seeds) - 1)
    confidence = float(2 * stats.norm.cdf(edge) - 1)
    found = []
    for measures in ((), *((name,) for name in names), ("shape_only_accuracy", "texture_only_accuracy")):
        values = rows[list(measures)].to_numpy(dtype=float)

        def fitted(weight: NDArray[np.float64], values: NDArray[np.float64] = values) -> tuple[float, float]:
            return _fit(bias, values, conditions, weight)

        correlation, difference = fitted(np.ones(len(rows)))
        draws = np.array([fitted(weight) for weight in weights])
        alone = len(measures) == 1
        found.append(
            Association(
                measures=measures,
                correlation=correlation,
                interval=percentile_interval(draws[:, 0], confidence) if alone else (float("nan"), float("nan")),
                difference=difference,
                difference_interval=percentile_interval(draws[:, 1], confidence),
            )
        )
    return found


def _fit(
    bias: NDArray[np.float64],
    values: NDArray[np.float64],
    conditions: NDArray[np.intp],
    weight: NDArray[np.float64],
) -> tuple[float, float]:
    """Correlation within conditions, and the difference of the last from the first with the values held equal."""
    counts = np.bincount(conditions, weight)

    def means(column: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray(np.bincount(conditions, weight * column) / counts)

    root = np.sqrt(weight)
    own = means(bias)
    outcome = (bias - own[conditions]) * root
    if not values.shape[1]:
        return float("nan"), float(own[-1] - own[0])
    centres = np.stack([means(column) for column in values.T], axis=1)
    inner = (values - centres[conditions]) * root[:, None]
    slopes = np.linalg.lstsq(inner, outcome, rcond=None)[0]
    explained = inner @ slopes
    with np.errstate(invalid="ignore", divide="ignore"):
        correlation = np.sqrt((explained**2).sum() / (outcome**2).sum())
    sign = np.sign(slopes[0]) if values.shape[1] == 1 else 1.0
    return float(sign * correlation), float(own[-1] - own[0] - (centres[-1] - centres[0]) @ slopes)


def association_rows(table: pd.DataFrame) -> list[list[str]]:
    """A table in words: what is held equal, the correlation, the difference that is left; empty where nothing is known.

    Args:
        table: As in `associations`.
    """

    def text(value: float, interval: tuple[float, float]) -> str:
        ends = f" [{interval[0]:+.2f}, {interval[1]:+.2f}]" if np.isfinite(interval[0]) else ""
        return f"{value:+.2f}{ends}" if np.isfinite(value) else "-"

    return [
        [
            " and ".join(PREDICTORS[name] for name in item.measures) or "nothing",
            text(item.correlation, item.interval),
            text(item.difference, item.difference_interval),
        ]
        for item in associations(table)
    ]
