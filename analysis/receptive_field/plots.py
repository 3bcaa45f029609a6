"""Figures of receptive fields. Each function draws into the Axes it is given and sets nothing global."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

from analysis.figures import (
    DASHES,
    MARKERS,
    OKABE_ITO,
    POINTS,
    axes_or_new,
    legend_below,
    new_axes,
    plain_text,
    room_of,
    wrapped,
)
from analysis.models.layouts import LAST
from analysis.receptive_field.result import ErfResult
from analysis.runs.methods import fitting_digits

COLORS = "magma"
"""Colour map of the maps."""
_IN_A_ROW = 6
_DECADES = 4
_SQUARES: tuple[Any, ...] = ("solid", (0, (3, 2)), (0, (1, 1.5)))
_PANEL, _BAR, _LETTERS = 1.75, 0.7, 0.35
"""Inches: width of a map that is one of several, of their colour bar, and height of the text round a map."""
_NARROWEST = 1.3


def plot_erf(
    result: ErfResult,
    *,
    ax: Axes | None = None,
    thresholds: Sequence[float] = (0.5, 0.99),
    cmap: str = COLORS,
    centered: bool = False,
) -> Axes:
    """Heat map of the mean map relative to its maximum, four decades deep, with the area squares.

    The colour scale is the same for every result, so panels can be compared.

    Args:
        result: To be drawn.
        ax: To draw into.
        thresholds: Shares of the gradient; each square holds one, the first solid, the second dashed.
        cmap: A colour map of matplotlib.
        centered: Count pixels from the centre that squares are measured from, and have it in the middle.
    """
    ax = axes_or_new(ax)
    image = _draw_map(result, ax, thresholds, cmap, centered)
    if ax.figure is not None:
        ax.figure.colorbar(image, ax=ax, shrink=0.75, label="gradient / its maximum")
    signed = result.options.gradient_rule == "signed"
    words = "" if signed else "\n" + ", ".join(_area(result, threshold) for threshold in thresholds) + " of the area"
    from_unit = " from the unit" if centered else ""
    ax.set(xlabel=f"x{from_unit} (pixels)" + words, ylabel=f"y{from_unit} (pixels)")
    ax.set_title(wrapped(_labels([result])[0], 0.7 * room_of(ax)))
    if not signed:
        legend_below(ax, _square_keys(thresholds))
    return ax


def _draw_map(result: ErfResult, ax: Axes, thresholds: Sequence[float], cmap: str, centered: bool) -> AxesImage:
    height, width = result.map_size
    row, column = result.center if centered else (0.0, 0.0)
    magnitude = np.abs(result.mean_map)
    image = ax.imshow(
        np.maximum(magnitude / (magnitude.max() or 1.0), 10.0**-_DECADES),
        norm=LogNorm(10.0**-_DECADES, 1),
        cmap=cmap,
        interpolation="antialiased",
        extent=(-0.5 - column, width - 0.5 - column, height - 0.5 - row, -0.5 - row),
    )
    if result.options.gradient_rule != "signed":
        for threshold, dash in zip(thresholds, _SQUARES, strict=False):
            top, left, high, wide = result.square(threshold)
            if not np.isnan(top):  # of a map that is zero everywhere
                ax.add_patch(Rectangle((left - column, top - row), wide, high, fill=False, **_square_style(dash)))
    if centered:
        reach = [max(at + 0.5, side - 0.5 - at) for at, side in zip((column, row), (width, height), strict=True)]
        ax.set(xlim=(-reach[0], reach[0]), ylim=(reach[1], -reach[1]), facecolor="0.9")
    else:
        ax.set(xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
    return image


def _square_style(dash: Any) -> dict[str, Any]:
    """White with a dark edge, so that it is seen on pale and on dark maps."""
    return {
        "edgecolor": "white",
        "lw": 1.1,
        "linestyle": dash,
        "path_effects": [withStroke(linewidth=2.3, foreground="#303030")],
    }


def _square_keys(thresholds: Sequence[float]) -> list[Line2D]:
    keys = []
    for threshold, dash in zip(thresholds, _SQUARES, strict=False):
        style = _square_style(dash)
        style["color"] = style.pop("edgecolor")
        keys.append(Line2D([], [], **style, label=f"square with {100 * threshold:g} % of the gradient"))
    return keys


def plot_contribution(results: ErfResult | Sequence[ErfResult], *, ax: Axes | None = None) -> Axes:
    """Share of the gradient inside growing squares, against the side of a square of equal area."""
    ax = axes_or_new(ax)
    results = _several(results)
    for index, (result, label) in enumerate(zip(results, _labels(results), strict=True)):
        areas, shares = result.contribution_curve()
        ax.plot(100 * np.sqrt(areas), 100 * shares, **_line(index), label=label)
    ax.axhline(50, color="0.8", lw=0.6, zorder=0)
    ax.axhline(99, color="0.8", lw=0.6, zorder=0)
    ax.set(xlim=(0, 100), ylim=(0, 101))
    ax.set(xlabel="side of the square (% of the image's)", ylabel="share of the gradient (%)")
    legend_below(ax)  # curves may fill the axes
    return ax


def plot_radial(results: ErfResult | Sequence[ErfResult], *, ax: Axes | None = None) -> Axes:
    """Mean of the map at each distance from its centre, relative to the largest of them, four decades deep."""
    ax = axes_or_new(ax)
    results = _several(results)
    for index, (result, label) in enumerate(zip(results, _labels(results), strict=True)):
        radii, profile = result.radial_profile()
        ax.plot(radii, profile / (np.abs(profile).max() or 1.0), **_line(index), label=label)
    ax.set_xlim(left=0)
    ax.set_ylim(10.0**-_DECADES, 1.2)  # which a map of zeros does not tell
    ax.set_yscale("log")
    ax.set(xlabel="distance from the unit (pixels)", ylabel="gradient / maximum of its curve")
    legend_below(ax)
    return ax


def plot_growth(results: Sequence[ErfResult], *, ax: Axes | None = None) -> Axes:
    """Root mean square radius of the layers of one or several models, in the order given, the last feature map last."""
    ax = axes_or_new(ax)
    layers = sorted(dict.fromkeys(result.layer for result in results), key=lambda layer: layer == LAST)
    for index, model in enumerate(dict.fromkeys(result.model for result in results)):
        own = sorted((result for result in results if result.model == model), key=lambda own: layers.index(own.layer))
        places = [layers.index(result.layer) for result in own]
        radii = [result.rms_radius() for result in own]
        name = wrapped(model, room_of(ax) - 68)
        ax.plot(places, radii, label=name, marker=MARKERS[index % len(MARKERS)], **_line(index), clip_on=False)
    long = sum(map(len, layers)) > room_of(ax) / 7
    ax.set_xticks(range(len(layers)), layers, rotation=90 if long else 0)
    ax.set(xlabel="layer", ylabel="root mean square radius (pixels)")
    ax.set_ylim(bottom=0)
    ax.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1))  # above: names of layers may be long
    return ax


def curves_figure(plot: Any, results: Sequence[ErfResult], *, width: float = 3.4) -> Figure:
    """`plot_contribution` or `plot_radial` in a figure with room for its legend."""
    lines = sum(1 + wrapped(label, POINTS * width - 68, 7).count("\n") for label in _labels(results))
    ax = new_axes(width, 2.6 + 0.14 * lines)
    plot(results, ax=ax)
    return ax.get_figure(root=True)  # type: ignore[return-value]


def erf_figure(
    results: Sequence[ErfResult],
    *,
    titles: Sequence[str] | None = None,
    thresholds: Sequence[float] = (0.5, 0.99),
    width: float | None = None,
    cmap: str = COLORS,
    centered: bool = False,
) -> Figure:
    """Heat maps side by side on one scale, each relative to its maximum, with the area squares.

    Args:
        results: One for each map.
        titles: Above the maps; by default model and layer.
        thresholds: See `plot_erf`.
        width: Of the figure in inches; by default what up to six maps in a row need.
        cmap: See `plot_erf`.
        centered: See `plot_erf`.
    """
    if width is None:
        width = _PANEL * min(len(results), _IN_A_ROW) + _BAR
    columns = min(len(results), _IN_A_ROW, max(1, int((width - _BAR) // _NARROWEST)))
    rows = -(-len(results) // columns)
    room = (width - _BAR) / columns
    names = [wrapped(name, POINTS * room - 12) for name in titles or _labels(results)]
    shape = max(result.map_size[0] / result.map_size[1] for result in results)
    lines = len(thresholds) + max(name.count("\n") + 1 for name in names)
    height = rows * ((room - 0.25) * shape + 0.14 * lines + _LETTERS) + 0.4
    figure = Figure(figsize=(width, height), layout="compressed")
    axes = figure.subplots(rows, columns, squeeze=False)
    image: Any = None
    for index, (result, name, ax) in enumerate(zip(results, names, axes.flat, strict=False)):
        image = _draw_map(result, ax, thresholds, cmap, centered)
        ax.set_title(name)
        signed = result.options.gradient_rule == "signed"
        ax.set_xlabel("" if signed else "\n".join(_area(result, threshold) for threshold in thresholds))
        ax.xaxis.set_major_locator(MaxNLocator(2, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(3, integer=True))
        if index % columns and len({other.map_size for other in results}) == 1:
            ax.tick_params(labelleft=False)
    for ax in axes.flat[len(results) :]:
        ax.set_visible(False)
    from_unit = " from the unit" if centered else ""
    figure.supylabel(f"pixels{from_unit}", fontsize=8)
    figure.colorbar(image, ax=axes, shrink=0.75 if rows == 1 else 0.5, label="gradient / its maximum")
    keys = _square_keys(thresholds)
    figure.legend(handles=keys, loc="outside lower center", ncols=1 if width < 4.5 else len(keys), frameon=False)
    plain_text(figure)
    for _ in range(2):  # the height that maps of this width do not take
        figure.draw_without_rendering()
        figure.set_figheight(min(figure.get_figheight(), figure.get_tightbbox().height + 0.05))
    return figure


def erf_row(results: Sequence[ErfResult], titles: Sequence[str], *, threshold: float = 0.5) -> Figure:
    """`erf_figure` with titles and one square."""
    return erf_figure(results, titles=titles, thresholds=(threshold,))


def _several(results: ErfResult | Sequence[ErfResult]) -> Sequence[ErfResult]:
    return [results] if isinstance(results, ErfResult) else results


def _line(index: int) -> dict[str, Any]:
    return {"color": OKABE_ITO[index % len(OKABE_ITO)], "linestyle": DASHES[index % len(DASHES)]}


def _labels(results: Sequence[ErfResult]) -> list[str]:
    """The networks, with their layers where another than the last feature map is among them."""
    if all(result.layer == LAST for result in results):
        return [result.model for result in results]
    return [f"{result.model}, {result.layer}" for result in results]


def _area(result: ErfResult, threshold: float) -> str:
    area = result.area_ratio(threshold)
    share = "an undefined part" if np.isnan(area) else f"{100 * area:.{fitting_digits(100 * area)}f} %"
    return f"{100 * threshold:g} % in {share}"
