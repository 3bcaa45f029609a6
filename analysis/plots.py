"""Figures of results. Each function draws into the Axes it is given and sets nothing global."""

import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from analysis.erf import ErfResult

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.5, 1.5, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_DECADES = 4


@contextmanager
def paper_style() -> Iterator[None]:
    """Text legible at column width and fonts embedded in PDF files, inside the block only."""
    style: dict[Any, Any] = {
        "font.size": 8,
        "axes.titlesize": 8,
        "legend.fontsize": 7,
        "pdf.fonttype": 42,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "savefig.dpi": 200,
    }
    with mpl.rc_context(style):
        yield


def axes_or_new(ax: Axes | None) -> Axes:
    """`ax`, or the only axes of a new figure of column width."""
    return Figure(figsize=(3.4, 3.0), layout="constrained").add_subplot() if ax is None else ax


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
            side = result.side(threshold)
            top, left = (middle - side / 2 for middle in result.center)
            ax.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor="white", lw=1.6, linestyle=dash))
            ax.add_patch(Rectangle((left, top), side, side, fill=False, edgecolor="#0072B2", lw=0.8, linestyle=dash))
        areas = ", ".join(f"{100 * t:g} % in {100 * result.area_ratio(t):.1f} %" for t in thresholds)
        ax.set_xlabel(f"x (pixels)\n{areas} of the area")
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


def plot_benchmark(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Median times of every contender (`analysis.benchmark.compare`) against its own case, on logarithmic axes.

    The horizontal axis is the kernel size where it varies in the table, with one line per contender and, dashed
    differently, per map size; otherwise the case.
    """
    ax = axes_or_new(ax)
    timed = table.dropna(subset=["median_ms"])
    labels = list(table.columns[: list(table.columns).index("contender")])
    by_kernel = "kernel" in timed and len(set(timed["kernel"])) > 6
    others = [label for label in labels if label != "kernel" and len(set(timed[label])) > 1] if by_kernel else []
    contenders = list(dict.fromkeys(timed["contender"]))
    groups: list[Any] = list(timed[others].drop_duplicates().itertuples(index=False, name=None)) if others else [()]
    timed = timed.assign(case=timed.groupby(labels, sort=False).ngroup() + 1)
    for key, rows in timed.groupby(["contender", *others], sort=False):
        number, group = contenders.index(key[0]), groups.index(tuple(key[1:]))
        ax.plot(
            rows["kernel"] if by_kernel else rows["case"],
            rows["median_ms"],
            color=OKABE_ITO[number % len(OKABE_ITO)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=3,
            linewidth=1 if by_kernel else 0,
            linestyle=DASHES[group % len(DASHES)],
            label=key[0] if group == 0 else None,
        )
    for index, values in enumerate(groups if others else []):
        text = ", ".join(f"{label} {value}" for label, value in zip(others, values, strict=True))
        ax.plot([], [], color="0.3", linewidth=1, linestyle=DASHES[index % len(DASHES)], label=text)
    ax.set_yscale("log")
    ax.set_ylabel("time (ms)")
    if by_kernel:
        ax.set_xscale("log")
        kernels = sorted(timed["kernel"].unique())
        shown = [kernels[0]]
        for kernel in kernels[1:]:
            if kernel >= 1.18 * shown[-1]:
                shown.append(kernel)
        ax.set_xticks(shown, [str(kernel) for kernel in shown])
        ax.minorticks_off()
        ax.set_xlabel("kernel size (pixels)")
    else:
        cases = timed.drop_duplicates(labels)
        varying = [label for label in labels if len(set(timed[label])) > 1] or labels
        names = [" ".join(str(row[label]) for label in varying) for _, row in cases.iterrows()]
        ax.set_xticks(range(1, len(names) + 1), names, rotation=30, ha="right")
        ax.set_xlabel(", ".join(varying))
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    return ax


def plot_ratios(ratios: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """A dot for each case: its ratio (`analysis.benchmark.slowness`) against the kernel, on logarithmic axes."""
    ax = axes_or_new(ax)
    directions = sorted(set(ratios["direction"]))
    for number, direction in enumerate(directions):
        rows = ratios[ratios["direction"] == direction]
        ax.plot(
            rows["kernel"] * 1.03 ** (number - (len(directions) - 1) / 2),  # beside each other
            rows["ratio"],
            color=OKABE_ITO[number % len(OKABE_ITO)],
            marker=MARKERS[number % len(MARKERS)],
            markersize=2.5,
            linewidth=0,
            label=direction,
        )
    ax.axhline(1, color="0.3", linewidth=0.8)
    ax.set_xscale("log")
    ax.set_yscale("log")
    kernels = sorted(ratios["kernel"].unique())
    ax.set_xticks(kernels, [str(kernel) for kernel in kernels])
    ax.minorticks_off()
    ax.set_xlabel("kernel size (pixels)")
    ax.set_ylabel("time over conv2d's")
    ax.legend(fontsize="small")
    return ax
