"""The figures of the page of a comparison: each a function, with the section that it belongs to and its caption."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.receptive_field.plots import curves_figure, erf_figure, plot_contribution
from analysis.receptive_field.result import ErfResult
from analysis.runs.methods import counted, joined
from analysis.shape_bias.comparing import common_images
from analysis.shape_bias.plots import shape_bias_figure
from analysis.shape_bias.result import ShapeBiasResult
from analysis.study.compared.result import Comparison
from analysis.study.panels import Panel
from analysis.study.plots import LINE_OF_NAMES, ROOM_BELOW, plot_networks

_WIDTH, _LETTER = 3.2, 0.062
"""Inches: of the axes with their labels, and of a letter of a name beside them."""


@dataclass(frozen=True)
class ComparisonView:
    """A comparison as its page shows it.

    Args:
        comparison: What was measured.
        width: Of a figure in inches; None for what each needs.
    """

    comparison: Comparison
    width: float | None = None

    @property
    def table(self) -> pd.DataFrame:
        """Of `comparison_table`."""
        return self.comparison.table

    @cached_property
    def fields(self) -> list[ErfResult]:
        """The receptive fields that were measured."""
        return [network.erf for network in self.comparison.networks if network.erf is not None]

    @cached_property
    def answers(self) -> list[ShapeBiasResult]:
        """The networks that answered the stimuli."""
        return [network.shape_bias for network in self.comparison.networks if network.shape_bias is not None]

    def has(self, measure: str) -> bool:
        """Whether it was measured on some network."""
        return bool(self.table[measure].notna().any())


def _fields_text(view: ComparisonView) -> str:
    if not view.fields:
        return "None could be measured."
    first = view.fields[0]
    size = "x".join(map(str, dict.fromkeys(first.map_size)))
    number = counted(len(first.images), "image")
    return (
        f"Mean absolute gradient of the central unit of the last feature map over {number} "
        f"({first.image_source}) of {size} pixels (the paper: 1024), weights as they are; all on one scale."
    )


def drawn_of(view: ComparisonView) -> str:
    words = {"image": "images", "two-way": "shape and texture exemplars"}
    ways = dict.fromkeys(answers.drawn_over("two-way") for answers in view.answers)
    return joined(words.get(way, f"{way} exemplars") for way in ways)


SECTIONS: dict[str, Callable[[ComparisonView], str]] = {
    "Field and shape bias": lambda view: (
        "Every point is a network, every colour and marker an architecture; bars in the figure are 95 % intervals: of "
        "the area over images, of the shape bias over "
        f"{drawn_of(view)}."
    ),
    "Effective receptive fields": _fields_text,
    "Shape against texture": lambda _: (
        "The network names one of the categories of the stimuli; on a conflict image it cannot be right about both."
    ),
}
"""Title and text of each, in order."""


def scatter(view: ComparisonView) -> Figure:
    """`plot_networks` in a figure with room for the names."""
    rows = view.table[np.isfinite(view.table["erf_area_0.5"]) & np.isfinite(view.table["shape_bias"])]
    longest = max(map(len, rows["network"]), default=0)
    height = max(3.1, LINE_OF_NAMES * (len(rows) + 1) + ROOM_BELOW)
    figure = Figure(figsize=(view.width or _WIDTH + _LETTER * longest, height), layout="constrained")
    reference = view.comparison.reference
    plot_networks(view.table, people=None if reference is None else reference.shape_bias, ax=figure.add_subplot())
    return figure


def _maps(view: ComparisonView) -> Figure:
    return erf_figure(view.fields)


def _contribution(view: ComparisonView) -> Figure:
    return curves_figure(plot_contribution, view.fields)


def _by_category(view: ComparisonView) -> Figure:
    people = list(view.comparison.people)
    everyone = common_images([*view.answers, *people])
    return shape_bias_figure(everyone[: len(view.answers)], humans=everyone[len(view.answers) :])


def panels_of(view: ComparisonView) -> list[Panel]:
    """Those for which something was measured, in order."""
    found = [
        Panel(
            name="area_and_bias",
            section="Field and shape bias",
            caption="Shape bias against the area that holds half of the gradient.",
            draw=scatter,
            needs="shape_bias",
        ),
    ]
    if view.fields:
        found += [
            Panel(
                name="erf",
                needs="erf_area_0.5",
                section="Effective receptive fields",
                caption="The solid square holds half of the gradient, the dashed one 99 %.",
                draw=_maps,
                wide=True,
                maps=lambda view: [(field, field.model, {"model": field.model}) for field in view.fields],
            ),
            Panel(
                name="contribution",
                needs="erf_area_0.5",
                section="Effective receptive fields",
                caption="Share of the gradient inside growing squares.",
                draw=_contribution,
            ),
        ]
    found.append(
        Panel(
            name="by_category",
            section="Shape against texture",
            caption="Decisions by shape category, on the images that all have seen.",
            draw=_by_category,
            needs="shape_bias",
        )
    )
    return found
