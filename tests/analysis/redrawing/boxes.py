"""The texts that a figure really draws, and where."""

from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.text import Text
from matplotlib.transforms import Bbox

_TOUCH = 0.6
"""Points that boxes may share: letters do not fill theirs."""


def drawn_texts(figure: Figure) -> list[Text]:
    """Every text that is drawn: ticks beyond the limits, and numbers without room, are not."""
    found: list[Text] = []
    draw: Any = Text.draw

    def recording(text: Text, renderer: Any) -> None:
        if text.get_visible() and text.get_text().strip():
            found.append(text)
        draw(text, renderer)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Text, "draw", recording)
        FigureCanvasAgg(figure).draw()  # type: ignore[no-untyped-call]
    return list(dict.fromkeys(found))


def faults(figure: Figure) -> list[str]:
    """What is wrong with the texts of a figure: smaller than 6 points, outside of it, on each other or on a legend."""
    figure.set_dpi(144)
    texts = drawn_texts(figure)
    scale = figure.get_dpi() / 72
    # Of the text alone: that of an annotation spans its arrow, too.
    boxes = [_shrunk(Text.get_window_extent(text), _TOUCH * scale) for text in texts]
    found = [f"{text.get_text()!r} has {_size(text):g} points" for text in texts if _size(text) < 6]
    page = figure.bbox.padded(0.5)
    for text, box in zip(texts, boxes, strict=True):
        if not (page.contains(box.x0, box.y0) and page.contains(box.x1, box.y1)):
            found.append(f"{text.get_text()!r} leaves the figure")
    for index, box in enumerate(boxes):
        for other in range(index):
            if box.overlaps(boxes[other]):
                found.append(f"{texts[other].get_text()!r} and {texts[index].get_text()!r} overlap")
    for legend in figure.findobj(Legend):
        own = set(legend.findobj(Text))
        frame = _shrunk(legend.get_window_extent(), 2 * _TOUCH * scale)
        for text, box in zip(texts, boxes, strict=True):
            if text not in own and frame.overlaps(box):
                found.append(f"a legend and {text.get_text()!r} overlap")
    return found


def _size(text: Text) -> float:
    return float(text.get_fontsize())


def _shrunk(box: Bbox, by: float) -> Bbox:
    by = min(by, box.width / 2, box.height / 2)
    return box.padded(-by)
