"""Observers beside each other: paired differences, error consistency, people as a yardstick."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.shape_bias.ranks import FloatArray
from analysis.shape_bias.result import Cluster, ShapeBiasResult
from analysis.statistics import bootstrap_p_value, percentile_interval


@dataclass(frozen=True, kw_only=True)
class ShapeBiasDifference:
    """`first` minus `second` on the images that both saw."""

    first: str
    second: str
    difference: float
    low: float
    high: float
    p_value: float
    num_images: int
    cluster: Cluster
    confidence: float


def compare_shape_bias(
    first: ShapeBiasResult,
    second: ShapeBiasResult,
    *,
    cluster: Cluster = "two-way",
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> ShapeBiasDifference:
    """Paired difference of the shape bias of two observers: both see the same images in every draw.

    Returns:
        The difference by the estimator of `first`, its percentile bootstrap interval, and the two-sided p-value of no
        difference (the level at which the interval would just exclude it).

    Raises:
        ValueError: If they have no image in common or disagree on an image's categories.
    """
    first, second = common_images([first, second])
    second = replace(second, options=replace(second.options, estimator=first.options.estimator))

    def difference(weights: FloatArray) -> FloatArray:
        return first.estimate(weights) - second.estimate(weights)

    draws = first.resample(difference, cluster, num_resamples, seed)
    low, high = percentile_interval(draws, confidence)
    value = float(difference(np.ones((1, len(first.stimuli))))[0])
    return ShapeBiasDifference(
        first=first.observer,
        second=second.observer,
        difference=value,
        low=low,
        high=high,
        p_value=bootstrap_p_value(draws),
        num_images=first.num_images,
        cluster=first.drawn_over(cluster),
        confidence=confidence,
    )


@dataclass(frozen=True, kw_only=True)
class ErrorConsistency:
    """Agreement of two observers about which images they get right, beyond what their accuracies make likely."""

    first: str
    second: str
    kappa: float
    """(observed - expected) / (1 - expected); NaN where both are always right or always wrong."""
    observed: float
    expected: float
    low: float
    high: float
    num_images: int
    cluster: Cluster


def error_consistency(
    first: ShapeBiasResult,
    second: ShapeBiasResult,
    *,
    cluster: Cluster = "two-way",
    confidence: float = 0.95,
    num_resamples: int = 2000,
    seed: int = 0,
) -> ErrorConsistency:
    """Cohen's kappa of "answered with the shape", over all images that both saw, with or without a conflict.

    Raises:
        ValueError: If they have no image in common or disagree on an image's categories.

    References:
        Geirhos, Meding and Wichmann 2020, "Beyond accuracy", arXiv:2006.16736.
    """
    first, second = common_images([first, second])
    correct = [result.columns["correct"].astype(float) for result in (first, second)]
    columns = np.stack([*correct, correct[0] == correct[1]], axis=1)

    def parts(weights: FloatArray) -> tuple[FloatArray, FloatArray, FloatArray]:
        with np.errstate(invalid="ignore"):  # a draw may hold none of few images
            p1, p2, observed = (weights @ columns / weights.sum(1, keepdims=True)).T
        expected = p1 * p2 + (1 - p1) * (1 - p2)
        room = 1 - expected
        kappa = np.divide(observed - expected, room, out=np.full_like(room, np.nan), where=room > 1e-12)
        return kappa, observed, expected

    kappa, observed, expected = (float(v[0]) for v in parts(np.ones((1, len(first.stimuli)))))
    draws = first.resample(lambda weights: parts(weights)[0], cluster, num_resamples, seed)
    low, high = percentile_interval(draws, confidence)
    return ErrorConsistency(
        first=first.observer,
        second=second.observer,
        kappa=kappa,
        observed=observed,
        expected=expected,
        low=low,
        high=high,
        num_images=len(first.stimuli),
        cluster=first.drawn_over(cluster),
    )


def common_images(observers: Sequence[ShapeBiasResult]) -> list[ShapeBiasResult]:
    """Every result on the images (by name) that all of them have, in the order of the first.

    Raises:
        ValueError: If there is none, or two of them disagree on an image's categories.
    """
    if not observers:
        return []
    first = observers[0]
    common = set(first.stimuli).intersection(*(other.stimuli for other in observers[1:]))
    if not common:
        raise ValueError(f"{' and '.join(observer.observer for observer in observers)}: no image in common")
    names = [name for name in first.stimuli if name in common]
    restricted = [observer.restricted(names) for observer in observers]
    for other in restricted[1:]:
        if (other.shapes, other.textures) != (restricted[0].shapes, restricted[0].textures):
            raise ValueError(f"{first.observer} and {other.observer}: the same image has different categories")
    return restricted


def consistency_table(
    observers: Sequence[ShapeBiasResult], humans: Sequence[ShapeBiasResult], cluster: Cluster = "two-way"
) -> pd.DataFrame:
    """`error_consistency` of every observer with every person but itself, one row each."""
    pairs = [(observer, human) for observer in observers for human in humans if observer.observer != human.observer]
    return pd.DataFrame(
        [asdict(error_consistency(observer, human, cluster=cluster)) for observer, human in pairs],
        columns=[item.name for item in fields(ErrorConsistency)],
    )


def agreement_table(consistency: pd.DataFrame) -> pd.DataFrame:
    """Of `consistency_table` one row for each observer, from the most to the least consistent with people.

    Returns:
        Columns `observer`, and `mean`, `min` and `max` of the kappas with the (other) people.
    """
    table = consistency.groupby("first", sort=False)["kappa"].agg(["mean", "min", "max"])
    return table.sort_values("mean", ascending=False, kind="stable").reset_index(names="observer")


def guessing_text(results: Sequence[ShapeBiasResult]) -> str:
    """What shares an observer would have that names each category as often, whatever it sees, in words."""
    found: dict[int, str] = {}
    for result in sorted(results, key=lambda own: len(own.categories)):
        number, counted = len(result.categories), result.num_images
        ratio = ""
        if counted:
            decided = counted + int((result.columns["counted"] & result.columns["conflict"]).sum())
            coverage = min(decided / counted / number, 1)
            ratio = f"coverage {100 * coverage:.3g} %, shape bias {counted / decided:.3g} and "
        found.setdefault(
            number, f"guessing among {number} categories gives {ratio}{100 / number:.3g} % answered with the shape"
        )
    return "; ".join(found.values())


def pooled_by_category(results: Sequence[ShapeBiasResult], by: Literal["shape", "texture"] = "shape") -> pd.DataFrame:
    """`by_category` of all their responses together."""
    table = pd.concat([result.by_category(by) for result in results]).groupby(by, as_index=False)
    counts = table[["num_images", "num_shape", "num_texture", "num_neither"]].sum()
    decided = counts["num_shape"] + counts["num_texture"]
    counts["shape_bias"] = counts["num_shape"] / decided.where(decided > 0)
    counts["coverage"] = decided / counts["num_images"]
    return counts


@dataclass(frozen=True, kw_only=True)
class HumanReference:
    """What people do on the same stimuli, as a yardstick for networks."""

    num_observers: int
    num_shape: int
    num_texture: int
    shape_bias: float
    """Of all their responses together."""
    shape_bias_range: tuple[float, float]
    """The lowest and the highest of one person."""
    shape_bias_leave_one_out: tuple[float, float]
    """The lowest and the highest of all together but one."""
    kappa: float
    """Noise ceiling: mean error consistency over all pairs of people. A network that is as consistent with people as
    they are with each other reaches it."""
    kappa_leave_one_out: tuple[float, float]
    """The lowest and the highest mean error consistency of one person with all others."""


def human_reference(humans: Sequence[ShapeBiasResult]) -> HumanReference:
    """Ranges and noise ceiling of several people.

    Raises:
        ValueError: With fewer than two.
    """
    if len(humans) < 2:
        raise ValueError(f"humans: expected at least two observers, not {len(humans)}")
    counts = np.array([[human.num_shape, human.num_texture] for human in humans], dtype=float)
    without = counts.sum(0) - counts
    left_out = _share(without[:, 0], without.sum(1))
    kappas = np.full((len(humans), len(humans)), np.nan)
    for i, first in enumerate(humans):
        for j, second in enumerate(humans[:i]):
            kappas[i, j] = kappas[j, i] = error_consistency(first, second, num_resamples=1).kappa
    defined = ~np.isnan(kappas)
    with_others = _share(np.nansum(kappas, axis=1), defined.sum(1))
    return HumanReference(
        num_observers=len(humans),
        num_shape=int(counts[:, 0].sum()),
        num_texture=int(counts[:, 1].sum()),
        shape_bias=float(_share(counts[:, 0].sum(), counts.sum())),
        shape_bias_range=extremes(np.array([human.shape_bias for human in humans])),
        shape_bias_leave_one_out=extremes(left_out),
        kappa=float(_share(np.nansum(kappas), defined.sum())),
        kappa_leave_one_out=extremes(with_others),
    )


def extremes(values: FloatArray) -> tuple[float, float]:
    """The lowest and the highest that is defined; NaN where none is."""
    defined = values[~np.isnan(values)]
    return (float(defined.min()), float(defined.max())) if len(defined) else (float("nan"), float("nan"))


def _share(part: FloatArray, of: NDArray[Any]) -> FloatArray:
    return np.asarray(np.divide(part, of, out=np.full_like(part, np.nan), where=of > 0))
