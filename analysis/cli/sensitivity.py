"""What `replknet shape-bias` writes and prints of how strongly networks go by either cue."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

import pandas as pd
from rich.table import Table

from analysis.cli.console import print_line, print_notes, print_table
from analysis.cli.shape_bias_output import Comparison
from analysis.correlation import RankCorrelation, rank_correlation
from analysis.runs.folder import RunFolder
from analysis.runs.tables import write_table
from analysis.runs.texts import few
from analysis.shape_bias.result import Cluster, ShapeBiasResult
from analysis.shape_bias.sensitivity import (
    CUES,
    rank_table,
    sensitivity_row,
)

CONFLICTS, SINGLE_CUES = "cue conflicts", "single cues"


@dataclass(frozen=True, kw_only=True)
class Sensitivities:
    """Of networks on stimuli with a conflict of cues, on those of single cues, or on both.

    Args:
        table: One row for each kind of stimuli and network with ranks, with how its images went in.
        single: The results on stimuli of single cues.
        agreements: Of the rankings of networks that both kinds of stimuli give, by the names of the two.
        without: Observers of whom only responses are known.
    """

    table: pd.DataFrame
    single: Sequence[ShapeBiasResult]
    agreements: Mapping[tuple[str, str], RankCorrelation]
    without: Sequence[str]

    @classmethod
    def of(
        cls,
        comparison: Comparison | None,
        single: Sequence[ShapeBiasResult],
        cluster: Cluster,
    ) -> Self:
        """Those of conflicts are in the comparison already; of single cues the clusters are the classes."""
        conflicts, summaries = (comparison.everyone, comparison.summaries) if comparison is not None else ([], [])
        of_single: Cluster = "image" if cluster == "image" else "two-way"
        rows = [
            _row(CONFLICTS, result, cells, cluster)
            for result, cells in zip(conflicts, summaries, strict=True)
            if result.logits is not None and result.columns["conflict"].any()
        ]
        rows += [_row(SINGLE_CUES, result, sensitivity_row(result, of_single), of_single) for result in single]
        biases = {result.observer: result.shape_bias for result in conflicts}
        return cls(
            table=pd.DataFrame(rows),
            single=single,
            agreements=_agreements(rows, biases),
            without=[result.observer for result in conflicts if result.logits is None],
        )


def _row(kind: str, result: ShapeBiasResult, cells: Mapping[str, Any], cluster: Cluster) -> dict[str, Any]:
    own = result.preprocessing
    return {
        "observer": result.observer,
        "stimuli": kind,
        **{name: value for name, value in cells.items() if name in _COLUMNS},
        "num_outputs": 0 if result.logits is None else result.logits.shape[1],
        "cluster": result.drawn_over(cluster),
        "num_skipped": len(result.skipped),
        "input_size": own.get("input_size"),
        "resize": own.get("resize", ""),
        **{name: " ".join(f"{value:.6g}" for value in own.get(name, ())) for name in ("mean", "std")},
    }


_COLUMNS = {
    "relative_sensitivity",
    *(
        f"{cue}_{name}"
        for cue in CUES
        for name in ("sensitivity", "low", "high", "top1", "top1_low", "top1_high", "chance", "images")
    ),
}


def _agreements(
    rows: Sequence[Mapping[str, Any]], biases: Mapping[str, float]
) -> dict[tuple[str, str], RankCorrelation]:
    by_kind = [{row["observer"]: row for row in rows if row["stimuli"] == kind} for kind in (CONFLICTS, SINGLE_CUES)]
    pairs = {name: (row, by_kind[1][name]) for name, row in by_kind[0].items() if name in by_kind[1]}
    if not pairs:
        return {}
    ratios = [single["relative_sensitivity"] for _, single in pairs.values()]
    names = (f"shape bias of {CONFLICTS}", f"S / (S + T) of {SINGLE_CUES}")
    found = {names: rank_correlation([biases[name] for name in pairs], ratios)}
    for cue in CUES:
        column = f"{cue}_sensitivity"
        first, second = ([pair[place][column] for pair in pairs.values()] for place in (0, 1))
        what = f"{cue} sensitivity to"
        found[f"{what} {CONFLICTS}", f"{what} {SINGLE_CUES}"] = rank_correlation(first, second)
    return found


def write_sensitivities(found: Sensitivities, folder: RunFolder) -> None:
    """The tables; nothing without ranks."""
    if found.table.empty:
        return
    tables = {"sensitivity": found.table}
    if found.single:
        ranks = pd.concat([rank_table(result) for result in found.single])
        tables["ranks"] = ranks
        names = ["observer", "cue", "category"]
        tables["sensitivity_by_class"] = (
            ranks.assign(top1=ranks["rank"] == 1, images=1)
            .groupby(names, sort=False, as_index=False)
            .agg(sensitivity=("reciprocal_rank", "mean"), top1=("top1", "mean"), num_images=("images", "sum"))
        )
    if found.agreements:
        tables["rankings"] = pd.DataFrame(
            [{"first": first, "second": second, **asdict(own)} for (first, second), own in found.agreements.items()]
        )
    for name, table in tables.items():
        with folder.replace(f"{name}.csv") as path:
            write_table(table, path)


def sensitivity_drawings(found: Sensitivities) -> list[Any]:
    """The figure, a `Drawing`, where there are several networks or stimuli of single cues."""
    if found.table.empty or (not found.single and len(found.table) < 2):
        return []
    from analysis.pages.drawing import Drawing
    from analysis.shape_bias.plots import sensitivity_figure

    caption = "How strongly either cue is used."
    return [Drawing(name="sensitivity", caption=caption, draw=lambda: sensitivity_figure(found.table))]


def report_sensitivities(found: Sensitivities) -> None:
    """The table, what it means, and how the images went in."""
    if found.without:
        print_notes([f"no ranks of {few(found.without)}: only responses are known, not logits"])
    if found.table.empty:
        return
    table = Table(
        "observer",
        "stimuli",
        "images",
        "shape: 1/rank [95 % interval]",
        "top-1",
        "texture: 1/rank [95 % interval]",
        "top-1",
        "S / (S + T)",
    )
    for row in found.table.to_dict("records"):
        cells = []
        for cue in CUES:
            value, low, high, top1 = (row[f"{cue}_{name}"] for name in ("sensitivity", "low", "high", "top1"))
            missing = math.isnan(value)
            cells += ["-" if missing else f"{value:.4f} [{low:.3f}, {high:.3f}]", "-" if missing else f"{top1:.3f}"]
        counts = [row[f"{cue}_images"] for cue in CUES]
        images = f"{counts[0]}" if row["stimuli"] == CONFLICTS else f"{counts[0]} + {counts[1]}"
        part = row["relative_sensitivity"]
        table.add_row(row["observer"], row["stimuli"], images, *cells, "-" if math.isnan(part) else f"{part:.4f}")
    print_table(table)
    print_line(
        "Sensitivity: mean reciprocal rank of the right class among all outputs of the network (equal logits count "
        "against it)."
    )
    for kind, own in found.table.groupby("stimuli", sort=False):
        chances = [f"{own[f'{cue}_chance'].iloc[0]:.4f} for the {cue}" for cue in CUES]
        clusters, as_they_are = own["cluster"].iloc[0], ", those of that size as they are"
        if kind == SINGLE_CUES:
            clusters, as_they_are = "image" if clusters == "image" else "class", ""
        ways = sorted(
            {
                "their own size" if math.isnan(size) else f"{size:.0f} px ({resize}{as_they_are})"
                for resize, size in zip(own["resize"], own["input_size"].astype(float), strict=True)
            }
        )
        print_line(
            f"{str(kind).capitalize()}: outputs in random order give {' and '.join(chances)} "
            f"({own['observer'].iloc[0]}); bootstrap over {clusters} clusters; images go in at "
            f"{'; '.join(ways)}, with each network's mean and std."
        )
    for (first, second), agreement in found.agreements.items():
        tau = "is not defined"
        if not math.isnan(agreement.tau):
            tau = f"= {agreement.tau:.2f} [{agreement.low:.2f}, {agreement.high:.2f}] (p = {agreement.p_value:.3g})"
        print_line(f"Rankings by {first} and by {second}: Kendall's tau {tau}, n = {agreement.num} networks")
