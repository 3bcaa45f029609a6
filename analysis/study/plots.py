"""Figures of the kernel-size study. Each function draws into the Axes it is given and sets nothing global."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import optimize

from analysis.figures import DASHES, MARKERS, OKABE_ITO, axes_or_new, draw_intervals, legend_below, wrapped
from analysis.study.measures import MEASURES
from analysis.study.posthoc import Variant
from analysis.study.result import ByKernel, CellResult, by_kernel, labelled_seeds, psychometric_curves, settings_of

_PANEL = 2.6
"""Inches: width of one of several."""
LINE_OF_NAMES, ROOM_BELOW = 0.14, 0.7
"""Inches: of the height of a name beside the axes, and of the figure's height that the axes do not have."""
_SPREAD = 0.025
"""Distance of neighbouring seeds along the logarithmic axis of kernel sizes, at most."""
_APART = 0.05
"""The same of neighbouring lines."""
_MARGIN = 0.18
"""Of that axis beyond the first and the last kernel; seeds take two thirds of it, or of half the way to the next."""
_FEW_SEEDS = 4
"""So many are lines behind a curve; more are a band from quartile to quartile."""


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

    A hollow mark is the mean of the seeds that have a value, where others lack it; no line joins it.

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
    kernels = sorted(set(table["kernel"]))
    number, hollow, settings = 0, False, settings_of(table)
    apart = min(_APART, _room(np.array(kernels)) / (len(settings) * len(measures)))
    for label, rows in settings:
        for column, name in measures:
            style = {"color": OKABE_ITO[number % len(OKABE_ITO)], "marker": MARKERS[number % len(MARKERS)]}
            shown = ", ".join(part for part in (name, label) if part)
            shift = apart * (number - (len(settings) * len(measures) - 1) / 2)  # bars do not cover each other
            dash = DASHES[number % len(DASHES)]
            hollow |= _draw_means(ax, by_kernel(rows, column), scale, style, dash, shown, shift)
            number += 1
    if hollow:
        ax.plot([], [], linestyle="none", marker="o", color="0.4", markerfacecolor="white", label="not of all seeds")
    ax.set_xscale("log")
    ax.set_xticks(kernels, [str(kernel) for kernel in kernels])
    ax.minorticks_off()
    ax.set_xlim(kernels[0] * np.exp(-_MARGIN), kernels[-1] * np.exp(_MARGIN))
    ax.set_xlabel("kernel size (pixels of the stage's map)")
    if number > 1 or hollow:
        legend_below(ax)
    return ax


def _room(kernels: NDArray[Any]) -> float:
    """On either side of a kernel, along the logarithmic axis."""
    return min(_MARGIN, *np.diff(np.log(kernels)) / 2) if len(kernels) > 1 else _MARGIN


def _draw_means(
    ax: Axes, found: ByKernel, scale: float, style: dict[str, Any], dash: Any, label: str, shift: float
) -> bool:
    """Whether a mean is not of all seeds."""
    room = _room(np.array(found.kernels))
    kernels = np.array(found.kernels) * np.exp(shift)
    half = min(_SPREAD * (len(found.by_seed) - 1) / 2, 2 / 3 * room)
    for values, offset in zip(scale * found.by_seed, np.linspace(-half, half, len(found.by_seed)), strict=True):
        places = kernels * np.exp(offset)
        ax.plot(places, values, linestyle="none", markersize=3, alpha=0.45, clip_on=False, **style)
    means = scale * found.means
    # Means of some of the seeds are not compared with those of all.
    whole = np.isfinite(found.by_seed).all(0)
    joined = np.where(whole, means, np.nan)
    ax.plot(kernels, joined, linestyle=dash, lw=1.2, markersize=5, label=label or None, clip_on=False, **style)
    some = np.isfinite(means) & ~whole
    if some.any():
        hollow = {**style, "markerfacecolor": "white", "zorder": 2.5}
        ax.plot(kernels[some], means[some], linestyle="none", markersize=5, clip_on=False, **hollow)
    draw_intervals(ax, kernels, *(scale * found.ends.T), color=style["color"], lw=1.2)
    return bool(some.any())


