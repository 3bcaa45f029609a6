"""Figures of shape-bias results. Each function draws into the Axes it is given and sets nothing global."""

import textwrap
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from matplotlib.transforms import ScaledTranslation

from analysis.figures import MARKERS, OKABE_ITO, axes_or_new
from analysis.shape_bias.categories import NO_RESPONSE
from analysis.shape_bias.comparing import HumanReference, extremes, pooled_by_category
from analysis.shape_bias.glyphs import add_glyph, has_glyph
from analysis.shape_bias.result import Cluster, ShapeBiasResult

HUMAN_COLOR = "#A50026"
_HUMAN_MARKER = "o"
_ROW = 0.24
"""Height of one category in inches."""
_LABEL = 0.04
"""Height of a network's name in a plane of sensitivities, of which the sides are 1."""


def plot_shape_bias(
    results: Sequence[ShapeBiasResult],
    *,
    humans: Sequence[ShapeBiasResult] = (),
    cluster: Cluster = "two-way",
    confidence: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """The classic figure: for each shape category the fraction of texture decisions of every observer.

    People are one observer, their responses pooled. Vertical lines are at the value over all images; the last row shows
    it with its interval, for people with the range from the lowest to the highest.

    Raises:
        ValueError: If they have not seen the same images (`common_images` are those that all have).
    """
    images = _images([*results, *humans])
    ax = axes_or_new(ax)
    tables: list[tuple[str, Any]] = [(result.observer, result.by_category()) for result in results]
    if humans:
        tables.insert(0, (f"humans (n = {len(humans)})", pooled_by_category(humans)))
    categories = sorted({category for _, table in tables for category in table["shape"]})
    rows = {category: row for row, category in enumerate(categories)}
    bottom = len(categories) + 0.6
    for index, (name, table) in enumerate(tables):
        is_human = bool(humans) and index == 0
        color, marker = _look(index - bool(humans), is_human)
        style: dict[str, Any] = {"color": color, "marker": marker, "markeredgecolor": "white", "markeredgewidth": 0.4}
        ax.plot(1 - table["shape_bias"], table["shape"].map(rows), linestyle="none", markersize=5, label=name, **style)
        if is_human:
            decided = (table["num_shape"] + table["num_texture"]).sum()
            center = 1 - float(table["num_shape"].sum() / decided if decided else "nan")
            ends = extremes(np.array([1 - human.shape_bias for human in humans]))
        else:
            result = results[index - bool(humans)]
            center = 1 - result.shape_bias
            low, high = result.confidence_interval(cluster, confidence=confidence)
            ends = (1 - high, 1 - low)
        ax.axvline(center, color=color, lw=0.9, linestyle=(0, (1, 1)) if is_human else "solid", zorder=0)
        ax.plot(ends, (bottom + 0.35 * index,) * 2, color=color, lw=1.2, solid_capstyle="butt")
        ax.plot(center, bottom + 0.35 * index, linestyle="none", markersize=5, **style)
    last = bottom + 0.35 * (len(tables) - 1)
    ax.axhline(len(categories) - 0.2, color="0.6", lw=0.6)
    ax.set(xlim=(-0.02, 1.02), ylim=(last + 0.6, -0.7), xlabel="fraction of texture decisions")
    ax.set_yticks([*rows.values(), (bottom + last) / 2], [*rows, "all images"])
    for category, row in rows.items():
        ax.axhline(row, color="0.9", lw=0.4, zorder=-1)
        if has_glyph(category):
            add_glyph(ax, category, row, size=12)
    ax.tick_params(axis="y", length=0, pad=21 if any(map(has_glyph, categories)) else 3)
    top = ax.secondary_xaxis("top", functions=(_complement, _complement))
    top.set_xlabel("fraction of shape decisions")
    _legend_below(ax, ax.get_legend_handles_labels()[0], images)
    return ax


def shape_bias_figure(
    results: Sequence[ShapeBiasResult], *, humans: Sequence[ShapeBiasResult] = (), cluster: Cluster = "two-way"
) -> Figure:
    """`plot_shape_bias` in a figure as high as its categories and observers need."""
    categories = {shape for result in (*results, *humans) for shape in result.shapes}
    observers = len(results) + bool(humans)
    height = 1.2 + _ROW * (len(categories) + 1.5) + 0.1 * observers + 0.17 * (observers // 2 + 1)
    figure = Figure(figsize=(4.6, height), layout="constrained")
    plot_shape_bias(results, humans=humans, cluster=cluster, ax=figure.add_subplot())
    return figure


def plot_category_box(
    results: Sequence[ShapeBiasResult], *, humans: Sequence[ShapeBiasResult] = (), ax: Axes | None = None
) -> Axes:
    """Shape bias of the shape categories of each observer: box from quartile to quartile, whiskers to the extremes.

    Raises:
        ValueError: If they have not seen the same images (`common_images` are those that all have).
    """
    images = _images([*results, *humans])
    ax = axes_or_new(ax)
    tables: list[tuple[str, Any]] = [(result.observer, result.by_category()) for result in results]
    if humans:
        tables.insert(0, (f"humans (n = {len(humans)})", pooled_by_category(humans)))
    for index, (_, table) in enumerate(tables):
        is_human = bool(humans) and index == 0
        color, marker = _look(index - bool(humans), is_human)
        values = table["shape_bias"].dropna().to_numpy()
        boxes = ax.boxplot(
            [values], positions=[index], orientation="horizontal", widths=0.5, whis=(0, 100), showfliers=False
        )
        for lines in boxes.values():
            for line in lines:
                line.set(color=color, linewidth=1.0)
        spread = np.linspace(-0.16, 0.16, len(values)) if len(values) > 1 else np.zeros(len(values))
        ax.plot(values, index + spread, linestyle="none", marker=marker, markersize=2.5, color=color, alpha=0.6)
    ax.set_yticks(range(len(tables)), [textwrap.fill(name, 24) for name, _ in tables])
    ax.set(xlim=(-0.02, 1.02), ylim=(len(tables) - 0.4, -0.6), xlabel=f"shape bias of each shape category\n{images}")
    return ax


def plot_pair_map(result: ShapeBiasResult, *, ax: Axes | None = None) -> Axes:
    """Shape bias of every pair of shape (row) and texture (column), with the counts of shape / texture decisions.

    A cell without either is grey; the diagonal has no conflict and is empty.
    """
    ax = axes_or_new(ax)
    table = result.pair_map()
    rows, columns = (sorted(set(table[name])) for name in ("shape", "texture"))
    values = np.full((len(rows), len(columns)), np.nan)
    ax.set_facecolor("white")
    for shape, texture, num_shape, num_texture, shape_bias in table[
        ["shape", "texture", "num_shape", "num_texture", "shape_bias"]
    ].itertuples(index=False, name=None):
        y, x = rows.index(shape), columns.index(texture)
        values[y, x] = shape_bias
        if np.isnan(values[y, x]):
            ax.fill([x - 0.5, x + 0.5, x + 0.5, x - 0.5], [y - 0.5, y - 0.5, y + 0.5, y + 0.5], color="0.88", lw=0)
        dark = not np.isnan(values[y, x]) and values[y, x] < 0.55
        ax.text(
            x, y, f"{num_shape}/{num_texture}", ha="center", va="center", fontsize=5,
            color="white" if dark else "black",
        )  # fmt: skip
    image = ax.imshow(values, vmin=0, vmax=1, cmap="cividis")
    if ax.figure is not None:
        ax.figure.colorbar(image, ax=ax, shrink=0.75, label="shape bias")
    ax.set_xticks(range(len(columns)), columns, rotation=90)
    ax.set_yticks(range(len(rows)), rows)
    ax.set(xlabel="texture", ylabel="shape")
    ax.set_title(f"{result.observer}: shape / texture decisions, {result.num_images} images")
    return ax


def plot_confusion(result: ShapeBiasResult, *, ax: Axes | None = None) -> Axes:
    """Responses (columns) to each shape category (rows) in percent of its images, all images."""
    ax = axes_or_new(ax)
    table = result.confusion()
    if not table[NO_RESPONSE].any():  # networks always answer
        table = table.drop(columns=NO_RESPONSE)
    percent = 100 * table.to_numpy(dtype=float) / np.maximum(table.sum(axis=1).to_numpy(), 1)[:, None]
    image = ax.imshow(percent, vmin=0, vmax=100, cmap="cividis")
    for (y, x), value in np.ndenumerate(percent):
        if value >= 0.5:
            ax.text(
                x, y, f"{value:.0f}", ha="center", va="center", fontsize=5, color="white" if value < 55 else "black"
            )
    if ax.figure is not None:
        ax.figure.colorbar(image, ax=ax, shrink=0.75, label="% of the images")
    ax.set_xticks(range(table.shape[1]), list(table.columns), rotation=90)
    ax.set_yticks(range(table.shape[0]), list(table.index))
    ax.set(xlabel="response", ylabel="shape")
    ax.set_title(f"{result.observer}: responses to {len(result.stimuli)} images")
    return ax


def plot_consistency(table: pd.DataFrame, reference: HumanReference, *, ax: Axes | None = None) -> Axes:
    """Error consistency of each network with every person (`consistency_table`), beside people with each other.

    Points are people, with 95 % intervals over images; the bar is their mean. The band spans the mean consistency of
    one person with the others, the dashed line is the mean over all pairs of people.
    """
    ax = axes_or_new(ax)
    low, high = reference.kappa_leave_one_out
    ax.axvspan(low, high, color=HUMAN_COLOR, alpha=0.15, lw=0)
    ax.axvline(reference.kappa, color=HUMAN_COLOR, lw=0.9, linestyle="dashed")
    names = list(dict.fromkeys(table["first"]))
    for index, name in enumerate(names):
        color, marker = _look(index, False)
        own = table[table["first"] == name]
        y = index + np.linspace(-0.25, 0.25, len(own)) if len(own) > 1 else np.array([float(index)])
        ax.hlines(y, own["low"], own["high"], color=color, lw=0.5, alpha=0.6)
        ax.plot(own["kappa"], y, linestyle="none", marker=marker, markersize=3, color=color)
        mean = own["kappa"].mean()
        ax.plot([mean, mean], [index - 0.35, index + 0.35], color="black", lw=1.5)
    ax.axvline(0, color="0.5", lw=0.6)
    ax.set_yticks(range(len(names)), [textwrap.fill(name, 24) for name in names])
    ax.set(ylim=(len(names) - 0.4, -0.6), xlabel="error consistency with each person (kappa)")
    handles = [
        Line2D([], [], color=HUMAN_COLOR, linestyle="dashed", label="people with each other"),
        Line2D([], [], color="black", lw=1.5, label="mean"),
    ]
    numbers = sorted(set(table["num_images"]))
    _legend_below(
        ax, handles, f"{' to '.join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))} images, common to both"
    )
    return ax


def plot_sensitivity(table: pd.DataFrame, *, title: str = "", ax: Axes | None = None) -> Axes:
    """Sensitivity to shape against that to texture, each with its interval: a point for each network.

    Grey lines are where the shape has the same part in the sum of both, as a ratio tells it: along one of them networks
    use both cues more or use both less, which no ratio shows.

    Args:
        table: A row for each network: its name as `observer`, and the cells of `sensitivity_row`.
        title: Of the axes.
        ax: Where to draw.
    """
    ax = axes_or_new(ax)
    for part in np.arange(1, 10) / 10:
        end = (min(1.0, (1 - part) / part), min(1.0, part / (1 - part)))
        ax.plot((0, end[0]), (0, end[1]), color="0.85", lw=1.2 if part == 0.5 else 0.6, zorder=0)
        beside: dict[str, Any] = {"ha": "left", "va": "center"} if part <= 0.5 else {"ha": "center", "va": "bottom"}
        ax.annotate(f"{part:.1f}", end, xytext=(2, 1), textcoords="offset points", color="0.4", fontsize=6, **beside)
    known = table.dropna(subset=["shape_sensitivity", "texture_sensitivity"])
    heights = _apart(known["shape_sensitivity"].tolist())
    for index, (row, height) in enumerate(zip(known.to_dict("records"), heights, strict=True)):
        x, y = row["texture_sensitivity"], row["shape_sensitivity"]
        color, marker = _look(index, False)
        ax.plot((row["texture_low"], row["texture_high"]), (y, y), color=color, lw=0.8)
        ax.plot((x, x), (row["shape_low"], row["shape_high"]), color=color, lw=0.8)
        ax.plot(x, y, linestyle="none", marker=marker, markersize=4, color=color, label=row["observer"])
        side, ha = (0.02, "left") if x < 0.6 else (-0.02, "right")
        leader = {"arrowstyle": "-", "color": color, "lw": 0.4, "shrinkB": 3, "relpos": (0 if ha == "left" else 1, 0.5)}
        ax.annotate(
            row["observer"],
            (x, y),
            xytext=(x + side, height),
            ha=ha,
            va="bottom",
            color=color,
            fontsize=6.5,
            zorder=1,  # the halo hides no interval
            arrowprops=leader if abs(height - y) > _LABEL else None,
            path_effects=[withStroke(linewidth=1.8, foreground="white")],
        )
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set(xlabel="texture sensitivity (mean 1/rank)", ylabel="shape sensitivity (mean 1/rank)")
    ax.set_title(title, pad=16)
    ax.text(1.0, 1.06, "S / (S + T)", color="0.4", fontsize=6, ha="center", va="bottom")
    return ax


def _apart(values: Sequence[float]) -> list[float]:
    """Heights of labels from 0 to 1: just above the values, and moved where they would overlap."""
    places = np.array(values, dtype=float) + _LABEL / 4
    order = np.argsort(places, kind="stable")
    for below, this in pairwise(order):
        places[this] = max(places[this], places[below] + _LABEL)
    limit = 1 - _LABEL
    for this in order[::-1]:
        places[this] = limit = min(places[this], limit)
        limit -= _LABEL
    return [float(place) for place in places]


def _images(observers: Sequence[ShapeBiasResult]) -> str:
    """How many images count, in words."""
    for other in observers[1:]:
        if set(other.stimuli) != set(observers[0].stimuli):
            raise ValueError(
                f"results: {observers[0].observer} has seen {len(observers[0].stimuli)} images and {other.observer} "
                f"{len(other.stimuli)}, not the same; expected common_images of them"
            )
    counted = "conflict images" if observers[0].options.congruent == "exclude" else "images"
    common = ", common to all observers" if len(observers) > 1 else ""
    return f"{observers[0].num_images} {counted}{common}"


def _look(index: int, is_human: bool) -> tuple[str, str]:
    if is_human:
        return HUMAN_COLOR, _HUMAN_MARKER
    return OKABE_ITO[index % len(OKABE_ITO)], MARKERS[1:][index % (len(MARKERS) - 1)]


def _legend_below(ax: Axes, handles: Sequence[Any], title: str) -> None:
    """Under the horizontal axis and its label, however high the axes are."""
    down = ScaledTranslation(0, -34 / 72, ax.figure.dpi_scale_trans)
    ax.legend(
        handles=handles,
        title=title,
        title_fontsize="small",
        loc="upper center",
        bbox_to_anchor=(0.4, 0.0),
        bbox_transform=ax.transAxes + down,
        ncols=2,
        frameon=False,
    )


def _complement(share: Any) -> Any:
    return 1 - share
