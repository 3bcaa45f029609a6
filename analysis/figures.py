"""What all figures have in common: palette, style, legends, intervals, numbers in cells, saving."""

import difflib
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib import font_manager
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import Normalize, PowerNorm, to_rgb
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.transforms import ScaledTranslation, blended_transform_factory
from numpy.typing import NDArray

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.5, 1.5, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
COLUMN = 3.4
"""Inches: width of a column of a paper."""
SMALLEST = 6.0
"""Points: of any text."""
POINTS = 72
"""In an inch."""
CELL_COLORS = "cividis"
"""Colour map of maps of cells."""
_CELL = 8.0
"""Points: of the side of a cell, below which its row and column are not named."""
_BAR = 0.75
"""Height of a colour bar in parts of that of a map."""
_TICKS = (0, 5, 20, 50, 100)
"""On a bar of per cent by their square root."""
_LETTER = 0.58
"""Mean width of a letter in parts of the size of its font, a little more than those of most fonts."""
_KEY, _MARGIN, _BELOW, _LINE = 34, 20, 22, 1.25
"""Points of the key of a legend, beside a legend, and from the axes to the label of an axis; lines in parts of the size
of their font."""
_TWO_LINES = 0.3
"""Inches: of the height of a legend."""
_ALIKE = {
    "times": ("STIXGeneral", "Nimbus Roman", "Liberation Serif", "TeX Gyre Termes"),
    "helvetica": ("Nimbus Sans", "Liberation Sans", "TeX Gyre Heros", "DejaVu Sans"),
    "arial": ("Liberation Sans", "Nimbus Sans", "TeX Gyre Heros", "DejaVu Sans"),
    "computer modern": ("cmr10",),
}
"""Fonts that stand for others of these families."""


@contextmanager
def paper_style(*, font: str | None = None) -> Iterator[None]:
    """Text legible at column width and fonts embedded in files, inside the block only.

    Args:
        font: Name of an installed font, such as "STIXGeneral".

    Raises:
        ValueError: If it is not installed; the message names near ones.
    """
    style: dict[Any, Any] = {
        "font.size": 8,
        "axes.titlesize": 8,
        "legend.fontsize": 7,
        "legend.title_fontsize": 7,
        "pdf.fonttype": 42,
        "svg.fonttype": "path",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "savefig.dpi": 200,
        "text.usetex": False,  # a matplotlibrc in the current folder could start LaTeX, with lines of its own
    }
    if font is not None:
        _check_font(font)
        style |= {"font.family": [font]}
    with mpl.rc_context(style):
        yield


def _check_font(font: str) -> None:
    installed = sorted({entry.name for entry in font_manager.fontManager.ttflist})
    if font in installed:
        return
    lower = {name.lower(): name for name in installed}
    like = [name for family, own in _ALIKE.items() if font.lower().startswith(family) for name in own]
    near = [name for name in like if name in installed]
    near += [name for key, name in lower.items() if font.lower() in key or key in font.lower()]
    near += [lower[key] for key in difflib.get_close_matches(font.lower(), lower, n=3, cutoff=0.6)]
    meant = difflib.get_close_matches(font.lower().split(" ")[0], _ALIKE, n=1, cutoff=0.6)
    near += [name for family in meant for name in _ALIKE[family] if name in installed]
    names = list(dict.fromkeys(near))[:5] or installed[:10]
    what = "near ones are" if near else "expected one of those that are, such as"
    raise ValueError(f"font={font!r}: is not installed here; {what} {', '.join(names)}")


def axes_or_new(ax: Axes | None) -> Axes:
    """`ax`, or the only axes of a new figure of column width."""
    return new_axes() if ax is None else ax


def new_axes(width: float = COLUMN, height: float = 3.0) -> Axes:
    """The only axes of a new figure, in inches."""
    return Figure(figsize=(width, height), layout="constrained").add_subplot()


def room_of(ax: Axes) -> float:
    """Points: the width that axes have with their labels."""
    figure: Any = ax.get_figure(root=True)
    place = ax.get_subplotspec()
    columns = 1 if place is None else place.get_gridspec().ncols
    return float(POINTS * figure.get_figwidth() / columns)


def wrapped(text: str, room: float, size: float = 8) -> str:
    """Lines no longer than so many points; a name is broken between letters only where it is longer itself."""
    return textwrap.fill(text, max(8, int(room / (_LETTER * size))), break_on_hyphens=False)


