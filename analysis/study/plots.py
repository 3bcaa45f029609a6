"""Figures of the kernel-size study. Each function draws into the Axes it is given and sets nothing global."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import optimize

from analysis.figures import DASHES, MARKERS, OKABE_ITO, axes_or_new
from analysis.study.measures import MEASURES
from analysis.study.posthoc import Variant
from analysis.study.result import ByKernel, CellResult, by_kernel, psychometric_curves, settings_of

LINE_OF_NAMES, ROOM_BELOW = 0.14, 0.7
"""Inches: of the height of a name beside the axes, and of the figure's height that the axes do not have."""
_SPREAD = 0.025
"""Distance of neighbouring seeds along the logarithmic axis of kernel sizes, at most."""
_MARGIN = 0.18
"""Of that axis beyond the first and the last kernel; seeds take two thirds of it, or of half the way to the next."""
_DODGE = 0.1
"""Of the distance of two balances: between the dots of neighbouring kernels."""


@dataclass(frozen=True)
class Line:
    """A value without a kernel size, such as that of people or of guessing.

    Args:
        name: Written beside it.
        value: Where it is.
        low: Lower end of its interval; NaN for none.
        high: Upper end.
        dash: How it is drawn.
    """

    name: str
    value: float
    low: float = float("nan")
    high: float = float("nan")
    dash: str = "-"


def plot_by_kernel(
    table: pd.DataFrame,
    measures: Sequence[tuple[str, str]],
    *,
    scale: float = 1.0,
    lines: Sequence[Line] = (),
    ax: Axes | None = None,
) -> Axes:
    """Mean and 95 % interval over seeds of one or several measures against the kernel size, every seed a dot.

    Args:
        table: As `study_table` makes it.
        measures: Columns, each with its label.
        scale: Factor on the values, such as 100 for per cent.
        lines: What the networks are compared with, behind them.
        ax: To draw into.
    """
    ax = axes_or_new(ax)
    for line in lines:
        style: dict[str, Any] = {"color": "0.5", "zorder": 0}
        ax.axhline(scale * line.value, linestyle=line.dash, lw=0.9, **style)
        if np.isfinite(line.low):
            ax.axhspan(scale * line.low, scale * line.high, alpha=0.2, lw=0, **style)
        ax.annotate(
            line.name,
            (0.5, scale * line.value),
            xycoords=("axes fraction", "data"),
            xytext=(0, 2),
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize="small",
        )
    number = 0
    for label, rows in settings_of(table):
        for column, name in measures:
            style = {"color": OKABE_ITO[number % len(OKABE_ITO)], "marker": MARKERS[number % len(MARKERS)]}
            shown = ", ".join(part for part in (name, label) if part)
            _draw_means(ax, by_kernel(rows, column), scale, style, DASHES[number % len(DASHES)], shown)
            number += 1
    kernels = sorted(set(table["kernel"]))
    ax.set_xscale("log")
    ax.set_xticks(kernels, [str(kernel) for kernel in kernels])
    ax.minorticks_off()
    ax.set_xlim(kernels[0] * np.exp(-_MARGIN), kernels[-1] * np.exp(_MARGIN))
    ax.set_xlabel("kernel size (pixels of the stage's map)")
    if number > 1:
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), frameon=False, ncols=1)
    return ax


def _draw_means(ax: Axes, found: ByKernel, scale: float, style: dict[str, Any], dash: Any, label: str) -> None:
    kernels = np.array(found.kernels)
    room = min(_MARGIN, *np.diff(np.log(kernels)) / 2) if len(kernels) > 1 else _MARGIN
    half = min(_SPREAD * (len(found.by_seed) - 1) / 2, 2 / 3 * room)
    for values, offset in zip(scale * found.by_seed, np.linspace(-half, half, len(found.by_seed)), strict=True):
        ax.plot(kernels * np.exp(offset), values, linestyle="none", markersize=3, alpha=0.45, **style)
    ax.plot(kernels, scale * found.means, linestyle=dash, lw=1.2, markersize=5, label=label or None, **style)
    ax.vlines(kernels, *(scale * found.ends.T), color=style["color"], lw=1.2)


