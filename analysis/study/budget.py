"""Networks of equal cost: how wide one must be to cost as much as a network of another family."""

from dataclasses import replace
from functools import cache
from typing import Any

import torch

import replknet
from analysis.models.complexity import num_macs, num_parameters
from replknet.networks import build, family_of
from replknet.networks.family import Configuration

BUDGETS = {"macs": "multiply-accumulates", "parameters": "parameters"}
"""What is held equal, in words."""
TOLERANCE = 0.03
"""Relative difference of two costs that count as equal."""
_NARROWEST, _WIDEST = 0.25, 4.0
"""Factors on the widths among which is searched."""


def cost(config: Configuration, budget: str, size: int) -> int:
    """What a network costs with its kernels merged: parameters, or multiply-accumulates for one image of a side."""
    with torch.device("meta"):
        network = build(config)
    merged = replknet.reparameterize(network, level="kernels", inplace=True)
    return num_macs(merged, (size, size)) if budget == "macs" else num_parameters(merged)


@cache
def of_equal_cost(config: Any, reference: Any, *, budget: str, size: int) -> Any:
    """A configuration with all of its widths times one factor, so that it costs as much as another one.

    Of the widths that round up from one factor or another, those whose cost is the nearest.

    Args:
        config: Any `Configuration`.
        reference: The one whose cost is to be met.
        budget: A key of `BUDGETS`.
        size: Side of the images in pixels.

    Raises:
        ValueError: If the nearest cost differs by more than `TOLERANCE`.
    """
    target = cost(reference, budget, size)
    factors = _factors(config.channels)

    def made(factor: float) -> Any:
        return replace(config, channels=tuple(_rounded(width * factor) for width in config.channels))

    def cost_at(index: int) -> int:
        try:
            return cost(made(factors[index]), budget, size)
        except ValueError:  # narrower than the family allows
            return 0

    low, high = 0, len(factors) - 1
    costs = {low: cost_at(low), high: cost_at(high)}
    guess = 1.0
    while high - low > 1 and costs[low] < target < costs[high]:
        # The cost is nearly quadratic in the factor, so that few networks are looked at.
        found = next((index for index, factor in enumerate(factors) if factor >= guess), high)
        index = min(max(found, low + 1), high - 1)
        costs[index] = cost_at(index)
        guess = factors[index] * (target / max(costs[index], 1)) ** 0.5
        low, high = (index, high) if costs[index] < target else (low, index)
    best = min((low, high), key=lambda index: abs(costs[index] - target))
    if abs(costs[best] - target) > TOLERANCE * target:
        near = " and ".join(f"{costs[index]:,}" for index in (low, high) if costs[index])
        name, other = family_of(config).name, family_of(reference).name
        kernels = next(iter(config.kernels(merged=True).values()))
        raise ValueError(
            f"budget={budget!r}: no widths of a {name} with kernels of {kernels} come within {100 * TOLERANCE:g} % of "
            f"the {target:,} {BUDGETS[budget]} of the {other}; the nearest have {near}; expected wider channels"
        )
    return made(factors[best])


def _rounded(width: float) -> int:
    return max(int(width + 0.5 + 1e-9), 1)  # an edge is a quotient, and so not exact


def _factors(channels: tuple[int, ...]) -> list[float]:
    """The least factor of each different list of widths."""
    edges = {
        (width + 0.5) / own
        for own in channels
        for width in range(int(_NARROWEST * own), int(_WIDEST * own) + 1)
        if _NARROWEST <= (width + 0.5) / own <= _WIDEST
    }
    return [_NARROWEST, *sorted(edges)]
