"""Figures of shape-bias results. Each function draws into the Axes it is given and sets nothing global."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from numpy.typing import NDArray

from analysis.figures import (
    CELL_COLORS,
    MARKERS,
    OKABE_ITO,
    axes_or_new,
    draw_cells,
    draw_counts,
    draw_intervals,
    legend_below,
    new_axes,
    room_of,
    wrapped,
)
from analysis.shape_bias.categories import NO_RESPONSE
from analysis.shape_bias.comparing import HumanReference, extremes, pooled_by_category
from analysis.shape_bias.glyphs import add_glyph, has_glyph
from analysis.shape_bias.result import Cluster, ShapeBiasResult

HUMAN_COLOR = "#A50026"
_HUMAN_MARKER = "o"
_ROW = 0.24
"""Height of one category in inches."""
_APART = 0.035
"""Fractions of decisions nearer than this are one above the other."""
_STEP, _REACH = 0.24, 0.66
"""Of the height of a row: between such points, and of all of them together."""


def plot_shape_bias(
    results: ShapeBiasResult | Sequence[ShapeBiasResult],
    *,
    humans: Sequence[ShapeBiasResult] = (),
    cluster: Cluster = "two-way",
    confidence: float = 0.95,
    ax: Axes | None = None,
) -> Axes:
    """The classic figure: for each shape category the fraction of texture decisions of every observer.

    People are one observer, their responses pooled. Vertical lines are at the value over all images; the last row shows
    it with its interval, for people with the range from the lowest to the highest. Points of a category that would
    cover each other are one above the other.

    Raises:
        ValueError: If they have not seen the same images (`common_images` are those that all have).
    """
    results = _several(results)
    images = _images([*results, *humans])
    ax = axes_or_new(ax)
    tables: list[tuple[str, Any]] = [(result.observer, result.by_category()) for result in results]
    if humans:
        tables.insert(0, (f"humans (n = {len(humans)})", pooled_by_category(humans)))
    categories = sorted({category for _, table in tables for category in table["shape"]})
    rows = {category: row for row, category in enumerate(categories)}
    bottom = len(categories) + 0.6
    shares = np.array([1 - table.set_index("shape")["shape_bias"].reindex(categories) for _, table in tables])
    heights = np.arange(len(categories)) + np.stack([_staggered(row) for row in shares.T], 1)
    for index, (name, table) in enumerate(tables):
        is_human = bool(humans) and index == 0
        color, marker = _look(index - bool(humans), is_human)
        style: dict[str, Any] = {"color": color, "marker": marker, "markeredgecolor": "white", "markeredgewidth": 0.4}
        style |= {"linestyle": "none", "markersize": 5, "clip_on": False}
        ax.plot(shares[index], heights[index], label=name, **style)
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
        ax.plot(center, bottom + 0.35 * index, **style)
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
    bars = f"all images: {100 * confidence:g} % interval ({results[0].drawn_over(cluster) if results else cluster})"
    keys = [
        Line2D([], [], color="0.3", lw=0.9, marker="|", linestyle="none", markersize=9, label="all images: value"),
        Line2D([], [], color="0.3", lw=1.2, label=bars),
    ]
    if humans:
        keys.append(Line2D([], [], color=HUMAN_COLOR, lw=1.2, label="all images: lowest to highest of humans"))
    legend_below(ax, [*ax.get_legend_handles_labels()[0], *keys], images)
    return ax


def _staggered(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """How far from the middle of its row each point is, so that none covers its neighbour."""
    order = [int(index) for index in np.argsort(values, kind="stable") if np.isfinite(values[index])]
    found = np.zeros(len(values))
    groups: list[list[int]] = []
    for index in order:
        if groups and values[index] - values[groups[-1][-1]] < _APART:
            groups[-1].append(index)
        else:
            groups.append([index])
    for group in groups:
        step = min(_STEP, _REACH / max(1, len(group) - 1))
        for place, index in enumerate(sorted(group)):  # in the order of the legend
            found[index] = step * (place - (len(group) - 1) / 2)
    return found


def shape_bias_figure(
    results: Sequence[ShapeBiasResult],
    *,
    humans: Sequence[ShapeBiasResult] = (),
    cluster: Cluster = "two-way",
    width: float = 4.6,
) -> Figure:
    """`plot_shape_bias` in a figure, by default 4.6 inches wide, as high as its categories and observers need."""
    categories = {shape for result in (*results, *humans) for shape in result.shapes}
    observers = len(results) + bool(humans)
    height = 1.5 + _ROW * (len(categories) + 1.5) + 0.1 * observers + 0.17 * (observers // 2 + 2)
    ax = new_axes(width, height)
    plot_shape_bias(results, humans=humans, cluster=cluster, ax=ax)
    return ax.get_figure(root=True)  # type: ignore[return-value]


def sensitivity_figure(table: pd.DataFrame, *, width: float | None = None) -> Figure:
    """`plot_sensitivity` for each kind of stimuli.

    Args:
        table: With a column `stimuli`.
        width: In inches; by default 3.6 for each kind.
    """
    kinds = list(dict.fromkeys(table["stimuli"]))
    width = 3.6 * len(kinds) if width is None else width
    columns = min(len(kinds), max(1, int(width / 2.8)))
    rows = -(-len(kinds) // columns)
    height = min(width / columns, 3.8) + 0.3 + 0.14 * len(table) / len(kinds)
    figure = Figure(figsize=(width, rows * height), layout="constrained")
    for kind, ax in zip(kinds, figure.subplots(rows, columns, squeeze=False).flat, strict=False):
        plot_sensitivity(table[table["stimuli"] == kind], title=kind, ax=ax)
    return figure


def consistency_figure(table: pd.DataFrame, reference: HumanReference, *, width: float = 4.0) -> Figure:
    """`plot_consistency` in a figure as high as its networks need."""
    ax = new_axes(width, 2.0 + 0.5 * table["first"].nunique())
    plot_consistency(table, reference, ax=ax)
    return ax.get_figure(root=True)  # type: ignore[return-value]


def box_figure(
    results: Sequence[ShapeBiasResult], *, humans: Sequence[ShapeBiasResult] = (), width: float = 4.0
) -> Figure:
    """`plot_category_box` in a figure as high as its observers need."""
    ax = new_axes(width, 0.8 + 0.4 * (len(results) + bool(humans)))
    plot_category_box(results, humans=humans, ax=ax)
    return ax.get_figure(root=True)  # type: ignore[return-value]


def plot_category_box(
    results: ShapeBiasResult | Sequence[ShapeBiasResult],
    *,
    humans: Sequence[ShapeBiasResult] = (),
    ax: Axes | None = None,
) -> Axes:
    """Shape bias of the shape categories of each observer: box from quartile to quartile, whiskers to the extremes.

    Raises:
        ValueError: If they have not seen the same images (`common_images` are those that all have).
    """
    results = _several(results)
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
        style: dict[str, Any] = {"marker": marker, "markersize": 2.5, "color": color, "alpha": 0.6, "clip_on": False}
        ax.plot(values, index + spread, linestyle="none", **style)
    ax.set_yticks(range(len(tables)), [wrapped(name, 0.4 * room_of(ax)) for name, _ in tables])
    ax.set(xlim=(-0.02, 1.02), ylim=(len(tables) - 0.4, -0.6))
    ax.set_xlabel(f"shape bias of each shape category\n{wrapped(images, 0.7 * room_of(ax))}")
    return ax


def plot_pair_map(
    result: ShapeBiasResult, *, ax: Axes | None = None, cmap: str = CELL_COLORS, bar: bool = True
) -> Axes:
    """Shape bias of every pair of shape (row) and texture (column), with the counts of shape / texture decisions.

    A cell without either is grey; the diagonal has no conflict and is empty. The counts are written where they fit.

    Args:
        result: Of an observer.
        ax: To draw into.
        cmap: Of the colours.
        bar: With a colour bar of its own.
    """
    ax = axes_or_new(ax)
    table = result.pair_map()
    rows, columns = (sorted(set(table[name])) for name in ("shape", "texture"))
    values = np.full((len(rows), len(columns)), np.nan)
    ax.set_facecolor("white")
    texts = []
    for shape, texture, num_shape, num_texture, shape_bias in table[
        ["shape", "texture", "num_shape", "num_texture", "shape_bias"]
    ].itertuples(index=False, name=None):
        y, x = rows.index(shape), columns.index(texture)
        values[y, x] = shape_bias
        if np.isnan(values[y, x]):
            ax.fill([x - 0.5, x + 0.5, x + 0.5, x - 0.5], [y - 0.5, y - 0.5, y + 0.5, y + 0.5], color="0.88", lw=0)
        texts.append((x, y, f"{num_shape}/{num_texture}"))
    draw_cells(ax, values, Normalize(0, 1), cmap, "shape bias", texts, rows, columns, bar=bar)
    ax.set(xlabel="texture", ylabel="shape")
    title = f"{result.observer}: shape / texture decisions, {result.num_images} images"
    ax.set_title(wrapped(title, 0.75 * room_of(ax)))
    return ax


def plot_confusion(
    result: ShapeBiasResult, *, ax: Axes | None = None, cmap: str = CELL_COLORS, bar: bool = True
) -> Axes:
    """Responses (columns) to each shape category (rows) in percent of its images, all images.

    Colours go by the square root from 0 to 100 %, so that rare answers are seen; numbers are written where they fit.

    Args:
        result: Of an observer.
        ax: To draw into.
        cmap: Of the colours.
        bar: With a colour bar of its own.
    """
    ax = axes_or_new(ax)
    table = result.confusion()
    if not table[NO_RESPONSE].any():  # networks always answer
        table = table.drop(columns=NO_RESPONSE)
    draw_counts(ax, table, cmap, bar=bar)
    ax.set(xlabel="response", ylabel="shape")
    title = f"{result.observer}: responses to {len(result.stimuli)} images"
    ax.set_title(wrapped(title, 0.75 * room_of(ax)))
    return ax


def plot_consistency(table: pd.DataFrame, reference: HumanReference, *, ax: Axes | None = None) -> Axes:
    """Error consistency of each network with every person (`consistency_table`), beside people with each other.

    Points are people, with 95 % intervals; the bar is their mean. The band spans the mean consistency of
    one person with the others, the dashed line is the mean over all pairs of people.

    Args:
        table: Of networks with people.
        reference: Of these people.
        ax: To draw into.
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
        draw_intervals(ax, y, own["low"], own["high"], horizontal=True, color=color, lw=0.5, alpha=0.6)
        ax.plot(own["kappa"], y, linestyle="none", marker=marker, markersize=3, color=color)
        mean = own["kappa"].mean()
        ax.plot([mean, mean], [index - 0.35, index + 0.35], color="black", lw=1.5)
    ax.axvline(0, color="0.5", lw=0.6)
    ax.set_yticks(range(len(names)), [wrapped(name, 0.4 * room_of(ax)) for name in names])
    ax.set(ylim=(len(names) - 0.4, -0.6))
    ax.set_xlabel(wrapped("error consistency with each person (kappa)", 0.6 * room_of(ax)))
    dot: dict[str, Any] = {"color": "0.3", "marker": "s", "markersize": 3}
    drawn = ", ".join(dict.fromkeys(table["cluster"]))
    handles = [
        Line2D([], [], lw=0.5, **dot, label=f"one person, 95 % interval ({drawn})"),
        Line2D([], [], color="black", lw=1.5, label="mean over people"),
        Patch(color=HUMAN_COLOR, alpha=0.15, lw=0, label="each person with the others, lowest to highest"),
        Line2D([], [], color=HUMAN_COLOR, linestyle="dashed", label="people with each other, mean"),
        Line2D([], [], color="0.5", lw=0.6, label="chance"),
    ]
    numbers = sorted(set(table["num_images"]))
    title = f"{' to '.join(map(str, dict.fromkeys((numbers[0], numbers[-1]))))} images, common to both"
    legend_below(ax, handles, title)
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
    for index, row in enumerate(known.to_dict("records")):
        x, y = row["texture_sensitivity"], row["shape_sensitivity"]
        color, marker = _look(index, False)
        ax.plot((row["texture_low"], row["texture_high"]), (y, y), color=color, lw=0.8)
        ax.plot((x, x), (row["shape_low"], row["shape_high"]), color=color, lw=0.8)
        style: dict[str, Any] = {"marker": marker, "markersize": 4, "color": color, "clip_on": False}
        ax.plot(x, y, linestyle="none", label=row["observer"], **style)
    ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    ax.set(xlabel="texture sensitivity (mean 1/rank)", ylabel="shape sensitivity (mean 1/rank)")
    ax.set_title(title, pad=16)
    ax.text(1.0, 1.06, "S / (S + T)", color="0.4", fontsize=6, ha="center", va="bottom")
    legend_below(ax)
    return ax


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


def _several(results: ShapeBiasResult | Sequence[ShapeBiasResult]) -> Sequence[ShapeBiasResult]:
    return [results] if isinstance(results, ShapeBiasResult) else results


def _complement(share: Any) -> Any:
    return 1 - share
