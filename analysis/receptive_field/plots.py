"""Figures of receptive fields. Each function draws into the Axes it is given and sets nothing global."""

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.figures import DASHES, OKABE_ITO, axes_or_new
from analysis.receptive_field.result import ErfResult

_IN_A_ROW = 6
_DECADES = 4


def plot_erf(result: ErfResult, *, ax: Axes | None = None, thresholds: Sequence[float] = (0.5, 0.99)) -> Axes:
    """Heat map of the mean map relative to its maximum, four decades deep, with the area squares.

    The colour scale is the same for every result, so panels can be compared.
    """
    ax = axes_or_new(ax)
    height, width = result.map_size
    magnitude = np.abs(result.mean_map)
    peak = magnitude.max() or 1.0
    image = ax.imshow(
        np.maximum(magnitude / peak, 10.0**-_DECADES),
        norm=LogNorm(10.0**-_DECADES, 1),
        cmap="magma",
        interpolation="antialiased",
    )
    if ax.figure is not None:
        ax.figure.colorbar(image, ax=ax, shrink=0.75, label="gradient / its maximum")
    if result.options.gradient_rule != "signed":
        for threshold, dash in zip(thresholds, ("solid", "dashed", "dotted"), strict=False):
            for color, lw in (("white", 1.6), ("#0072B2", 0.8)):
                _draw_square(result, threshold, ax, edgecolor=color, lw=lw, linestyle=dash)
        ax.set_xlabel(f"x (pixels)\n{', '.join(_area(result, threshold) for threshold in thresholds)} of the area")
    ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5), ylabel="y (pixels)")
    ax.set_title(textwrap.fill(_label(result), 26, break_on_hyphens=False))
    return ax


def plot_contribution(results: Sequence[ErfResult], *, ax: Axes | None = None) -> Axes:
    """Share of the gradient inside growing squares, against the side of a square of equal area."""
    ax = axes_or_new(ax)
    for index, result in enumerate(results):
        areas, shares = result.contribution_curve()
        ax.plot(
            100 * np.sqrt(areas),
            100 * shares,
            color=OKABE_ITO[index % len(OKABE_ITO)],
            linestyle=DASHES[index % len(DASHES)],
            label=_label(result),
        )
    ax.axhline(50, color="0.8", lw=0.6, zorder=0)
    ax.axhline(99, color="0.8", lw=0.6, zorder=0)
    ax.set(xlim=(0, 100), ylim=(0, 101))
    ax.set(xlabel="side of the square (% of the image's)", ylabel="share of the gradient (%)")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)  # below: curves may fill the axes
    return ax


def plot_growth(results: Sequence[ErfResult], *, ax: Axes | None = None) -> Axes:
    """Root mean square radius of the layers of one or several models, in the order given."""
    ax = axes_or_new(ax)
    layers = list(dict.fromkeys(result.layer for result in results))
    for index, model in enumerate(dict.fromkeys(result.model for result in results)):
        own = [result for result in results if result.model == model]
        ax.plot(
            [layers.index(result.layer) for result in own],
            [result.rms_radius() for result in own],
            label=model,
            marker="osD^v"[index % 5],
            color=OKABE_ITO[index % len(OKABE_ITO)],
        )
    ax.set_xticks(range(len(layers)), layers)
    ax.set(xlabel="layer", ylabel="root mean square radius (pixels)")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False)
    return ax


def erf_figure(results: Sequence[ErfResult]) -> Figure:
    """One heat map for each result, at most four in a row."""
    columns = min(len(results), 4)
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(3.1 * columns, 3.0 * rows), layout="constrained")
    for result, ax in zip(results, figure.subplots(rows, columns, squeeze=False).flat, strict=False):
        plot_erf(result, ax=ax)
    for ax in figure.axes[len(results) : rows * columns]:
        ax.set_visible(False)
    return figure


def _label(result: ErfResult) -> str:
    return result.model if result.layer.startswith("last") else f"{result.model}, {result.layer}"


def _draw_square(result: ErfResult, threshold: float, ax: Axes, **style: Any) -> None:
    """Nothing for a map that is zero everywhere."""
    top, left, height, width = result.square(threshold)
    if not np.isnan(top):
        ax.add_patch(Rectangle((left, top), width, height, fill=False, **style))


def _area(result: ErfResult, threshold: float) -> str:
    area = result.area_ratio(threshold)
    return f"{100 * threshold:g} % in {'an undefined part' if np.isnan(area) else f'{100 * area:.1f} %'}"


def erf_row(results: Sequence[ErfResult], titles: Sequence[str], *, threshold: float = 0.5) -> Figure:
    """Heat maps side by side on one scale, each relative to its maximum, with the area square; at most six in a row."""
    columns = min(len(results), _IN_A_ROW)
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(1.75 * columns + 0.7, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    image = None
    for result, title, ax in zip(results, titles, axes.flat, strict=False):
        peak = result.mean_map.max() or 1.0
        image = ax.imshow(
            np.maximum(result.mean_map / peak, 10.0**-_DECADES), norm=LogNorm(10.0**-_DECADES, 1), cmap="magma"
        )
        _draw_square(result, threshold, ax, edgecolor="white", lw=1.0)
        ax.set_title(title)
        ax.set(xlabel=f"{_area(result, threshold)}\nof the area", xticks=[], yticks=[])
        ax.set(xlim=(-0.5, result.map_size[1] - 0.5), ylim=(result.map_size[0] - 0.5, -0.5))
    for ax in axes.flat[len(results) :]:
        ax.set_visible(False)
    if image is not None:
        figure.colorbar(image, ax=axes, shrink=0.75 if rows == 1 else 0.5, label="gradient / its maximum")
    return figure