def legend_below(ax: Axes, handles: Sequence[Any] | None = None, title: str = "") -> None:
    """A legend under the label of the horizontal axis, in as many columns as there is room for.

    Labels are those that have been given to what is drawn, or of `handles`.
    """
    handles = list(ax.get_legend_handles_labels()[0] if handles is None else handles)
    size = font_manager.FontProperties(size=mpl.rcParams["legend.fontsize"]).get_size_in_points()
    room = room_of(ax) - _MARGIN
    labels = [wrapped(str(handle.get_label()), room - _KEY, size) for handle in handles]
    lines = [line for label in labels for line in label.split("\n")]
    entry = _KEY + _LETTER * size * max(map(len, lines), default=1)
    under = ax.get_xlabel()
    height = _BELOW + _LINE * float(ax.xaxis.label.get_fontsize()) * (1 + under.count("\n") if under else 0)
    figure: Any = ax.get_figure(root=True)
    place = ax.get_subplotspec()
    alone = place is not None and place.get_gridspec().get_geometry() == (1, 1)
    down = ax.transAxes + ScaledTranslation(0, -height / POINTS, figure.dpi_scale_trans)
    ax.legend(
        handles=handles,
        labels=labels,
        title=wrapped(title, room, size) or None,
        title_fontsize=size,
        loc="upper center",
        bbox_to_anchor=(0.5, 0.0),
        bbox_transform=blended_transform_factory(figure.transFigure if alone else ax.transAxes, down),
        ncols=max(1, min(len(handles), int(room // entry))),
        frameon=False,
        borderaxespad=0.2,
    )


def made_taller(ax: Axes) -> Figure:
    """The figure of these axes alone, taller by what its legend takes beyond two lines."""
    figure: Any = ax.get_figure(root=True)
    legend = ax.get_legend()
    if legend is not None:
        plain_text(figure)
        figure.draw_without_rendering()
        more = legend.get_window_extent().height / figure.dpi - _TWO_LINES
        figure.set_figheight(figure.get_figheight() + max(more, 0.0))
    return figure  # type: ignore[no-any-return]


class Intervals(LineCollection):
    """Lines from one end of an interval to the other; an end that the axes do not reach is an arrow at their limit."""

    def cut_ends(self) -> list[tuple[float, float, str]]:
        """Place, in data, and marker of each arrow."""
        if self.axes is None:
            return []
        found = []
        for segment in map(np.asarray, self.get_segments()):
            along = int(segment[0, 0] == segment[-1, 0])  # the axis that it lies along
            limits = (self.axes.get_xlim, self.axes.get_ylim)[along]()
            markers = ("<>", "v^")[along][:: 1 if limits[0] < limits[1] else -1]
            at = segment.mean(0)
            for end in segment[[0, -1], along]:
                at[along] = np.clip(end, min(limits), max(limits))
                if at[along] != end:
                    found.append((float(at[0]), float(at[1]), markers[int(end > at[along])]))
        return found

    def draw(self, renderer: Any) -> None:
        """With the arrows."""
        super().draw(renderer)
        if not self.get_visible() or self.axes is None:
            return
        color: Any = self.get_colors()[0]
        for x, y, marker in self.cut_ends():
            arrow = Line2D([x], [y], marker=marker, markersize=4, color=color, clip_on=False)
            arrow.set_transform(self.axes.transData)
            arrow.set_figure(self.get_figure())  # type: ignore[arg-type]
            arrow.draw(renderer)


def draw_intervals(ax: Axes, at: Any, low: Any, high: Any, *, horizontal: bool = False, **style: Any) -> Intervals:
    """Intervals at places along the other axis; NaN is none."""
    at, low, high = np.broadcast_arrays(*(np.atleast_1d(np.asarray(value, float)) for value in (at, low, high)))
    known = np.isfinite(low) & np.isfinite(high)
    pairs = zip(at[known], low[known], high[known], strict=True)
    segments = [[(a, y), (b, y)] if horizontal else [(y, a), (y, b)] for y, a, b in pairs]
    drawn = Intervals(segments, **style)
    ax.add_collection(drawn)
    ax.autoscale_view()
    return drawn


class CellText(Text):
    """A number in a cell of a map, drawn where the longest number of the map fits into its cells.

    Args:
        longest: The longest number.
    """

    def __init__(self, x: float, y: float, text: str, longest: str, **style: Any) -> None:
        super().__init__(x, y, text, ha="center", va="center", fontsize=SMALLEST, **style)
        self._longest = longest
        self.set_in_layout(False)

    def fits(self, renderer: Any) -> bool:
        """Whether there is room now."""
        if self.axes is None:
            return False
        width, height, _ = renderer.get_text_width_height_descent(self._longest, self.get_fontproperties(), False)
        (left, bottom), (right, top) = self.axes.transData.transform([(0, 0), (1, 1)])
        return bool(width < abs(right - left) and height < abs(top - bottom))

    def draw(self, renderer: Any) -> None:
        """Nothing where there is no room."""
        if self.fits(renderer):
            super().draw(renderer)


def write_in_cells(ax: Axes, texts: Sequence[tuple[int, int, str, str]]) -> None:
    """Numbers in the cells of a map: column, row, text and colour of each."""
    longest = max((text for _, _, text, _ in texts), key=len, default="")
    for x, y, text, color in texts:
        ax.add_artist(CellText(x, y, text, longest, color=color))


def draw_cells(
    ax: Axes,
    values: NDArray[np.float64],
    norm: Normalize,
    cmap: str,
    label: str,
    texts: Sequence[tuple[int, int, str]],
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    bar: bool = True,
) -> None:
    """Cells with a colour bar or without, with names and numbers as far as there is room."""
    image = ax.imshow(values, norm=norm, cmap=cmap, label=label)
    inks = ["black" if np.isnan(values[y, x]) else ink_on(image.to_rgba(values[y, x])) for x, y, _ in texts]
    write_in_cells(ax, [(*text, ink) for text, ink in zip(texts, inks, strict=True)])
    if bar:
        _draw_bar(image, [ax])
    names = SMALLEST * 0.6 * max(map(len, rows), default=0)
    cell = max(0.0, room_of(ax) - names - 70) / max(values.shape)
    size = min(8.0, max(SMALLEST, 0.85 * cell))
    for axis, own in ((ax.xaxis, columns), (ax.yaxis, rows)):
        if cell < _CELL:
            axis.set_ticks([])
        else:
            axis.set_ticks(range(len(own)), list(own), fontsize=size)
    ax.tick_params(axis="x", labelrotation=90)


def _draw_bar(image: AxesImage, axes: Sequence[Axes], rows: int = 1) -> None:
    """The colour bar of maps on one scale, on the right of them all and as high as one in the first row."""
    figure: Any = axes[0].get_figure(root=True)
    shrink = _BAR / rows
    height = (1 - (1 + _BAR) / 2 / rows) / (1 - shrink)  # a title of the next row may reach to the bar's column
    ticks = _TICKS if isinstance(image.norm, PowerNorm) else None
    bar = {"shrink": shrink, "anchor": (0.0, height), "fraction": 0.06}
    figure.colorbar(image, ax=axes, label=image.get_label(), ticks=ticks, **bar)


def draw_counts(ax: Axes, table: pd.DataFrame, cmap: str, *, bar: bool = True) -> None:
    """How often each answer (column) was given to each class (row), in percent of the images of the class.

    Colours go by the square root, so that rare answers are seen, and always from 0 to 100 %, so that all such maps can
    be compared.
    """
    percent = 100 * table.to_numpy(dtype=float) / np.maximum(table.sum(axis=1).to_numpy(), 1)[:, None]
    texts = [(int(x), int(y), f"{value:.0f}") for (y, x), value in np.ndenumerate(percent) if value >= 0.5]
    norm = PowerNorm(0.5, 0, 100)
    names = [[str(name) for name in own] for own in (table.index, table.columns)]
    draw_cells(ax, percent, norm, cmap, "% of a row's images, square-root scale", texts, *names, bar=bar)


def cells_figure(plot: Any, results: Sequence[Any], *, width: float = 5.2, **options: Any) -> Figure:
    """A figure with a map of cells for each result, as many in a row as are no narrower than 2.8 inches.

    Args:
        plot: Draws one, always on the same scale: they share a colour bar.
        results: To be drawn.
        width: In inches.
        options: Of `plot`.
    """
    columns = min(len(results), max(1, int(width / 2.8)))
    rows = -(-len(results) // columns)
    figure = Figure(figsize=(width, rows * (0.85 * width / columns + 0.3)), layout="compressed")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for result, ax in zip(results, axes, strict=False):
        plot(result, ax=ax, bar=False, **options)
    for ax in axes[len(results) :]:
        ax.set_visible(False)
    _draw_bar(axes[0].get_images()[0], axes, rows)
    return figure


def ink_on(color: Any) -> str:
    """Black or white, whichever is told better from a colour."""
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in to_rgb(color)]
    luminance = float(np.dot(linear, (0.2126, 0.7152, 0.0722)))
    return "black" if luminance > 0.179 else "white"


def plain_text(figure: Figure) -> None:
    """Let a dollar sign in a user's name be one."""
    for text in figure.findobj(Text):
        if "$" in text.get_text() and "\\mathdefault" not in text.get_text():  # but powers on an axis
            text.set_parse_math(False)


def save_figure(figure: Figure, name: str, place: Callable[[str], AbstractContextManager[Path]]) -> None:
    """As PNG and PDF, at the paths that `place` gives for the two names."""
    plain_text(figure)
    for suffix in ("png", "pdf"):
        content = BytesIO()  # on a disk that is full, the writer of PDFs fails in its own way
        figure.savefig(content, format=suffix)
        figure.set_layout_engine("none")  # the others keep what the first was laid out to
        with place(f"{name}.{suffix}") as path:
            path.write_bytes(content.getvalue())
