"""What the statistics of a study say, in words."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.receptive_field.methods import border_text
from analysis.shape_bias.methods import LOW_COVERAGE
from analysis.statistics import Trend, trend
from analysis.study.measures import ASKED, SHAPE_BIAS, Measure, Question, shown
from analysis.study.power import study_power
from analysis.study.result import settings_of, values_by_seed


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The answer to one question.

    Args:
        question: Asked before the study.
        answer: One short sentence: what the test allows to say.
        detail: The numbers behind it.
        trend: The test.
    """

    question: str
    answer: str
    detail: str
    trend: Trend


def findings(table: pd.DataFrame, *, sequential: bool = False) -> list[Finding]:
    """One finding for each question that the study can answer.

    Args:
        table: Of one setting of small kernel and shortcut, as `study_table` makes it, with two or more kernels.
        sequential: Seeds were added until an interval was narrow; see `analysis.statistics.trend`.
    """
    measures = shown(ASKED, table)
    return [_finding(table, measure, measure.question, sequential) for measure in measures if measure.question]


def power_text(table: pd.DataFrame, *, sequential: bool = False) -> str:
    """What difference in shape bias (where there is none, in accuracy) a study could find; empty with too few seeds.

    Args:
        table: As in `findings`.
        sequential: As in `findings`.
    """
    measure = shown((*SHAPE_BIAS, "accuracy"), table)[0]
    kernels, values = values_by_seed(table, measure.name)
    power = study_power(values)
    if power is None:
        return ""

    def number(value: float) -> str:
        return _number(value, measure.scale == 100, unit=" percentage points")

    def needed(seeds: dict[float, int]) -> str:
        parts = [f"{seeds[size]} seeds for {number(size)}" for size in sorted(seeds)]
        return " and ".join(parts) or "more than 1000 seeds for any of them"

    tests = {"the paired t-test of the two ends": (power.smallest_by_difference, power.seeds_by_difference)}
    if len(kernels) > 2:
        tests = {"Page's L over all kernels": (power.smallest_by_trend, power.seeds_by_trend), **tests}
    found = "; ".join(
        f"{test} finds {number(smallest)} in 80 % of such studies, and needs {needed(seeds)}"
        for test, (smallest, seeds) in tests.items()
    )
    low, high = power.spread_interval
    pooled = ", taken for equal between any two kernels" if len(kernels) > 2 else ""
    return (
        f"What it could have found in the {measure.heading.removesuffix(' (%)')}: the difference from kernel "
        f"{kernels[0]} to {kernels[-1]} has a standard deviation of {number(power.spread)} [{number(low)}, "
        f"{number(high)}] over {power.num_seeds} seeds{pooled}. With that spread {found} (simulated, two-sided at 5 %, "
        "equal steps from kernel to kernel)."
        + " That holds for a number of seeds fixed before; the always-valid test of this study finds less."
        * sequential
    )


def chance_of_any(num_tests: int) -> float:
    """Probability of one or more trends among independent tests at the level of 5 % where there are none."""
    return 1 - 0.95**num_tests


def _finding(table: pd.DataFrame, measure: Measure, asked: Question, sequential: bool) -> Finding:
    percent = measure.scale == 100
    kernels, values = values_by_seed(table, measure.name)
    tested = trend(values, sequential=sequential)
    if tested.num_repeats < min(len(values), 2):
        answer = "No answer: the quantity is not defined for enough seeds."
    elif not tested.decidable:
        number = f"{tested.num_repeats} seed{'s' * (tested.num_repeats > 1)}"
        answer = f"No answer: no result of {number} with {len(kernels)} kernels could be significant."
    elif np.isnan(tested.p_value):
        answer = "No answer: the seeds differ by the same amount, of which the test has no p-value."
    elif tested.direction == 0:
        answer = "No evidence of a trend."
    else:
        answer = asked.yes if tested.direction > 0 else asked.opposite
    means = [_number(_mean(column), percent) for column in values.T]
    parts = [f"{asked.quantity}: {', '.join(f'{m} at {k}' for k, m in zip(kernels, means, strict=True))}"]
    if tested.num_repeats:
        change = f"difference from kernel {kernels[0]} to {kernels[-1]} {difference_text(tested, measure)}"
        parts.append(f"{change} over {tested.num_repeats} seed{'s' * (tested.num_repeats > 1)}")
    if not np.isnan(tested.p_value):
        parts.append(f"{tested.test}, p = {tested.p_value:.2g}")
    if tested.direction and tested.low <= 0 <= tested.high:
        parts.append("the test goes by the order of all kernels; the difference of the two ends alone is uncertain")
    missing = len(values) - tested.num_repeats
    if missing:
        seeds = f"{missing} of {len(values)} seeds, which lack" if len(values) > 1 else "the only seed, which lacks"
        parts.append(f"without {seeds} a value at some kernel")
    return Finding(question=asked.text, answer=answer, detail="; ".join(parts) + ".", trend=tested)


