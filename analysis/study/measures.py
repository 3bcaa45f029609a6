"""What a study measures on each network: every quantity once, with how it is computed, named, asked about and drawn."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.shape_bias.result import ShapeBiasResult
from analysis.statistics import mean_interval

_Result = Any
"""A `CellResult` of `analysis.study.result`, which takes its measures from here."""
Value = float | bool | None
STIMULI = ("cue_conflict", "edges", "silhouettes")
"""Stimuli of others; each is the field of a result with the answers to them, None where they were not shown."""
_SHARE = (0.0, 1.0)
"""What a part of something can be."""


@dataclass(frozen=True)
class Question:
    """What is asked about a measure before the study: whether it rises or falls with the kernel size.

    Args:
        text: The question.
        yes: The answer where it rises.
        opposite: The answer where it falls.
        quantity: The measure, in the words of the answer's details.
    """

    text: str
    yes: str
    opposite: str
    quantity: str


@dataclass(frozen=True)
class Measure:
    """One quantity of a network.

    Args:
        name: Its column in the table of a study.
        of: Computes it; None where it is not defined for the images of the study, and the table has no such column.
        heading: Of a column in the report and in the terminal, with the unit.
        label: Of an axis; by default the heading.
        scale: Factor on shown values, 100 for per cent.
        limits: Of an axis.
        possible: The lowest and the highest value that there can be, where intervals of means end.
        typical: How the median over the seeds is written; None for a mean with its interval.
        two_cues: Defined for generated images only, which have two cues.
        question: Asked before the study.
        of_answers: Computes it of the answers of a person to cue-conflict images; None of what people do not have.
    """

    name: str
    of: Callable[[_Result], Value]
    heading: str = ""
    label: str = ""
    scale: float = 1.0
    limits: tuple[float | None, float | None] = (0, None)
    possible: tuple[float, float] = (0.0, math.inf)
    typical: Callable[[float], str] | None = None
    two_cues: bool = False
    question: Question | None = None
    of_answers: Callable[[ShapeBiasResult], Value] | None = None

    def interval(self, values: Sequence[float]) -> tuple[float, float]:
        """Student's 95 % interval of the mean, as far as it is possible; NaN as in `mean_interval`."""
        low, high = np.clip(mean_interval(values), *self.possible)
        return float(low), float(high)


def _plain(name: str) -> Measure:
    """A field of the result, for the table alone."""
    return Measure(name, lambda result: getattr(result, name))


def _share(name: str, heading: str, *, two_cues: bool = False, question: Question | None = None) -> Measure:
    """A field of the result that is a part of the images."""
    return Measure(
        name,
        lambda result: getattr(result, name),
        heading,
        "accuracy (%)" if "accuracy" in name else "",
        scale=100,
        limits=(0, 103),
        possible=_SHARE,
        two_cues=two_cues,
        question=question,
    )


def _cost(name: str, heading: str, label: str, scale: float, typical: Callable[[float], str]) -> Measure:
    return Measure(name, lambda result: getattr(result, name), heading, label, scale=scale, typical=typical)


def _answered(
    stimuli: str, name: str, of_answers: Callable[[ShapeBiasResult], Value], heading: str = "", **options: Any
) -> Measure:
    """Of the answers to stimuli of others; with a heading in per cent, a part of the images."""

    def of(result: _Result) -> Value:
        answers = getattr(result, stimuli)
        return None if answers is None else of_answers(answers)

    label = "accuracy (%)" if "accuracy" in name else "answers (%)"
    share = {"label": label, "scale": 100, "limits": (0, 103), "possible": _SHARE} if "(%)" in heading else {}
    of_people = of_answers if stimuli == "cue_conflict" else None
    return Measure(name, of, heading, **share | options, of_answers=of_people)  # type: ignore[arg-type]


def _part(count: Callable[[ShapeBiasResult], int]) -> Callable[[ShapeBiasResult], float]:
    return lambda answers: count(answers) / answers.num_images if answers.num_images else float("nan")


def _end(name: str, index: int) -> Callable[[_Result], Value]:
    return lambda result: result.intervals[name][index] if name in result.intervals else None


def _of_erf(name: str, fifty: Measure, ninety_nine: Measure) -> list[Measure]:
    """Of the trained or of the untrained network: some areas, the interval of one, the radius."""

    def area(threshold: float) -> Measure:
        return Measure(f"{name}_area_{threshold}", lambda result: getattr(result, name).area_ratio(threshold))

    return [
        *(area(0.2), area(0.3), fifty, ninety_nine),
        *(Measure(f"{name}_area_0.5_{end}", _end(name, index)) for index, end in enumerate(("low", "high"))),
        Measure(f"{name}_rms_radius", lambda result: getattr(result, name).rms_radius()),
    ]


