"""What a comparison of networks says, in words."""

from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.correlation import RankCorrelation, rank_correlation
from analysis.receptive_field.methods import field_warnings
from analysis.recognition.methods import accuracy_warnings
from analysis.runs.methods import joined
from analysis.runs.texts import few
from analysis.shape_bias.methods import bias_warnings
from analysis.study.compared.measuring import NOT_GIVEN
from analysis.study.compared.result import Comparison

AREA, BIAS = "erf_area_0.5", "shape_bias"
"""The measures of which the comparison asks whether they go together."""


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to the question of a comparison.

    Args:
        question: Asked before anything is measured.
        answer: One short sentence: what the test allows to say.
        detail: The numbers behind it.
        trend: The test.
    """

    question: str
    answer: str
    detail: str
    trend: RankCorrelation


def field_and_bias(table: pd.DataFrame) -> Answer:
    """Whether larger fields go with more shape bias over the networks of a table.

    Args:
        table: Of `comparison_table`.
    """
    found = rank_correlation(table[AREA].tolist(), table[BIAS].tolist())
    both = table[np.isfinite(table[AREA]) & np.isfinite(table[BIAS])]
    number = f"{found.num} network{'s' * (found.num != 1)}"
    if found.num < 2:
        answer = f"No answer: {number if found.num else 'no network'} has both a receptive field and a shape bias."
    elif np.isnan(found.tau):
        answer = "No answer: one of the two is the same in all networks."
    elif np.isnan(found.smallest):
        answer = f"No answer: no order of {number} could be significant."
    elif found.direction == 0:
        answer = "No evidence that the two go together."
    elif found.direction > 0:
        answer = "Among these networks they go together: the larger the field, the more shape bias."
    else:
        answer = "The opposite, among these networks: the larger the field, the less shape bias."
    parts = []
    if not np.isnan(found.tau):
        parts.append(
            f"Kendall's rank correlation of the area with half of the gradient and the shape bias {found.tau:+.2f} "
            f"[{found.low:+.2f}, {found.high:+.2f}] over {number}, p = {found.p_value:.2g}"
        )
    if found.num > 1:
        parts.append(_power(found, number))
    kinds = Counter(both["architecture"])
    if 0 < len(kinds) < found.num:
        named = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
        parts.append(
            f"these are of {len(kinds)} architecture{'s' * (len(kinds) != 1)} ({named}), and relatives are not "
            f"independent: the interval is too narrow{' and the p-value too small' * bool(found.p_value < 1)}"
        )
    left_out = table[~table["network"].isin(both["network"])]["network"].tolist()
    if left_out:
        parts.append(f"without {few(left_out, 6)}, of which one of the two is missing")
    return Answer(
        question="Do larger receptive fields go with more shape bias?",
        answer=answer,
        detail=parts[0][0].upper() + "; ".join(parts)[1:] + "." if parts else "",
        trend=found,
    )


def _power(found: RankCorrelation, number: str) -> str:
    if np.isnan(found.smallest):
        return "the smallest number of networks of which an order could be significant is 5"
    needed = f"{number} have to show at least {found.smallest:.2f} to be significant, "
    if found.detectable > 0.995:
        return needed + "which networks of no but the strictest dependence do in 80 % of draws"
    return needed + f"as they would in 80 % of draws if it was {found.detectable:.2f} among all networks"


_MEASURED = {"erf": "receptive field", "shape_bias": "shape bias", "evaluation": "accuracy", "cost": "cost"}
"""What a measurement tells, by its name."""


def measured_text(comparison: Comparison) -> str:
    """What was measured on one of the networks or more, such as "receptive field and cost"."""
    return joined(
        words
        for name, words in _MEASURED.items()
        if any(name not in network.missing for network in comparison.networks)
    )


def warnings_of_networks(comparison: Comparison, *, with_reasons: bool = True) -> list[str]:
    """What weakens the numbers, and what is missing, with the reason; without, of what was asked for alone."""
    notes = []
    reasons: dict[tuple[str, str], list[str]] = {}
    for network in comparison.networks:
        for name, why in network.missing.items():
            reasons.setdefault((name, why), []).append(network.name)
    for (name, why), names in reasons.items():
        given = NOT_GIVEN.get(name) == why
        if with_reasons:
            notes.append(f"No {_MEASURED[name]}{'' if given else f' of {few(names, 6)}'}: {why}.")
        elif not given:
            notes.append(f"No {_MEASURED[name]} of {few(names, 6)} was measured.")
    notes += field_warnings([network.erf for network in comparison.networks if network.erf is not None])
    notes += bias_warnings([network.shape_bias for network in comparison.networks if network.shape_bias is not None])
    sizes = comparison.table["input_size"]
    if sizes.min() < sizes.max():
        notes.append(
            f"The networks take images of {sizes.min()} to {sizes.max()} pixels, and fields are measured at one size: "
            "the same part of it, in per cent, is more of what one takes than of what another does."
        )
    notes += accuracy_warnings(
        [network.evaluation for network in comparison.networks if network.evaluation is not None]
    )
    return notes


def people_text(comparison: Comparison) -> str:
    """What people do on the same stimuli; empty with fewer than two."""
    known: Any = comparison.reference
    if known is None:
        return ""
    low, high = known.shape_bias_range
    return (
        f"{known.num_observers} observers on {len(comparison.people[0].stimuli)} images: shape bias "
        f"{known.shape_bias:.4f} pooled, {low:.4f} to {high:.4f} one by one; error consistency with each other "
        f"{known.kappa:.4f} (noise ceiling)"
    )
