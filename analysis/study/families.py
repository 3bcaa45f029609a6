"""How the families of a study differ, at the kernels that both of a pair have."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd

from analysis.statistics import Trend, trend
from analysis.study.design import REFERENCE
from analysis.study.measures import ASKED, Measure, shown
from analysis.study.result import CellResult, plain_settings
from analysis.study.verdict import difference_text
from replknet.networks import family_named


@dataclass(frozen=True, kw_only=True)
class FamilyDifference:
    """Of one measure, between the networks of two families with the same kernels and seeds.

    Args:
        measure: What was measured.
        families: The names of both; the difference is the second minus the first.
        kernels: Those that both have.
        overall: The test of the means over these kernels, paired by seed.
        by_kernel: The same at each kernel, for its difference and interval; it is not tested.
    """

    measure: Measure
    families: tuple[str, str]
    kernels: tuple[int, ...]
    overall: Trend
    by_kernel: tuple[Trend, ...]

    @property
    def answer(self) -> str:
        """What the test allows to say."""
        found = self.overall
        if not found.num_repeats:
            return "no answer: not defined for both"
        if not found.decidable:
            return f"no answer: {found.num_repeats} seed{'s' * (found.num_repeats > 1)} cannot be significant"
        if np.isnan(found.p_value):
            return "no answer: the seeds differ by the same amount, of which the test has no p-value"
        return f"{self.families[found.rises]} higher" if found.direction else "no evidence of a difference"

    @property
    def text(self) -> str:
        """In one line."""
        question = self.measure.question
        what = question.quantity if question else self.measure.heading
        return f"{self.families[1]} against {self.families[0]}, {what}: {self.answer}."

    @property
    def sentence(self) -> str:
        """The same with its numbers."""
        found = self.overall
        if not found.num_repeats:
            return self.text
        p_value = "" if np.isnan(found.p_value) else f", p = {found.p_value:.2g}"
        return f"{self.text.removesuffix('.')} ({difference_text(found, self.measure)}{p_value})."

    def row(self) -> list[str]:
        """Of the report's table, under `COLUMNS`."""
        kernels = zip(self.kernels, self.by_kernel, strict=True)
        p_value = self.overall.p_value
        return [
            self.measure.heading,
            f"{self.families[1]} - {self.families[0]}",
            self.answer,
            difference_text(self.overall, self.measure),
            "-" if np.isnan(p_value) else f"{p_value:.2g}",
            "; ".join(f"{kernel}: {difference_text(found, self.measure)}" for kernel, found in kernels),
        ]


def architecture_text(name: str, results: Sequence[CellResult], layers: Sequence[int]) -> str:
    """Depth and width of a family's networks, such as "2-2-2-2 blocks, width by kernel 3: 8-16; 13: 7-14".

    Args:
        name: Of the family.
        results: Its cells.
        layers: Of the study, by stage.
    """
    blocks = "pairs of blocks" if family_named(name).key == REFERENCE else "blocks"
    widths = {result.cell.kernel: result.widths for result in results}
    same = len(set(widths.values())) == 1
    shown = next(iter(widths.values())) if same else "; ".join(f"{k}: {width}" for k, width in widths.items())
    return f"{'-'.join(map(str, layers))} {blocks}, width {'' if same else 'by kernel '}{shown}"


COLUMNS = ("measure", "families", "answer", "difference over the kernels", "p", "at each kernel")


def family_differences(table: pd.DataFrame, *, sequential: bool = False) -> list[FamilyDifference]:
    """Every measure with a question, for each pair of families with kernels in common.

    Of each family the first setting counts, with the parallel kernel and the shortcut if there is a choice. A seed
    counts that has all kernels of both; in both families it draws the same images in the same order.

    Args:
        table: As `study_table` makes it.
        sequential: Seeds were added until an interval was narrow; see `analysis.statistics.trend`.
    """
    return [
        found
        for measure in shown(ASKED, table)
        for pair in combinations(plain_settings(table).items(), 2)
        if (found := _difference(measure, *pair, sequential)) is not None
    ]


def _difference(
    measure: Measure, first: tuple[str, pd.DataFrame], second: tuple[str, pd.DataFrame], sequential: bool
) -> FamilyDifference | None:
    common = sorted(set(first[1]["kernel"]) & set(second[1]["kernel"]))
    if not common:
        return None
    wide = [own.set_index(["seed", "kernel"])[measure.name].unstack()[common] for _, own in (first, second)]  # noqa: PD010
    seeds = sorted({*wide[0].index, *wide[1].index})
    # Shape (seeds, kernels, families), NaN for a missing cell.
    values = np.stack([own.reindex(seeds).to_numpy(dtype=float) for own in wide], axis=-1)
    return FamilyDifference(
        measure=measure,
        families=(first[0], second[0]),
        kernels=tuple(common),
        overall=trend(values.mean(1), sequential=sequential),
        by_kernel=tuple(trend(values[:, index], sequential=sequential) for index in range(len(common))),
    )