def difference_text(tested: Trend, measure: Measure) -> str:
    """The mean difference of a test, with its interval, as far as that is possible, if it has one."""
    percent = measure.scale == 100
    text = _number(tested.difference, percent, unit=" percentage points", sign=True)
    if np.isfinite(tested.low):
        most = measure.possible[1] - measure.possible[0]
        ends = np.clip((tested.low, tested.high), -most, most)
        low, high = (_number(float(end), percent, unit="", sign=True) for end in ends)
        text += f" [{low}, {high}]"
    return text


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def _number(value: float, percent: bool, *, unit: str = " %", sign: bool = False) -> str:
    """With a unit where it is in per cent, of which a difference is in percentage points."""
    if not np.isfinite(value):
        return "undefined"
    plus = "+" if sign else ""
    return f"{100 * value:{plus}.1f}{unit}" if percent else f"{value:{plus}.2f}"


def warnings_of(table: pd.DataFrame, *, chance: float) -> list[str]:
    """What weakens the findings: networks that learned little, a bias that rests on few images, a full image.

    Args:
        table: As `study_table` makes it.
        chance: Accuracy of guessing.
    """
    notes = []
    weak = table[table["accuracy"] < 2 * chance]
    if len(weak):
        notes.append(
            f"{len(weak)} of {len(table)} networks are less than twice as accurate as guessing ({100 * chance:.1f} %): "
            "they were trained too briefly for their shape bias to mean anything."
        )
    if table["shape_bias"].notna().any():
        notes += _seldom_answered(table, "coverage", "conflict images")
        if len(table) > 1 and (table["shape_bias"].max() < 0.05 or table["shape_bias"].min() > 0.95):
            notes.append(
                "With both cues full every network follows one of them almost always; read the points of subjective "
                "equality instead."
            )
        border = table[table["pse_at_border"].astype(bool)]
        if len(border):
            notes.append(
                f"The point of subjective equality of {len(border)} of {len(table)} networks ({_named(border, table)}) "
                "lies beyond the balances that were shown; the last of these stands for it. Means, intervals and tests "
                "with them are of values that are not extreme enough."
            )
    if "congruent_accuracy_low" in table:
        shown_to = table[table["congruent_accuracy_low"].notna()]
        blind = shown_to[shown_to["congruent_accuracy_low"] <= shown_to["cue_conflict_chance"]]
        if len(blind):
            notes.append(
                f"The real stimuli are too hard for {len(blind)} of {len(shown_to)} networks ({_named(blind, table)}): "
                "where "
                "shape and texture tell the same class, the 95 % interval of their accuracy does not exclude guessing "
                f"({100 * blind['cue_conflict_chance'].iloc[0]:.1f} %). Their shape bias on these stimuli means little."
            )
    if "cue_conflict_coverage" in table:
        notes += _seldom_answered(table, "cue_conflict_coverage", "real conflict images")
    full = table[table["erf_area_0.99"] >= 0.9]
    if len(full):
        notes.append(border_text(_named(full, table)))
    return notes


def _seldom_answered(table: pd.DataFrame, coverage: str, images: str) -> list[str]:
    """Which networks answered few of some images with either cue, by the column of their coverage."""
    low = table[table[coverage] < LOW_COVERAGE]
    if not len(low):
        return []
    return [
        f"{len(low)} of {len(table)} networks answered fewer than half of the {images} with either cue "
        f"({_named(low, table)}; coverage down to {100 * low[coverage].min():.0f} %): their shape bias rests on the "
        "others."
    ]


def _named(rows: pd.DataFrame, table: pd.DataFrame) -> str:
    """Which networks of a table these are, such as "kernel 3, 7", by setting where there are several."""
    found = []
    for label, own in settings_of(table):
        kernels = sorted(set(rows.loc[rows.index.intersection(own.index), "kernel"]))
        if kernels:
            found.append(f"{label}{', ' * bool(label)}kernel {', '.join(map(str, kernels))}")
    return "; ".join(found)


def summary_text(values: Sequence[float], measure: Measure, *, of: str = "seeds") -> str:
    """A measure of the seeds of one setting, as a table shows it, such as "5.6 [4.9, 6.3]" or "0.25 (1 of 2 seeds)".

    It is the mean with its 95 % interval, or the median of what has none, and how many have it where it is not all.

    Args:
        values: One for each seed.
        measure: Of which they are.
        of: What they are one for each of, if not seeds.
    """
    finite = [value for value in values if np.isfinite(value)]
    if not finite:
        return "-"
    if measure.typical is not None:
        text = measure.typical(float(np.median(finite)))
    else:
        digits = 1 if measure.scale == 100 else 2
        mean, low, high = (f"{measure.scale * x:.{digits}f}" for x in (np.mean(finite), *measure.interval(finite)))
        text = mean if len(finite) < 2 else f"{mean} [{low}, {high}]"
    return text if len(finite) == len(values) else f"{text} ({len(finite)} of {len(values)} {of})"