def plot_psychometric(results: Sequence[CellResult], *, ax: Axes | None = None) -> Axes:
    """Share of shape decisions against the balance of the cues: one curve for each kernel, fitted to all seeds.

    Dots are the seeds, beside the balance that they share; the vertical mark is the point of subjective equality.
    """
    ax = axes_or_new(ax)
    curves = psychometric_curves(results)
    for number, curve in enumerate(curves):
        color, marker = OKABE_ITO[number % len(OKABE_ITO)], MARKERS[number % len(MARKERS)]
        step = np.diff(curve.balances).min() if len(curve.balances) > 1 else 0.0
        beside = curve.balances + _DODGE * step * (number - (len(curves) - 1) / 2)
        for seed in curve.shares:
            ax.plot(beside, seed, linestyle="none", marker=marker, markersize=2, alpha=0.35, lw=0, color=color)
        grid = np.linspace(curve.balances.min(), curve.balances.max(), 201)
        dash = DASHES[number % len(DASHES)]
        ax.plot(grid, curve.fit.probability(grid), color=color, linestyle=dash, label=f"{curve.kernel}")
        if np.isfinite(curve.fit.pse):
            ax.plot([curve.fit.pse] * 2, [0.44, 0.56], color=color, lw=2)
    ax.axhline(0.5, color="0.6", lw=0.6, zorder=0)
    ax.axvline(0, color="0.6", lw=0.6, zorder=0)
    ax.set(ylim=(-0.03, 1.03), xlabel="balance of the cues\n(-1: no texture, 0: both full, 1: no figure)")
    ax.set_ylabel("shape bias, S / (S + T)")
    ax.legend(title="kernel", frameon=False)
    return ax


