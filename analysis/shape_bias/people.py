"""One observer beside several people."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.shape_bias.comparing import common_images
from analysis.shape_bias.ranks import FloatArray
from analysis.shape_bias.result import Cluster, ShapeBiasResult
from analysis.statistics import percentile_interval


@dataclass(frozen=True, kw_only=True)
class MeanConsistency:
    """Mean error consistency of an observer with several people."""

    kappa: float
    """NaN where it is defined with nobody."""
    low: float
    high: float
    """NaN with a single person."""
    num_people: int
    num_images: int


def mean_consistency(
    observer: ShapeBiasResult,
    people: Sequence[ShapeBiasResult],
    *,
    cluster: Cluster = "two-way",
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> MeanConsistency:
    """Mean of `error_consistency` with each person, on the images that all of them saw.

    Args:
        observer: Whoever is compared with the people.
        people: Of different names.
        cluster: What is drawn of the images; see `ShapeBiasResult.confidence_interval`.
        confidence: Coverage.
        num_resamples: Number of draws.
        seed: Of the draws.

    Returns:
        The mean and its percentile bootstrap interval: in every draw both the images and the people are drawn anew, as
        it is to tell of other people and other images.

    Raises:
        ValueError: If there is nobody, they have no image in common, or two disagree on an image's categories.

    References:
        Geirhos, Meding and Wichmann 2020, arXiv:2006.16736; Owen 2007, arXiv:0712.1111 (crossed factors).
    """
    if not people:
        raise ValueError("people: expected at least one observer, not 0")
    observer, *others = common_images([observer, *people])
    own = observer.columns["correct"].astype(float)[:, None]
    theirs = np.stack([person.columns["correct"] for person in others], axis=1).astype(float)
    generator = np.random.default_rng(seed)
    num = len(others)

    def by_person(weights: FloatArray) -> FloatArray:
        total = weights.sum(1, keepdims=True)
        p1, p2, observed = (weights @ column / total for column in (own, theirs, own == theirs))
        room = p1 + p2 - 2 * p1 * p2  # 1 - expected
        return np.asarray(np.divide(observed - (1 - room), room, out=np.full_like(p2, np.nan), where=room > 1e-12))

    def mean(kappas: FloatArray, times: FloatArray) -> FloatArray:
        counted = np.where(np.isnan(kappas), 0.0, times)
        total, summed = counted.sum(1), (np.nan_to_num(kappas) * counted).sum(1)
        return np.asarray(np.divide(summed, total, out=np.full_like(summed, np.nan), where=total > 0))

    def drawn(weights: FloatArray) -> FloatArray:
        times = generator.multinomial(num, np.full(num, 1 / num), size=len(weights)).astype(float)
        return mean(by_person(weights), times)

    kappa = float(mean(by_person(np.ones((1, len(own)))), np.ones((1, num)))[0])
    low = high = float("nan")
    if num > 1:
        low, high = percentile_interval(observer.resample(drawn, cluster, num_resamples, seed), confidence)
    return MeanConsistency(kappa=kappa, low=low, high=high, num_people=num, num_images=len(own))
