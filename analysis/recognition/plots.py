"""Figures of accuracies. Each function draws into the Axes it is given and sets nothing global."""

from matplotlib.axes import Axes

from analysis.figures import CELL_COLORS, axes_or_new, draw_counts, room_of, wrapped
from analysis.recognition.evaluation import EvaluationResult


def plot_answers(
    result: EvaluationResult, *, ax: Axes | None = None, cmap: str = CELL_COLORS, bar: bool = True
) -> Axes:
    """Answers (columns) to each class (rows) in percent of its images; classes that occur as neither are left out.

    Args:
        result: Of a network.
        ax: To draw into.
        cmap: Of the colours.
        bar: With a colour bar of its own.
    """
    ax = axes_or_new(ax)
    draw_counts(ax, result.confusion(), cmap, bar=bar)
    ax.set(xlabel="answer", ylabel="class")
    ax.set_title(wrapped(f"{result.model}: answers to {len(result.images)} images", 0.75 * room_of(ax)))
    return ax
