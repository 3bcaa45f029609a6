"""The map of a unit, and its squares in the picture that the network gets."""

from itertools import pairwise

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from analysis.figures import OKABE_ITO, new_axes
from analysis.receptive_field.plots import plot_erf
from analysis.receptive_field.result import ErfResult

_SIDE = 512
"""Pixels: small pictures are enlarged to some such side, each pixel to a square."""
_THRESHOLDS = (0.5, 0.99)
_LIGHT, _DARK = "#ffffff", "#303030"
_DOT = OKABE_ITO[1]
_RADIUS, _DASH = 7, 5
"""Pixels: of the dot, and length of a dash."""


def plot_unit(result: ErfResult) -> Figure:
    """The map with its squares, and a dot at the unit's own centre."""
    ax = plot_erf(result, ax=new_axes(3.4, 3.4), thresholds=_THRESHOLDS)
    row, column = result.center
    ax.plot(column, row, "o", color=_DOT, markersize=6, markeredgecolor=_LIGHT, clip_on=False)
    return ax.get_figure(root=True)  # type: ignore[return-value]


def enlargement(size: tuple[int, int]) -> int:
    """How many pixels of a shown picture, in a row, are one of a picture of this height and width."""
    return max(1, _SIDE // max(size))


def enlarged(pixels: NDArray[np.uint8]) -> Image.Image:
    """A picture by its `enlargement`."""
    factor = enlargement((pixels.shape[0], pixels.shape[1]))
    return Image.fromarray(np.ascontiguousarray(pixels.repeat(factor, 0).repeat(factor, 1)))


def marked_picture(pixels: NDArray[np.uint8], result: ErfResult) -> Image.Image:
    """A picture, enlarged, with the squares of a map (solid: half of it, dashed: 99 %) and the unit's own centre."""
    factor, picture = enlargement(result.map_size), enlarged(pixels)
    draw = ImageDraw.Draw(picture)
    lines: list[tuple[list[tuple[float, float]], int]] = []
    for threshold, dash in zip(_THRESHOLDS, (0, _DASH), strict=True):
        top, left, height, width = result.square(threshold)
        if np.isnan(top):  # of a map that is zero everywhere
            continue
        edges = [factor * (top + 0.5), factor * (left + 0.5)]
        edges += [edges[0] + factor * height, edges[1] + factor * width]
        above, before, below, after = np.clip(edges, 1, [side - 2 for side in picture.size[::-1]] * 2)
        corners = [(before, above), (after, above), (after, below), (before, below), (before, above)]
        lines += [(list(pair), dash) for pair in pairwise(corners)]
    for color, wide in ((_DARK, 4), (_LIGHT, 2)):
        for (start, end), dash in lines:
            _draw_line(draw, start, end, dash if color == _LIGHT else 0, fill=color, width=wide)
    row, column = (factor * (at + 0.5) for at in result.center)
    draw.circle((column, row), _RADIUS, fill=_DOT, outline=_LIGHT, width=2)
    return picture


def _draw_line(
    draw: ImageDraw.ImageDraw, start: tuple[float, float], end: tuple[float, float], dash: int, *, fill: str, width: int
) -> None:
    length = abs(end[0] - start[0]) + abs(end[1] - start[1])  # along an axis
    steps = np.arange(0, length, 2 * dash) if dash else [0.0]
    for step in steps if length else ():
        parts = (step / length, min(1.0, (step + dash) / length if dash else 1.0))
        ends = [(a * (end[0] - start[0]) + start[0], a * (end[1] - start[1]) + start[1]) for a in parts]
        draw.line(ends, fill=fill, width=width)
