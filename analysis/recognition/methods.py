"""Accuracies in the words of a methods section."""

from collections.abc import Sequence

import numpy as np

from analysis.recognition.evaluation import EvaluationResult
from analysis.recognition.labels import SORTED
from analysis.runs.methods import Methods, counted, joined, with_interval
from analysis.runs.texts import few


def accuracy_warnings(results: Sequence[EvaluationResult]) -> list[str]:
    """What weakens accuracies: classes that were matched by their order alone."""
    blind = [result.model for result in results if result.settings.get("classes_matched") == SORTED]
    return [f"Accuracy of {few(blind, 6)}: classes were matched {SORTED}."] if blind else []


def evaluation_methods(results: Sequence[EvaluationResult]) -> Methods:
    """How accuracies were measured, and what came out; of networks on the same images."""
    first = results[0]
    data = joined(dict.fromkeys(str(own.settings["data"]) for own in results if "data" in own.settings))
    rules = joined(dict.fromkeys(str(own.settings.get("classes_matched", "")) for own in results))
    matched = f"; classes were matched {rules}" if rules and not accuracy_warnings(results) else ""
    num_classes = len(np.unique(first.labels))
    source = f" of {data}" if data else ""
    text = (
        f"{counted(len(results), 'network')} ({joined(result.model for result in results)}) classified "
        f"{counted(len(first.images), 'image')} of {counted(num_classes, 'class', 'classes')}{source}{matched}. "
        "Brackets are Wilson's 95 % intervals of a share "
        "(Wilson, 1927), for images that are independent draws."
    )
    text += f" {counted(len(first.skipped), 'file')} could not be used." if first.skipped else ""
    found = []
    for result in results:
        tops = result.tops
        shares = [
            f"top-{top} {with_interval(result.accuracy(top), result.interval(top), scale=100, digits=2, unit=' %')}"
            for top in tops
        ]
        found.append(f"{result.model}: {joined(shares)}.")
    return Methods((text, " ".join(found)), ("wilson1927interval",))
