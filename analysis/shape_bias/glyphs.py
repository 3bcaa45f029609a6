"""A small picture of each category, drawn from polygons and circles in the unit square, y up."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.offsetbox import AnnotationBbox, DrawingArea
from matplotlib.patches import Circle, Ellipse, Patch, Polygon

Points = Sequence[tuple[float, float]]
_PAPER = "white"


def category_glyph(category: str, size: float = 14.0, color: str = "0.15") -> DrawingArea:
    """The picture of a category, `size` points wide; for a category without one, its first letter's place is empty."""
    area = DrawingArea(size, size, clip=False)
    for shape in _SHAPES.get(category, ()):
        area.add_artist(_patch(shape, size, color))
    return area


def add_glyph(ax: Axes, category: str, y: float, *, size: float = 14.0, left: float = 4.0) -> None:
    """Draw the picture `left` points left of the axes, at data height `y`."""
    box = AnnotationBbox(
        category_glyph(category, size),
        (0.0, y),
        xybox=(-left, 0.0),
        xycoords=("axes fraction", "data"),
        boxcoords="offset points",
        box_alignment=(1.0, 0.5),
        frameon=False,
        pad=0,
        annotation_clip=False,
    )
    ax.add_artist(box)


def has_glyph(category: str) -> bool:
    return category in _SHAPES


Shape = tuple[str, tuple[float, ...] | Points, bool]


def _fill(*points: tuple[float, float]) -> Shape:
    return ("polygon", points, True)


def _cut(*points: tuple[float, float]) -> Shape:
    return ("polygon", points, False)


def _disc(x: float, y: float, radius: float) -> Shape:
    return ("circle", (x, y, radius), True)


def _hole(x: float, y: float, radius: float) -> Shape:
    return ("circle", (x, y, radius), False)


def _oval(x: float, y: float, width: float, height: float, angle: float = 0.0) -> Shape:
    return ("ellipse", (x, y, width, height, angle), True)


def _bar(x0: float, y0: float, x1: float, y1: float, width: float = 0.07) -> Shape:
    """A thick line."""
    along = np.array([x1 - x0, y1 - y0])
    across = np.array([-along[1], along[0]]) / np.hypot(*along) * width / 2
    ends = [np.array([x0, y0]) + across, np.array([x1, y1]) + across]
    ends += [np.array([x1, y1]) - across, np.array([x0, y0]) - across]
    return ("polygon", [(float(x), float(y)) for x, y in ends], True)


def _box(x0: float, y0: float, x1: float, y1: float, *, filled: bool = True) -> Shape:
    return ("polygon", [(x0, y0), (x1, y0), (x1, y1), (x0, y1)], filled)


def _patch(shape: Shape, size: float, color: str) -> Patch:
    kind, numbers, filled = shape
    style: dict[str, Any] = {"facecolor": color if filled else _PAPER, "edgecolor": "none", "linewidth": 0}
    if kind == "polygon":
        return Polygon(np.array(numbers) * size, closed=True, **style)
    values = np.array(numbers, dtype=float)
    if kind == "circle":
        return Circle((values[0] * size, values[1] * size), values[2] * size, **style)
    return Ellipse(
        (values[0] * size, values[1] * size),
        values[2] * size,
        values[3] * size,
        angle=float(values[4]),
        **style,
    )


