"""How strongly a network goes by shape and by texture, each for itself: a ratio of the two does not say."""

from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis.shape_bias.ranks import FloatArray, chance_reciprocal_rank
from analysis.shape_bias.result import Cluster, ShapeBiasResult
from analysis.statistics import percentile_interval

Cue = Literal["shape", "texture"]
CUES: tuple[Cue, ...] = ("shape", "texture")


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """How strongly an observer goes by one cue; every number is NaN where no rank is known."""

    cue: Cue
    value: float
    """Mean reciprocal rank of the best class of the category that the cue shows, among all outputs."""
    low: float
    high: float
    """Percentile bootstrap interval of `value`."""
    top1: float
    """Share of the images on which that class is the first of all outputs."""
    top1_low: float
    top1_high: float
    chance: float
    """What `value` is on average with the outputs in random order: a category of many classes is soon met."""
    num_images: int
    """Images of which the rank is known."""


def sensitivity(
    result: ShapeBiasResult,
    cue: Cue,
    *,
    cluster: Cluster = "two-way",
    confidence: float = 0.95,
    num_resamples: int = 10_000,
    seed: int = 0,
) -> Sensitivity:
    """Mean reciprocal rank of a cue's class among all outputs (`ShapeBiasResult.ranks`).

    It is that of all images that show the cue; those with shape == texture count as they do in the ratio
    (`options.congruent`).

    Args:
        result: Of a network, with its logits; of observers without, every number is NaN.
        cue: "shape" or "texture".
        cluster: As in `ShapeBiasResult.confidence_interval`. Of stimuli of single cues, the exemplars are the classes.
        confidence: Coverage of the intervals.
        num_resamples: Number of draws.
        seed: Of the draws.

    Raises:
        ValueError: If the cue or the cluster is unknown or `confidence` is out of range.

    References:
        Kim et al. 2026, REFINED-BIAS, arXiv:2603.10834.
    """
    if cue not in CUES:
        raise ValueError(f"cue={cue!r}: expected one of {', '.join(CUES)}")
    used = ~np.isnan(result.ranks[cue])
    if result.options.congruent == "exclude":
        used &= ~result.columns["congruent"]
    own = result.restricted([name for name, keep in zip(result.stimuli, used, strict=True) if keep])
    ranks = own.ranks[cue]
    numbers = []
    for values in (1 / ranks, (ranks == 1).astype(float)):

        def mean(weights: FloatArray, values: FloatArray = values) -> FloatArray:
            total = weights.sum(1)
            return np.asarray(np.divide(weights @ values, total, out=np.full_like(total, np.nan), where=total > 0))

        low, high = percentile_interval(own.resample(mean, cluster, num_resamples, seed), confidence)
        numbers.append((float(mean(np.ones((1, len(ranks))))[0]), low, high))
    (value, low, high), (top1, top1_low, top1_high) = numbers
    chance = float("nan")
    if own.logits is not None and own.mapping is not None and len(ranks):
        by_name = {name: chance_reciprocal_rank(len(group), own.logits.shape[1]) for name, group in own.mapping.indices}
        chance = float(np.mean([by_name[name] for name in (own.shapes if cue == "shape" else own.textures)]))
    return Sensitivity(
        cue=cue,
        value=value,
        low=low,
        high=high,
        top1=top1,
        top1_low=top1_low,
        top1_high=top1_high,
        chance=chance,
        num_images=len(ranks),
    )


def sensitivity_row(result: ShapeBiasResult, cluster: Cluster = "two-way") -> dict[str, float]:
    """`sensitivity` to shape and to texture as cells of a table, and the part that the shape has in their sum."""
    found = {cue: sensitivity(result, cue, cluster=cluster) for cue in CUES}
    cells: dict[str, float] = {}
    for cue, own in found.items():
        cells |= {f"{cue}_sensitivity": own.value, f"{cue}_low": own.low, f"{cue}_high": own.high}
        cells |= {f"{cue}_{name}": value for name, value in asdict(own).items() if name.startswith("top1")}
        cells |= {f"{cue}_chance": own.chance, f"{cue}_images": own.num_images}
    cells["relative_sensitivity"] = found["shape"].value / (found["shape"].value + found["texture"].value)
    return cells


def rank_table(result: ShapeBiasResult) -> pd.DataFrame:
    """One row for each stimulus and cue that it shows: observer, stimulus, cue, category, rank, reciprocal_rank."""
    tables = []
    for cue, names in (("shape", result.shapes), ("texture", result.textures)):
        table = pd.DataFrame({"observer": result.observer, "stimulus": result.stimuli, "cue": cue, "category": names})
        table["rank"] = pd.Series(result.ranks[cue]).astype("Int64")
        table["reciprocal_rank"] = 1 / result.ranks[cue]
        tables.append(table[table["category"] != ""])
    return pd.concat(tables, ignore_index=True)