def _pse(result: _Result) -> float:
    """Where one cue wins at every balance, the border is the least extreme value that fits."""
    fit = result.psychometric
    return float(np.clip(fit.pse, min(result.balances), max(result.balances))) if fit else float("nan")


def _at_border(result: _Result) -> bool:
    fit = result.psychometric
    return bool(fit and not np.isnan(fit.pse) and fit.pse != _pse(result))


def _of_fit(name: str) -> Callable[[_Result], float]:
    return lambda result: float(getattr(result.psychometric, name)) if result.psychometric else float("nan")


_ALL = (
    _share(
        "accuracy",
        "accuracy (%)",
        question=Question(
            "Is it more accurate?",
            "Yes: the accuracy grows with the kernel size.",
            "The opposite: the accuracy falls.",
            "validation accuracy",
        ),
    ),
    Measure("val_images", lambda result: result.num_val),
    _share("shape_only_accuracy", "only shape (%)", two_cues=True),
    _share("texture_only_accuracy", "only texture (%)", two_cues=True),
    Measure(
        "shape_bias",
        lambda result: result.shape_bias,
        "shape bias",
        "shape bias, S / (S + T)",
        limits=(-0.03, 1.03),
        possible=_SHARE,
        two_cues=True,
        question=Question(
            "Does it see shape?",
            "Yes: the shape bias grows with the kernel size.",
            "The opposite: the shape bias falls.",
            "shape bias with both cues full",
        ),
    ),
    _share("coverage", "coverage (%)", two_cues=True),
    Measure("shape_bias_low", _end("shape_bias", 0)),
    Measure("shape_bias_high", _end("shape_bias", 1)),
    Measure(
        "pse",
        _pse,
        "PSE",
        "point of subjective equality",
        limits=(-1.05, 1.05),
        possible=(-1.0, 1.0),
        two_cues=True,
        question=Question(
            "Does a weaker shape still win?",
            "Yes: larger kernels let a weaker shape win.",
            "The opposite: with larger kernels shape wins only against a weaker texture.",
            "point of subjective equality",
        ),
    ),
    _answered(
        "cue_conflict",
        "cue_conflict_shape_bias",
        lambda answers: answers.shape_bias,
        "shape bias, real stimuli",
        label="shape bias, S / (S + T)",
        limits=(-0.03, 1.03),
        possible=_SHARE,
        question=Question(
            "Does it see shape in the real stimuli?",
            "Yes: the shape bias on the real stimuli grows with the kernel size.",
            "The opposite: the shape bias on the real stimuli falls.",
            "shape bias on the real cue-conflict stimuli",
        ),
    ),
    *(
        Measure(f"cue_conflict_shape_bias_{end}", _end("cue_conflict_shape_bias", index))
        for index, end in enumerate(("low", "high"))
    ),
    _answered("cue_conflict", "cue_conflict_images", lambda answers: answers.num_images),
    _answered("cue_conflict", "cue_conflict_coverage", lambda answers: answers.coverage, "coverage, real (%)"),
    _answered(
        "cue_conflict", "cue_conflict_shape", _part(lambda answers: answers.num_shape), "answered by shape, real (%)"
    ),
    _answered(
        "cue_conflict", "cue_conflict_texture", _part(lambda answers: answers.num_texture), "by texture, real (%)"
    ),
    _answered("cue_conflict", "congruent_accuracy", lambda answers: answers.congruent_accuracy, "congruent, real (%)"),
    *(
        Measure(f"congruent_accuracy_{end}", _end("congruent_accuracy", index))
        for index, end in enumerate(("low", "high"))
    ),
    _answered("cue_conflict", "cue_conflict_chance", lambda answers: 1 / len(answers.categories)),
    _answered("edges", "edges_accuracy", lambda answers: answers.accuracy, "edges (%)"),
    _answered("edges", "edges_chance", lambda answers: 1 / len(answers.categories)),
    _answered("silhouettes", "silhouettes_accuracy", lambda answers: answers.accuracy, "silhouettes (%)"),
    _answered("silhouettes", "silhouettes_chance", lambda answers: 1 / len(answers.categories)),
    Measure("pse_at_border", _at_border),
    Measure("pse_standard_error", _of_fit("standard_error")),
    Measure("psychometric_slope", _of_fit("slope")),
    *_of_erf(
        "erf",
        Measure(
            "erf_area_0.5",
            lambda result: result.erf.area_ratio(0.5),
            "ERF 50 % area (%)",
            "area with half of the gradient (%)",
            scale=100,
            possible=_SHARE,
            question=Question(
                "Does a larger kernel see further?",
                "Yes: the effective receptive field grows with the kernel size.",
                "The opposite: the effective receptive field shrinks.",
                "area that holds half of the gradient",
            ),
        ),
        Measure(
            "erf_area_0.99",
            lambda result: result.erf.area_ratio(0.99),
            "ERF 99 % area (%)",
            scale=100,
            possible=_SHARE,
        ),
    ),
    *_of_erf(
        "untrained_erf",
        Measure(
            "untrained_erf_area_0.5",
            lambda result: result.untrained_erf.area_ratio(0.5),
            "untrained 50 % area (%)",
            scale=100,
            possible=_SHARE,
            question=Question(
                "Did it before the training?",
                "Yes: it grew with the kernel size there too.",
                "The opposite: it shrank with the kernel size there.",
                "area before the training",
            ),
        ),
        Measure("untrained_erf_area_0.99", lambda result: result.untrained_erf.area_ratio(0.99)),
    ),
    _plain("parameters"),
    _cost("merged_parameters", "parameters", "thousand parameters", 1e-3, lambda value: f"{value:,.0f}"),
    _cost("macs", "MMAC", "million multiply-accumulates", 1e-6, lambda value: f"{value / 1e6:.2f}"),
    _cost("seconds_per_step", "step (ms)", "time of a step (ms)", 1000, lambda value: f"{1000 * value:.0f}"),
    _cost("inference_ms", "inference (ms)", "time per image (ms)", 1, lambda value: f"{value:.2f}"),
)
MEASURES: dict[str, Measure] = {measure.name: measure for measure in _ALL}
"""By name, in the order of the columns of `study.csv`."""
REPORTED = (
    "accuracy", "erf_area_0.5", "erf_area_0.99", "untrained_erf_area_0.5", "shape_bias", "pse", "coverage",
    "shape_only_accuracy", "texture_only_accuracy", "cue_conflict_shape_bias", "cue_conflict_coverage",
    "cue_conflict_shape", "cue_conflict_texture", "congruent_accuracy", "edges_accuracy", "silhouettes_accuracy",
    "merged_parameters", "macs", "seconds_per_step", "inference_ms",
)  # fmt: skip
"""Columns of the report's table, in order."""
BRIEF = (
    "accuracy",
    "erf_area_0.5",
    "untrained_erf_area_0.5",
    "shape_bias",
    "pse",
    "cue_conflict_shape_bias",
    "congruent_accuracy",
)
"""Columns of the table in the terminal."""
ASKED = ("erf_area_0.5", "untrained_erf_area_0.5", "shape_bias", "pse", "cue_conflict_shape_bias", "accuracy")
"""Measures with a question, in the order in which these are answered."""
SHAPE_BIAS = ("shape_bias", "cue_conflict_shape_bias")
"""On generated images and on stimuli of others; a study has one of them at most."""


def shown(names: tuple[str, ...], table: pd.DataFrame) -> list[Measure]:
    """Those of some measures that are defined for the images of a study.

    Args:
        names: Of the measures.
        table: Of the study, as `study_table` makes it.
    """
    two_cues = bool(table["shape_bias"].notna().any())
    return [MEASURES[name] for name in names if name in table and (two_cues or not MEASURES[name].two_cues)]


def cell_text(row: Any, measure: Measure) -> str:
    """A measure of one network, as a table shows it, such as "22.1 [20.0, 24.3]"; "-" where there is none."""
    value = float(row[measure.name])
    if not np.isfinite(value):
        return "-"
    if measure.typical is not None:
        return measure.typical(value)
    digits = 1 if measure.scale == 100 else 2
    text = f"{measure.scale * value:.{digits}f}"
    ends = [float(row.get(f"{measure.name}_{end}", math.nan)) for end in ("low", "high")]
    if not np.isfinite(ends).all():
        return text
    return f"{text} [{', '.join(f'{measure.scale * end:.{digits}f}' for end in ends)}]"


def people_table(people: Sequence[ShapeBiasResult]) -> pd.DataFrame:
    """One row for each person: every measure of answers to cue-conflict images."""
    of_answers = {name: measure.of_answers for name, measure in MEASURES.items() if measure.of_answers is not None}
    return pd.DataFrame(
        [{"person": person.observer, **{name: of(person) for name, of in of_answers.items()}} for person in people]
    )