_SHAPES: dict[str, tuple[Shape, ...]] = {
    "airplane": (
        _oval(0.5, 0.5, 0.14, 0.94),
        _fill((0.5, 0.66), (0.98, 0.38), (0.98, 0.28), (0.5, 0.42), (0.02, 0.28), (0.02, 0.38)),
        _fill((0.5, 0.2), (0.7, 0.08), (0.7, 0.02), (0.5, 0.08), (0.3, 0.02), (0.3, 0.08)),
    ),
    "bear": (
        _disc(0.22, 0.8, 0.16),
        _disc(0.78, 0.8, 0.16),
        _disc(0.5, 0.47, 0.42),
        _hole(0.35, 0.58, 0.055),
        _hole(0.65, 0.58, 0.055),
        ("ellipse", (0.5, 0.32, 0.36, 0.26, 0.0), False),
        _oval(0.5, 0.37, 0.15, 0.1),
    ),
    "bicycle": (
        _disc(0.22, 0.3, 0.22),
        _hole(0.22, 0.3, 0.155),
        _disc(0.78, 0.3, 0.22),
        _hole(0.78, 0.3, 0.155),
        _bar(0.22, 0.3, 0.38, 0.66),
        _bar(0.38, 0.66, 0.5, 0.3),
        _bar(0.22, 0.3, 0.5, 0.3),
        _bar(0.38, 0.62, 0.7, 0.62),
        _bar(0.5, 0.3, 0.7, 0.62),
        _bar(0.78, 0.3, 0.67, 0.78),
        _bar(0.67, 0.78, 0.82, 0.8),
        _bar(0.29, 0.7, 0.47, 0.7, 0.09),
    ),
    "bird": (
        _oval(0.47, 0.46, 0.62, 0.42, 18),
        _disc(0.76, 0.7, 0.17),
        _fill((0.9, 0.75), (1.0, 0.68), (0.9, 0.63)),
        _fill((0.24, 0.46), (0.0, 0.24), (0.08, 0.16), (0.36, 0.32)),
        _bar(0.46, 0.28, 0.46, 0.04, 0.05),
        _bar(0.58, 0.3, 0.58, 0.04, 0.05),
        _hole(0.79, 0.74, 0.035),
    ),
    "boat": (
        _fill((0.04, 0.3), (0.96, 0.3), (0.78, 0.06), (0.2, 0.06)),
        _bar(0.48, 0.28, 0.48, 0.98, 0.06),
        _fill((0.54, 0.94), (0.54, 0.38), (0.9, 0.38)),
        _fill((0.42, 0.82), (0.42, 0.38), (0.14, 0.38)),
    ),
    "bottle": (
        _box(0.3, 0.04, 0.7, 0.52),
        _fill((0.3, 0.52), (0.7, 0.52), (0.58, 0.72), (0.42, 0.72)),
        _box(0.42, 0.7, 0.58, 0.9),
        _box(0.39, 0.9, 0.61, 0.98),
        _box(0.3, 0.2, 0.7, 0.4, filled=False),
        _box(0.3, 0.24, 0.7, 0.36),
    ),
    "car": (
        _box(0.02, 0.26, 0.98, 0.52),
        _fill((0.14, 0.5), (0.28, 0.78), (0.7, 0.78), (0.86, 0.5)),
        _cut((0.24, 0.52), (0.33, 0.71), (0.47, 0.71), (0.47, 0.52)),
        _cut((0.53, 0.52), (0.53, 0.71), (0.66, 0.71), (0.75, 0.52)),
        _hole(0.25, 0.25, 0.17),
        _hole(0.75, 0.25, 0.17),
        _disc(0.25, 0.25, 0.13),
        _disc(0.75, 0.25, 0.13),
    ),
    "cat": (
        _disc(0.5, 0.42, 0.38),
        _fill((0.14, 0.48), (0.14, 0.98), (0.48, 0.74)),
        _fill((0.86, 0.48), (0.86, 0.98), (0.52, 0.74)),
        _hole(0.36, 0.5, 0.06),
        _hole(0.64, 0.5, 0.06),
        _cut((0.44, 0.36), (0.56, 0.36), (0.5, 0.28)),
        ("polygon", [(0.0, 0.34), (0.3, 0.31), (0.3, 0.28), (0.0, 0.3)], True),
        ("polygon", [(1.0, 0.34), (0.7, 0.31), (0.7, 0.28), (1.0, 0.3)], True),
    ),
    "chair": (
        _box(0.2, 0.4, 0.82, 0.52),
        _box(0.2, 0.04, 0.31, 1.0),
        _box(0.71, 0.04, 0.82, 0.5),
        _box(0.2, 0.84, 0.42, 1.0),
    ),
    "clock": (
        _disc(0.5, 0.5, 0.47),
        _hole(0.5, 0.5, 0.38),
        _bar(0.5, 0.47, 0.5, 0.8, 0.07),
        _bar(0.47, 0.5, 0.73, 0.5, 0.07),
        _disc(0.5, 0.5, 0.06),
    ),
    "dog": (
        _oval(0.5, 0.5, 0.56, 0.74),
        _oval(0.16, 0.6, 0.22, 0.56, -14),
        _oval(0.84, 0.6, 0.22, 0.56, 14),
        ("ellipse", (0.5, 0.3, 0.34, 0.32, 0.0), False),
        _oval(0.5, 0.38, 0.18, 0.12),
        _bar(0.5, 0.36, 0.5, 0.22, 0.04),
        _hole(0.38, 0.62, 0.055),
        _hole(0.62, 0.62, 0.055),
    ),
    "elephant": (
        _oval(0.42, 0.54, 0.68, 0.5),
        _disc(0.76, 0.62, 0.22),
        _fill((0.82, 0.7), (0.98, 0.56), (0.98, 0.06), (0.88, 0.06), (0.88, 0.44), (0.74, 0.46)),
        _box(0.14, 0.04, 0.3, 0.5),
        _box(0.5, 0.04, 0.66, 0.5),
        _bar(0.1, 0.56, 0.02, 0.3, 0.04),
        ("ellipse", (0.63, 0.6, 0.2, 0.32, 0.0), False),
        _oval(0.62, 0.6, 0.15, 0.27),
        _hole(0.83, 0.68, 0.03),
    ),
    "keyboard": (
        _box(0.02, 0.2, 0.98, 0.8),
        *(
            _box(0.09 + 0.17 * column, 0.6 - 0.15 * row, 0.2 + 0.17 * column, 0.7 - 0.15 * row, filled=False)
            for row in range(2)
            for column in range(5)
        ),
        _box(0.26, 0.28, 0.74, 0.38, filled=False),
    ),
    "knife": (
        _fill((0.36, 0.36), (0.5, 0.36), (0.72, 0.98), (0.6, 0.9), (0.4, 0.56)),
        _fill((0.34, 0.32), (0.48, 0.32), (0.4, 0.02), (0.26, 0.02)),
    ),
    "oven": (
        _box(0.1, 0.04, 0.9, 0.96),
        _box(0.2, 0.14, 0.8, 0.58, filled=False),
        _box(0.26, 0.2, 0.74, 0.46),
        _hole(0.26, 0.8, 0.06),
        _hole(0.42, 0.8, 0.06),
        _hole(0.58, 0.8, 0.06),
        _hole(0.74, 0.8, 0.06),
        _box(0.2, 0.63, 0.8, 0.68, filled=False),
    ),
    "truck": (
        _box(0.02, 0.3, 0.62, 0.84),
        _fill((0.66, 0.3), (0.66, 0.66), (0.84, 0.66), (0.98, 0.48), (0.98, 0.3)),
        _cut((0.71, 0.48), (0.71, 0.6), (0.81, 0.6), (0.9, 0.48)),
        _hole(0.22, 0.26, 0.16),
        _hole(0.78, 0.26, 0.16),
        _disc(0.22, 0.26, 0.12),
        _disc(0.78, 0.26, 0.12),
    ),
}
