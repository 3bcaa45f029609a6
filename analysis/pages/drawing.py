"""Figures as files and, in the colours of the page, as SVG in it."""

import io
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib as mpl
from markupsafe import Markup, escape
from matplotlib.figure import Figure

from analysis.figures import OKABE_ITO, paper_style, plain_text, save_figure

_INK = "#010203"
"""Black in files, to the eye; in a page it stands for the page's own text colour."""
_SMALLEST = 9.5
"""Pixels: a figure is not shown so small that its smallest text would be less."""
_FONT = re.compile(r"font(?:-size)?: (?:[a-z0-9]+ )*([\d.]+)px")
_PALE = re.compile(r"stroke: #([b-e][0-9a-f])\1\1\b")
"""Lines behind the data, which would be bright on a dark page."""
_COLUMN = 470
"""Pixels: a figure that cannot be narrower has a row of its own."""


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A figure of a page.

    Args:
        name: Of its files.
        caption: Below it.
        draw: Makes it, under the style that holds.
    """

    name: str
    caption: str
    draw: Callable[[], Figure]

    @cached_property
    def figure(self) -> Figure:
        """Drawn once, for files and page."""
        with _ink():
            figure = self.draw()
        plain_text(figure)
        return figure


@contextmanager
def _ink() -> Iterator[None]:
    names = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    style: dict[Any, Any] = dict.fromkeys(names, _INK)
    with paper_style(), mpl.rc_context(style):
        yield


def save_drawings(
    drawings: Sequence[Drawing],
    place: Callable[[str], AbstractContextManager[Path]],
    progress: Callable[..., None] | None = None,
) -> None:
    """As PNG and PDF, at the paths that `place` gives for the names.

    Args:
        drawings: The figures.
        place: Context of the path of a file.
        progress: Called with the number drawn, that of all and the name of the next.
    """
    for number, drawing in enumerate(drawings):
        if progress is not None:
            progress(number, len(drawings), drawing.name)
        with _ink():
            save_figure(drawing.figure, drawing.name, place)
    if progress is not None and drawings:
        progress(len(drawings), len(drawings))


def shown_drawings(drawings: Sequence[Drawing]) -> list[dict[str, Any]]:
    """SVG and caption of each, for a template, and whether it takes the whole width."""
    found = []
    for drawing in drawings:
        svg, least = _inline_svg(drawing)
        found.append({"svg": svg, "caption": drawing.caption, "wide": least > _COLUMN})
    return found


def _inline_svg(drawing: Drawing) -> tuple[Markup, float]:
    """The figure as an SVG element in the colours of the page, its text as text, and its smallest width in pixels."""
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": drawing.name}
    buffer = io.StringIO()
    with _ink(), mpl.rc_context(style):
        drawing.figure.savefig(buffer, format="svg", metadata={"Date": None}, transparent=True, dpi=130)
    svg = buffer.getvalue()
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r"<[^>]+>", lambda tag: _in_page(tag[0], drawing.name), svg)
    width = float(re.search(r'width="([\d.]+)pt"', svg)[1])  # type: ignore[index]
    smallest = min([float(size) for size in _FONT.findall(svg)], default=_SMALLEST)
    least = width * _SMALLEST / smallest
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg))
    head = f'<svg role="img" style="min-width: {least:.0f}px; max-width: {max(1.7 * width, least):.0f}px"'
    svg = svg.replace("<svg", head, 1)
    end = svg.index(">") + 1
    return Markup(f"{svg[:end]}<title>{escape(drawing.caption)}</title>{svg[end:]}"), least


def _in_page(tag: str, name: str) -> str:
    """A tag with the page's colours; identifiers are unique in a figure, and those of glyphs would meet in the page."""
    for color in (_INK, "#000000"):
        tag = tag.replace(color, "currentColor")
    tag = tag.replace(OKABE_ITO[0].lower(), "var(--blue)")
    tag = tag.replace("stroke: #ffffff", "stroke: var(--paper)")
    tag = _PALE.sub("stroke: var(--line)", tag)
    return re.sub(r'( id="|href="#|url\(#)', rf"\g<1>{name}-", tag)