def plot_psychometric(results: CellResult | Sequence[CellResult], *, ax: Axes | None = None) -> Axes:
    """Share of shape decisions against the balance of the cues: a curve for each setting and kernel, of all seeds.

    Behind it are the seeds, each a thin line, or of more than four a band with the middle half of them; dots are the
    means over seeds, and the vertical mark is the point of subjective equality.
    """
    ax = axes_or_new(ax)
    cells = [results] if isinstance(results, CellResult) else results
    silent = next((cell.cell.name for cell in cells if not cell.balances), None)
    if silent is not None:
        raise ValueError(f"results: cell {silent} was not shown images at several balances of the cues")
    curves = psychometric_curves(cells)
    several = max(len(curve.shares) for curve in curves)
    for number, curve in enumerate(curves):
        color, marker = OKABE_ITO[number % len(OKABE_ITO)], MARKERS[number % len(MARKERS)]
        known = np.ma.masked_invalid(curve.shares)
        if len(curve.shares) > _FEW_SEEDS:
            ends = np.nanpercentile(curve.shares, (25, 75), axis=0)
            ax.fill_between(curve.balances, *ends, color=color, alpha=0.15, lw=0)
        elif several > 1:
            for seed in curve.shares:
                ax.plot(curve.balances, seed, color=color, lw=0.5, alpha=0.4)
        style: dict[str, Any] = {"marker": marker, "markersize": 3, "color": color, "clip_on": False}
        ax.plot(curve.balances, known.mean(0).filled(np.nan), linestyle="none", **style)
        grid = np.linspace(curve.balances.min(), curve.balances.max(), 201)
        dash = DASHES[number % len(DASHES)]
        ax.plot(grid, curve.fit.probability(grid), color=color, linestyle=dash)
        (key,) = ax.plot([], [], linestyle=dash, label=curve.label, **style)
        key.set_in_layout(False)  # without points, it would count as one in the corner of the figure
        if np.isfinite(curve.fit.pse):
            ax.plot([curve.fit.pse] * 2, [0.44, 0.56], color=color, lw=2)
    ax.axhline(0.5, color="0.6", lw=0.6, zorder=0)
    ax.axvline(0, color="0.6", lw=0.6, zorder=0)
    ax.set(ylim=(-0.03, 1.03), xlabel="balance of the cues\n(-1: no texture, 0: both full, 1: no figure)")
    ax.set_ylabel("shape bias, S / (S + T)")
    behind = "middle half of the seeds" if several > _FEW_SEEDS else "thin lines: seeds"
    marks = "vertical marks: points of subjective equality"
    legend_below(ax, title=f"{behind}; {marks}" if several > 1 else marks)
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
            clip_on=False,
            label=f"kernel {kernel}",
        )
    ax.set(xlabel="area with half of the gradient (% of the image)", ylabel="shape bias with both cues full")
    ax.set_ylim(-0.03, 1.03)
    legend_below(ax)
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
        areas = [100 * row[f"erf_area_0.5_{end}"] for end in ("low", "high")]
        draw_intervals(ax, y, *areas, horizontal=True, color=color, lw=1.2)
        draw_intervals(ax, x, row["shape_bias_low"], row["shape_bias_high"], color=color, lw=1.2)
        style: dict[str, Any] = {"color": color, "marker": MARKERS[number % len(MARKERS)], "clip_on": False}
        ax.plot(x, y, linestyle="none", markersize=5, **style)
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


def plot_curves(results: CellResult | Sequence[CellResult], *, ax: Axes | None = None) -> Axes:
    """Validation accuracy during the training, every seed a line."""
    ax = axes_or_new(ax)
    results = [results] if isinstance(results, CellResult) else results
    for number, (label, own) in enumerate(labelled_seeds(results).items()):
        for index, result in enumerate(own):
            ax.plot(
                result.curve.step,
                100 * np.array(result.curve.val_accuracy),
                color=OKABE_ITO[number % len(OKABE_ITO)],
                linestyle=DASHES[number % len(DASHES)],
                lw=0.9,
                label=None if index else label,
            )
    ax.set(xlabel="step", ylabel="validation accuracy (%)", ylim=(0, 100))
    legend_below(ax)
    return ax


