"""What all figures have in common: palette, style, saving."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES = ("solid", (0, (5, 1.5)), (0, (1.5, 1)), (0, (5, 1.5, 1.5, 1.5)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


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
        "text.usetex": False,  # a matplotlibrc in the current folder could start LaTeX, with lines of its own
    }
    with mpl.rc_context(style):
        yield


def axes_or_new(ax: Axes | None) -> Axes:
    """`ax`, or the only axes of a new figure of column width."""
    return Figure(figsize=(3.4, 3.0), layout="constrained").add_subplot() if ax is None else ax


def plain_text(figure: Figure) -> None:
    """Let a dollar sign in a user's name be one."""
    for text in figure.findobj(Text):
        if "$" in text.get_text():
            text.set_parse_math(False)


def save_figure(figure: Figure, name: str, place: Callable[[str], AbstractContextManager[Path]]) -> None:
    """As PNG and PDF, at the paths that `place` gives for the two names."""
    plain_text(figure)
    for suffix in ("png", "pdf"):
        content = BytesIO()  # on a disk that is full, the writer of PDFs fails in its own way
        figure.savefig(content, format=suffix)
        with place(f"{name}.{suffix}") as path:
            path.write_bytes(content.getvalue())
