"""At which place among all outputs the right class comes."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def first_ranks(logits: NDArray[Any], groups: Sequence[Sequence[int]]) -> FloatArray:
    """For each image the rank of the best class of a group among all outputs, by descending logit, from 1.

    Equal logits count against the group: every class outside of it that is as high comes before. So a network that
    gives all outputs one value is last, not first.

    Args:
        logits: Shape (N, classes), finite.
        groups: For each image the outputs that are right; empty where there is none.

    Returns:
        Shape (N,), whole numbers; NaN for an empty group.

    References:
        Kim et al. 2026, REFINED-BIAS, arXiv:2603.10834.
    """
    ranks = np.full(len(logits), np.nan)
    rows: dict[tuple[int, ...], list[int]] = {}
    for row, group in enumerate(groups):
        rows.setdefault(tuple(group), []).append(row)
    for group, own in rows.items():
        if group:
            values = logits[own]
            best = values[:, list(group)].max(1, keepdims=True)
            ranks[own] = 1 + (np.delete(values, list(group), axis=1) >= best).sum(1)
    return ranks


def chance_reciprocal_rank(size: int, num_classes: int) -> float:
    """Expected reciprocal rank of the best of `size` classes where all orders of the outputs are equally likely.

    Such a rank is r with the probability that r - 1 of the others come first, and then one of the right ones.
    """
    remaining, expected = 1.0, 0.0
    for rank in range(1, num_classes - size + 2):
        here = remaining * size / (num_classes - rank + 1)
        expected += here / rank
        remaining -= here
    return expected