def plot_posthoc(table: pd.DataFrame, measure: str, label: str, *, scale: float = 1.0, ax: Axes | None = None) -> Axes:
    """A measure against the side to which kernels are cropped, at all stages and at one at a time.

    The horizontal line is the network as it is, a dotted one the network without one of its branches. Bars, and the
    band behind the line, are 95 % intervals where the table has them.
    """
    ax = axes_or_new(ax)
    table = table.reindex(columns=list(dict.fromkeys([*table.columns, f"{measure}_low", f"{measure}_high"])))
    whole = table[table["variant"] == Variant().name].iloc[0]
    ax.axhline(scale * whole[measure], color="0.5", lw=0.8, zorder=0, label="whole kernels")
    ends = [scale * whole[f"{measure}_{end}"] for end in ("low", "high")]
    if np.isfinite(ends).all():
        ax.axhspan(*ends, color="0.5", alpha=0.15, lw=0, zorder=0)
    for number, row in enumerate(
        table[table["kernel"].isna() & (table["variant"] != Variant().name)].to_dict("records")
    ):
        branch = "small" if pd.isna(row["without"]) else row["without"]
        style = (0, (1, 1 + number))
        ax.axhline(scale * float(row[measure]), color="0.5", lw=0.9, ls=style, label=f"no {branch} branch")
    cropped = table[table["kernel"].notna()]
    stages = sorted(set(cropped["stage"].dropna()))
    series: list[tuple[str, pd.DataFrame]] = [("all stages", cropped[cropped["stage"].isna()])]
    series += [(f"stage {int(stage)}", cropped[cropped["stage"] == stage]) for stage in stages]
    step = np.diff(np.unique(cropped["kernel"])).min(initial=2.0) * 0.4 / len(series)
    for number, (name, rows) in enumerate(series):
        places = rows["kernel"] + step * (number - (len(series) - 1) / 2)  # bars do not cover each other
        color = OKABE_ITO[number % len(OKABE_ITO)]
        ends = [scale * rows[f"{measure}_{end}"] for end in ("low", "high")]
        draw_intervals(ax, places, *ends, color=color, lw=0.7, alpha=0.6)
        ax.plot(
            places,
            scale * rows[measure],
            color=color,
            marker=MARKERS[number % len(MARKERS)],
            linestyle=DASHES[number % len(DASHES)],
            markersize=3.5,
            lw=1.6 if number == 0 else 0.9,
            label=name,
            clip_on=False,
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
            lw=0.9,
            label=f"stage {stage}",
            clip_on=False,
        )
    ax.set(xlabel="side of the central square (pixels)", ylabel="energy inside (%)", ylim=(0, 103))
    legend_below(ax)
    return ax


def posthoc_figure(table: pd.DataFrame, energy: pd.DataFrame, *, width: float | None = None) -> Figure:
    """Every measure of `posthoc_table` that is there, and the energy of the kernels.

    Args:
        table: Of one network.
        energy: Of `kernel_energy`.
        width: In inches; by default what all need beside each other.
    """
    panels = [MEASURES[name] for name in ("accuracy", "erf_area_0.5", "shape_bias") if table[name].notna().any()]
    count = len(panels) + 1
    width = _PANEL * count if width is None else width
    columns = min(count, max(1, int(width / (0.65 * _PANEL))))
    rows = -(-count // columns)
    figure = Figure(figsize=(width, 2.7 * rows + 0.6), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for measure, ax in zip(panels, axes, strict=False):
        label = wrapped(measure.label or measure.heading, 120)
        plot_posthoc(table, measure.name, label, scale=measure.scale, ax=ax)
    plot_energy(energy, ax=axes[len(panels)])
    for ax in axes[:count]:
        ax.set_xlabel(wrapped(ax.get_xlabel(), 72 * width / columns - 45))
    for ax in axes[count:]:
        ax.set_visible(False)
    legend = axes[len(panels)].get_legend()
    if legend is not None:
        legend.remove()
    keys = {
        label: handle
        for ax in (axes[0], axes[len(panels)])  # stages are drawn alike in both
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    entries = max(1, min(4, int(width / 1.3)))
    figure.legend(list(keys.values()), list(keys), loc="outside lower center", ncols=entries, frameon=False)
    return figure