def plot_erf_against_bias(table: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Shape bias of every cell against its effective receptive field."""
    ax = axes_or_new(ax)
    for number, (kernel, rows) in enumerate(table.groupby("kernel")):
        ax.plot(
            100 * rows["erf_area_0.5"],
            rows["shape_bias"],
            linestyle="none",
            color=OKABE_ITO[number % len(OKABE_ITO)],
            marker=MARKERS[number % len(MARKERS)],
            label=f"{kernel}",
        )
    ax.set(xlabel="area with half of the gradient (% of the image)", ylabel="shape bias with both cues full")
    ax.set_ylim(-0.03, 1.03)
    ax.legend(title="kernel", frameon=False)
    return ax


def plot_networks(table: pd.DataFrame, *, people: float | None = None, ax: Axes | None = None) -> Axes:
    """Shape bias of networks against their effective receptive field, with both 95 % intervals and names.

    The names stand in a column beside the axes, in the order of the points and as near to them as they fit.

    Args:
        table: As `comparison_table` makes it; networks without either of the two are left out.
        people: Their shape bias, a line across.
        ax: To draw into.
    """
    ax = axes_or_new(ax)
    rows = table[np.isfinite(table["erf_area_0.5"]) & np.isfinite(table["shape_bias"])]
    architectures = list(dict.fromkeys(rows["architecture"]))
    for row in rows.to_dict("records"):
        number = architectures.index(row["architecture"])
        x, y = 100 * row["erf_area_0.5"], row["shape_bias"]
        color = OKABE_ITO[number % len(OKABE_ITO)]
        x_ends, y_ends = (
            (100 * row["erf_area_0.5_low"], 100 * row["erf_area_0.5_high"]),
            (
                row["shape_bias_low"],
                row["shape_bias_high"],
            ),
        )
        ax.plot(x_ends, (y, y), color=color, lw=1.2)
        ax.plot((x, x), y_ends, color=color, lw=1.2)
        ax.plot(x, y, linestyle="none", markersize=5, color=color, marker=MARKERS[number % len(MARKERS)])
    if people is not None:
        ax.axhline(people, color="0.5", lw=0.8, linestyle=(0, (1, 1)), zorder=0)
        ax.text(0.01, people, "people", va="bottom", fontsize="small", color="0.5", transform=ax.get_yaxis_transform())
    ax.set(xlabel="area with half of the gradient (% of the image)", ylabel="shape bias, S / (S + T)")
    ax.set_xlim(left=0)
    ax.set_ylim(-0.03, 1.03)
    _name_beside(ax, 100 * rows["erf_area_0.5"], rows["shape_bias"], rows["network"])
    return ax


def _name_beside(ax: Axes, x: pd.Series, y: pd.Series, names: pd.Series) -> None:
    """Names of points in a column on the right, joined to them by lines; none stands on another."""
    figure: Any = ax.get_figure(root=True)
    bottom, top = ax.get_ylim()
    gap = LINE_OF_NAMES / (figure.get_figheight() - ROOM_BELOW) * (top - bottom)
    order = np.argsort(y.to_numpy(), kind="stable")
    steps = gap * np.arange(len(order))
    # The places nearest to the points, in the least squares, that are a gap apart or more and inside the axes.
    places = optimize.isotonic_regression(y.to_numpy()[order] - steps).x if len(order) else steps
    places = np.clip(places, bottom, max(bottom, top - gap * len(order))) + steps
    for index, place in zip(order, places, strict=True):
        ax.annotate(
            names.iloc[index],
            (x.iloc[index], y.iloc[index]),
            (1.04, (place - bottom) / (top - bottom)),
            textcoords="axes fraction",
            va="center",
            fontsize="small",
            arrowprops={"arrowstyle": "-", "lw": 0.4, "color": "0.6", "shrinkA": 1, "shrinkB": 3},
            annotation_clip=False,
        )


def plot_curves(results: Sequence[CellResult], *, ax: Axes | None = None) -> Axes:
    """Validation accuracy during the training, every seed a line."""
    ax = axes_or_new(ax)
    for number, kernel in enumerate(sorted({result.cell.kernel for result in results})):
        for index, result in enumerate(r for r in results if r.cell.kernel == kernel):
            ax.plot(
                result.curve.step,
                100 * np.array(result.curve.val_accuracy),
                color=OKABE_ITO[number % len(OKABE_ITO)],
                linestyle=DASHES[number % len(DASHES)],
                lw=0.9,
                label=None if index else f"{kernel}",
            )
    ax.set(xlabel="step", ylabel="validation accuracy (%)", ylim=(0, 100))
    ax.legend(title="kernel", frameon=False)
    return ax


def plot_posthoc(table: pd.DataFrame, measure: str, label: str, *, scale: float = 1.0, ax: Axes | None = None) -> Axes:
    """A measure against the side to which kernels are cropped, at all stages and at one at a time.

    The horizontal line is the network as it is, a dotted one the network without one of its branches.
    """
    ax = axes_or_new(ax)
    whole = table[table["variant"] == Variant().name]
    ax.axhline(scale * float(whole[measure].iloc[0]), color="0.5", lw=0.8, zorder=0, label="whole kernels")
    for number, row in enumerate(
        table[table["kernel"].isna() & (table["variant"] != Variant().name)].to_dict("records")
    ):
        branch = "small" if pd.isna(row["without"]) else row["without"]
        style = (0, (1, 1 + number))
        ax.axhline(scale * float(row[measure]), color="0.5", lw=0.9, ls=style, label=f"no {branch} branch")
    cropped = table[table["kernel"].notna()]
    stages = sorted(set(cropped["stage"].dropna()))
    series: list[tuple[str, pd.DataFrame]] = [("all stages", cropped[cropped["stage"].isna()])]
    series += [(f"stage {int(stage)} only", cropped[cropped["stage"] == stage]) for stage in stages]
    for number, (name, rows) in enumerate(series):
        ax.plot(
            rows["kernel"],
            scale * rows[measure],
            color=OKABE_ITO[number % len(OKABE_ITO)],
            marker=MARKERS[number % len(MARKERS)],
            linestyle=DASHES[number % len(DASHES)],
            markersize=3.5,
            lw=1.6 if number == 0 else 0.9,
            label=name,
        )
    ax.set(xlabel="kernels cropped to (pixels)", ylabel=label)
    ax.set_ylim(bottom=0)
    return ax


def plot_energy(energy: pd.DataFrame, *, ax: Axes | None = None) -> Axes:
    """Share of a kernel's energy inside its central square, by the square's side, for each stage."""
    ax = axes_or_new(ax)
    for number, (stage, rows) in enumerate(energy.groupby("stage")):
        ax.plot(
            2 * rows["radius"] + 1,
            100 * rows["cumulative"],
            color=OKABE_ITO[(number + 1) % len(OKABE_ITO)],
            marker=MARKERS[(number + 1) % len(MARKERS)],
            linestyle=DASHES[(number + 1) % len(DASHES)],
            markersize=3.5,
            label=f"stage {stage}",
        )
    ax.set(xlabel="side of the central square (pixels)", ylabel="energy inside (%)", ylim=(0, 103))
    ax.legend(frameon=False)
    return ax


def posthoc_figure(table: pd.DataFrame, energy: pd.DataFrame) -> Figure:
    """Every measure of `posthoc_table` that is there, and the energy of the kernels."""
    panels = [MEASURES[name] for name in ("accuracy", "erf_area_0.5", "shape_bias") if table[name].notna().any()]
    figure = Figure(figsize=(2.6 * (len(panels) + 1), 3.3), layout="constrained")
    axes = figure.subplots(1, len(panels) + 1, squeeze=False)[0]
    for measure, ax in zip(panels, axes, strict=False):
        plot_posthoc(table, measure.name, measure.label or measure.heading, scale=measure.scale, ax=ax)
    plot_energy(energy, ax=axes[-1])
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure
