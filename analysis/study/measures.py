"""What a study measures on each network: every quantity once, with how it is computed, named, asked about and drawn."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from analysis.receptive_field.result import ErfResult
    from analysis.study.result import CellResult


@dataclass(frozen=True, kw_only=True)
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


@dataclass(frozen=True, kw_only=True)
class Measure:
    """One quantity of a network.

    Args:
        name: Its column in the table of a study.
        of: Computes it; None where it is not defined for the images of the study, and the table has no such column.
        label: Of an axis, with the unit.
        heading: Of a column in the report; empty where it has none.
        brief: Of a column in the terminal; empty where it has none.
        scale: Factor on shown values, 100 for per cent.
        limits: Of an axis.
        lowest: The smallest value that is possible, for intervals of shares; the largest is 1.
        typical: How the median over the seeds is written; None for a mean with its interval.
        two_cues: Defined for generated images only, which have two cues.
        question: Asked before the study.
    """

    name: str
    of: Callable[[CellResult], float | bool | None]
    label: str = ""
    heading: str = ""
    brief: str = ""
    scale: float = 1.0
    limits: tuple[float | None, float | None] = (0, None)
    lowest: float = 0.0
    typical: Callable[[float], str] | None = None
    two_cues: bool = False
    question: Question | None = None


_AREAS = (
    Measure(
        name="erf_area_0.5",
        of=lambda result: result.erf.area_ratio(0.5),
        label="area with half of the gradient (%)",
        heading="ERF 50 % area (%)",
        brief="ERF 50 % area (%)",
        scale=100,
        question=Question(
            text="Does a larger kernel see further?",
            yes="Yes: the effective receptive field grows with the kernel size.",
            opposite="The opposite: the effective receptive field shrinks.",
            quantity="area that holds half of the gradient",
        ),
    ),
    Measure(
        name="erf_area_0.99",
        of=lambda result: result.erf.area_ratio(0.99),
        label="area with 99 % of the gradient (%)",
        heading="ERF 99 % area (%)",
        scale=100,
    ),
    Measure(
        name="untrained_erf_area_0.5",
        of=lambda result: result.untrained_erf.area_ratio(0.5),
        label="area with half of the gradient, untrained (%)",
        heading="untrained 50 % area (%)",
        brief="untrained (%)",
        scale=100,
        question=Question(
            text="Did it before the training?",
            yes="Yes: it grew with the kernel size there too.",
            opposite="The opposite: it shrank with the kernel size there.",
            quantity="area before the training",
        ),
    ),
)


def _of_erf(name: str, erf: Callable[[CellResult], ErfResult]) -> list[Measure]:
    """Of the trained or of the untrained network."""

    def area(threshold: float) -> Measure:
        column = f"{name}_area_{threshold}"
        told = [measure for measure in _AREAS if measure.name == column]
        return told[0] if told else Measure(name=column, of=lambda result: erf(result).area_ratio(threshold))

    return [
        *(area(threshold) for threshold in (0.2, 0.3, 0.5, 0.99)),
        Measure(name=f"{name}_area_0.5_low", of=_end(name, 0)),
        Measure(name=f"{name}_area_0.5_high", of=_end(name, 1)),
        Measure(name=f"{name}_rms_radius", of=lambda result: erf(result).rms_radius()),
    ]


def _end(name: str, index: int) -> Callable[[CellResult], float | None]:
    return lambda result: result.intervals[name][index] if name in result.intervals else None


def _pse(result: CellResult) -> float:
    """Where one cue wins at every balance, the border is the least extreme value that fits."""
    fit = result.psychometric
    return float(np.clip(fit.pse, min(result.balances), max(result.balances))) if fit else float("nan")


def _of_fit(name: str) -> Callable[[CellResult], float]:
    return lambda result: float(getattr(result.psychometric, name)) if result.psychometric else float("nan")


MEASURES: dict[str, Measure] = {
    measure.name: measure
    for measure in (
        Measure(
            name="accuracy",
            of=lambda result: result.accuracy,
            label="accuracy (%)",
            heading="accuracy (%)",
            brief="accuracy (%)",
            scale=100,
            limits=(0, 103),
            question=Question(
                text="Is it more accurate?",
                yes="Yes: the accuracy grows with the kernel size.",
                opposite="The opposite: the accuracy falls.",
                quantity="validation accuracy",
            ),
        ),
        Measure(name="val_images", of=lambda result: result.num_val),
        Measure(
            name="shape_only_accuracy",
            of=lambda result: result.shape_only_accuracy,
            label="accuracy (%)",
            heading="only shape (%)",
            scale=100,
            limits=(0, 103),
            two_cues=True,
        ),
        Measure(
            name="texture_only_accuracy",
            of=lambda result: result.texture_only_accuracy,
            label="accuracy (%)",
            heading="only texture (%)",
            scale=100,
            limits=(0, 103),
            two_cues=True,
        ),
        Measure(
            name="shape_bias",
            of=lambda result: result.shape_bias,
            label="shape bias, S / (S + T)",
            heading="shape bias",
            brief="shape bias",
            limits=(-0.03, 1.03),
            two_cues=True,
            question=Question(
                text="Does it see shape?",
                yes="Yes: the shape bias grows with the kernel size.",
                opposite="The opposite: the shape bias falls.",
                quantity="shape bias with both cues full",
            ),
        ),
        Measure(
            name="coverage",
            of=lambda result: result.coverage,
            label="coverage (%)",
            heading="coverage (%)",
            scale=100,
            limits=(0, 103),
            two_cues=True,
        ),
        Measure(name="shape_bias_low", of=_end("shape_bias", 0), two_cues=True),
        Measure(name="shape_bias_high", of=_end("shape_bias", 1), two_cues=True),
        Measure(
            name="pse",
            of=_pse,
            label="point of subjective equality",
            heading="PSE",
            brief="PSE",
            limits=(-1.05, 1.05),
            lowest=-1.0,
            two_cues=True,
            question=Question(
                text="Does a weaker shape still win?",
                yes="Yes: larger kernels let a weaker shape win.",
                opposite="The opposite: with larger kernels shape wins only against a weaker texture.",
                quantity="point of subjective equality",
            ),
        ),
        Measure(
            name="pse_at_border",
            of=lambda result: bool(result.psychometric and np.isinf(result.psychometric.pse)),
            two_cues=True,
        ),
        Measure(name="pse_standard_error", of=_of_fit("standard_error"), two_cues=True),
        Measure(name="psychometric_slope", of=_of_fit("slope"), two_cues=True),
        *_of_erf("erf", lambda result: result.erf),
        *_of_erf("untrained_erf", lambda result: result.untrained_erf),
        Measure(name="parameters", of=lambda result: result.parameters),
        Measure(
            name="merged_parameters",
            of=lambda result: result.merged_parameters,
            label="thousand parameters",
            heading="parameters",
            scale=1e-3,
            typical=lambda value: f"{value:,.0f}",
        ),
        Measure(
            name="macs",
            of=lambda result: result.macs,
            label="million multiply-accumulates",
            heading="MMAC",
            scale=1e-6,
            typical=lambda value: f"{value / 1e6:.2f}",
        ),
        Measure(
            name="seconds_per_step",
            of=lambda result: result.seconds_per_step,
            label="time of a step (ms)",
            heading="step (ms)",
            scale=1000,
            typical=lambda value: f"{1000 * value:.0f}",
        ),
        Measure(
            name="inference_ms",
            of=lambda result: result.inference_ms,
            label="time per image (ms)",
            heading="inference (ms)",
            typical=lambda value: f"{value:.2f}",
        ),
    )
}
"""By name, in the order of the columns of `study.csv`."""

REPORTED = (
    "accuracy", "erf_area_0.5", "erf_area_0.99", "untrained_erf_area_0.5", "shape_bias", "pse", "coverage",
    "shape_only_accuracy", "texture_only_accuracy", "merged_parameters", "macs", "seconds_per_step", "inference_ms",
)  # fmt: skip
"""Columns of the report's table, in order; the terminal shows those with a brief heading."""
ASKED = ("erf_area_0.5", "untrained_erf_area_0.5", "shape_bias", "pse", "accuracy")
"""Questions in the order in which they are answered."""
