"""The accuracy of a classifier on a page."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from analysis.pages.page import Section, Table, rendered
from analysis.recognition.evaluation import EvaluationResult

_CONFUSED = 30
"""Rows of the table of wrong answers."""


def evaluation_page(result: EvaluationResult, *, command: str, files: Sequence[str]) -> str:
    """The page of an evaluation: the accuracies, those of the classes, and what is taken for what.

    Args:
        result: Of `evaluate`.
        command: What makes the page again.
        files: To be linked.
    """
    counts = {"classes that occur": str(len(np.unique(result.labels))), "outputs": str(len(result.classes))}
    skipped = [f"{len(result.skipped)} files were skipped; the result names them."] if result.skipped else []
    environment = {name: str(value) for name, value in result.settings.items() if name not in ("weights", "images")}
    return rendered(
        "results.html.j2",
        title=f"How often is {result.model} right?",
        kind="Accuracy on an image folder",
        summary=f"{len(result.images)} images, {100 * result.accuracy():.2f} % answered with their class.",
        command=command,
        files=files,
        data={"classes": _answers(result)},
        scripts=["classes"],
        warnings=skipped,
        setting=list(counts.items()),
        sections=[
            Section(title="Accuracy", tables=[_accuracies(result)]),
            Section(title="Classes", explorer="classes", tables=[_classes(result)]),
            Section(title="What is taken for what", tables=[_confused(result)]),
        ],
        environment=sorted(environment.items()),
        sources=[("Intervals: Wilson 1927, JASA 22", "")],
    )


def _accuracies(result: EvaluationResult) -> Table:
    rows = []
    for top in (1, 5)[: 1 + (result.best.shape[1] >= 5)]:
        low, high = (100 * end for end in result.interval(top))
        published = result.published.get(f"top{top}")
        known = "-" if published is None else f"{published:.2f}"
        rows.append([f"top-{top}", f"{100 * result.accuracy(top):.2f} [{low:.2f}, {high:.2f}]", known])
    return Table(
        columns=["", "here (%)", "published (%)"],
        rows=rows,
        note="95 % intervals for images that are independent draws.",
    )


def _classes(result: EvaluationResult) -> Table:
    rows = [
        [row["class"], str(row["images"]), f"{100 * row['top1']:.1f}", f"{100 * row['top5']:.1f}"]
        for row in result.by_class().to_dict("records")
    ]
    return Table(columns=["class", "images", "top-1 (%)", "top-5 (%)"], rows=rows)


def _confused(result: EvaluationResult) -> Table:
    pairs = zip(result.labels.tolist(), result.best[:, 0].tolist(), strict=True)
    found = Counter(pair for pair in pairs if pair[0] != pair[1]).most_common()
    rows = [[result.classes[label], result.classes[answer], str(count)] for (label, answer), count in found]
    note = f"The {_CONFUSED} most frequent of {len(rows)}." if len(rows) > _CONFUSED else ""
    return Table(columns=["right class", "answer", "images"], rows=rows[:_CONFUSED], note=note)


def _answers(result: EvaluationResult) -> list[dict[str, object]]:
    """Of each class that occurs, how often which answer was given to it, the most frequent first."""
    found = []
    for label in np.unique(result.labels):
        answers, counts = np.unique(result.best[result.labels == label, 0], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        pairs = [[result.classes[answers[index]], int(counts[index])] for index in order]
        found.append({"name": result.classes[label], "answers": pairs})
    return found
