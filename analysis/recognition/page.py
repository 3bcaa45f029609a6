"""The accuracy of a classifier on a page."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from analysis.pages.page import Section, Table, rendered
from analysis.recognition.evaluation import EvaluationResult
from analysis.recognition.methods import accuracy_warnings
from analysis.runs.texts import few

_CONFUSED = 30
"""Rows of the table of wrong answers."""


def evaluation_page(results: Sequence[EvaluationResult], *, command: str, files: Sequence[str]) -> str:
    """The page of an evaluation: the accuracies, those of the classes, and what is taken for what.

    Args:
        results: Of `evaluate`, of one or more networks on the same images.
        command: What makes the page again.
        files: To be linked.
    """
    first, tops = results[0], max((result.tops for result in results), key=len)
    counts = {"images from": str(first.settings["data"])} if "data" in first.settings else {}
    counts |= {"classes that occur": str(len(np.unique(first.labels)))}
    counts |= {
        f"outputs of {result.model}": f"{len(result.classes)}; guessing is right in {100 / len(result.classes):.3g} %"
        for result in results
    }
    found = "; ".join(f"{result.model}: {100 * result.accuracy():.2f} %" for result in results)
    return rendered(
        "results.html.j2",
        title=f"Accuracy of {few([result.model for result in results])}",
        kind="Accuracy on an image folder",
        summary=f"{len(first.images)} images, answered with their class by {found}.",
        command=command,
        files=files,
        data={"classes": [answers for result in results for answers in _answers(result, several=len(results) > 1)]},
        scripts=["classes"],
        warnings=[
            *accuracy_warnings(results),
            *([f"{len(first.skipped)} files were skipped; the result names them."] if first.skipped else []),
        ],
        setting=list(counts.items()),
        sections=[
            Section(title="Accuracy", tables=[_accuracies(results)]),
            Section(title="Classes", explorer="classes", tables=[_of_all(results, partial(_classes, tops=tops))]),
            Section(title="What is taken for what", tables=[_of_all(results, _confused)]),
        ],
        environment=_environment(results),
        sources=[("Intervals: Wilson 1927, JASA 22", "")],
    )


def _environment(results: Sequence[EvaluationResult]) -> list[tuple[str, str]]:
    """What measured: once what holds for all networks, by their names what does not."""
    found: list[tuple[str, str]] = []
    for name in sorted({name for result in results for name in result.settings} - {"weights", "images", "data"}):
        values = {result.model: str(result.settings[name]) for result in results if name in result.settings}
        if len(values) == len(results) and len(set(values.values())) == 1:
            found.append((name, next(iter(values.values()))))
        else:
            found += [(f"{name}, {model}", value) for model, value in values.items()]
    return found


def _of_all(results: Sequence[EvaluationResult], table: Callable[[EvaluationResult], Table]) -> Table:
    """One table of all networks; of several, with their names in front."""
    tables = [table(result) for result in results]
    if len(tables) == 1:
        return tables[0]
    rows = [[result.model, *row] for result, own in zip(results, tables, strict=True) for row in own.rows]
    notes = [f"{result.model}: {own.note}" for result, own in zip(results, tables, strict=True) if own.note]
    return Table(columns=["network", *tables[0].columns], rows=rows, note=" ".join(notes))


def _accuracies(results: Sequence[EvaluationResult]) -> Table:
    rows = []
    for result in results:
        for top in result.tops:
            low, high = (100 * end for end in result.interval(top))
            published = result.published.get(f"top{top}")
            known = "-" if published is None else f"{published:.2f}"
            accuracy = f"{100 * result.accuracy(top):.2f} [{low:.2f}, {high:.2f}]"
            rows.append([result.model, f"top-{top}", accuracy, known])
    return Table(
        columns=["network", "", "here (%)", "published (%)"],
        rows=rows,
        note="95 % intervals for images that are independent draws.",
    )


def _classes(result: EvaluationResult, tops: Sequence[int]) -> Table:
    rows = []
    for row in result.by_class().to_dict("records"):
        shares = [row.get(f"top{top}") for top in tops]
        cells = ["-" if share is None else f"{100 * share:.1f}" for share in shares]
        rows.append([row["class"], str(row["images"]), *cells])
    return Table(columns=["class", "images", *(f"top-{top} (%)" for top in tops)], rows=rows)


def _confused(result: EvaluationResult) -> Table:
    pairs = zip(result.labels.tolist(), result.best[:, 0].tolist(), strict=True)
    found = Counter(pair for pair in pairs if pair[0] != pair[1]).most_common()
    rows = [[result.classes[label], result.classes[answer], str(count)] for (label, answer), count in found]
    note = "" if rows else "No answer is wrong."
    if len(rows) > _CONFUSED:
        note = f"The {_CONFUSED} most frequent of {len(rows)}."
    return Table(columns=["right class", "answer", "images"], rows=rows[:_CONFUSED], note=note)


def _answers(result: EvaluationResult, *, several: bool) -> list[dict[str, object]]:
    """Of each class that occurs, how often which answer was given to it, the most frequent first."""
    found = []
    for label in np.unique(result.labels):
        answers, counts = np.unique(result.best[result.labels == label, 0], return_counts=True)
        order = np.argsort(-counts, kind="stable")
        pairs = [[result.classes[answers[index]], int(counts[index])] for index in order]
        name = result.classes[label]
        found.append({"name": name, "shown": f"{result.model}: {name}" if several else name, "answers": pairs})
    return found
