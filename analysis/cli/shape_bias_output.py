"""What `replknet shape-bias` writes and prints."""

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self

import pandas as pd
from rich.table import Table

from analysis.cli.console import print_line, print_notes, print_table
from analysis.runs.folder import RunFolder, folder_name
from analysis.runs.tables import write_table
from analysis.runs.texts import few
from analysis.runs.writing import write_json
from analysis.shape_bias.categories import NO_RESPONSE
from analysis.shape_bias.comparing import (
    HumanReference,
    agreement_table,
    common_images,
    compare_shape_bias,
    consistency_table,
    guessing_text,
    human_reference,
)
from analysis.shape_bias.methods import bias_warnings
from analysis.shape_bias.responses import write_responses
from analysis.shape_bias.result import ShapeBiasResult
from analysis.shape_bias.sensitivity import sensitivity_row

RAW = "raw-responses"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Observers on the images that all of them have seen."""

    results: list[ShapeBiasResult]
    people: list[ShapeBiasResult]
    seen: list[ShapeBiasResult]
    """The same observers, results first, on all the images that each has seen."""
    summaries: list[dict[str, Any]]
    consistency: pd.DataFrame
    reference: HumanReference | None
    cluster: Any

    @classmethod
    def of(cls, results: Sequence[ShapeBiasResult], people: Sequence[ShapeBiasResult], cluster: Any) -> Self:
        seen = [*results, *people]
        everyone = common_images(seen)
        people = everyone[len(results) :]
        summaries = [
            {
                **own.summary(cluster),
                **sensitivity_row(own, cluster),
                "num_common": len(own.stimuli),
                "num_seen": len(whole.stimuli),
            }
            for own, whole in zip(everyone, seen, strict=True)
        ]
        return cls(
            results=everyone[: len(results)],
            people=people,
            seen=seen,
            summaries=summaries,
            consistency=consistency_table(everyone, people, cluster),
            reference=human_reference(people) if len(people) > 1 else None,
            cluster=cluster,
        )

    @property
    def everyone(self) -> list[ShapeBiasResult]:
        return [*self.results, *self.people]


def write_tables(comparison: Comparison, folder: RunFolder) -> None:
    """All on the images that all have seen, but the raw responses, which hold every image that one has seen."""
    everyone, results = comparison.everyone, comparison.results
    confusion = _labelled(everyone, lambda result: result.confusion().reset_index())
    answers = [name for name in confusion.columns if name not in ("observer", "shape", NO_RESPONSE)]
    confusion = confusion[["observer", "shape", *answers, NO_RESPONSE]].fillna(0)
    confusion = confusion.astype(dict.fromkeys(answers, int))
    tables = {
        "shape_bias": pd.DataFrame(comparison.summaries),
        "decisions": pd.concat([result.decisions() for result in everyone]),
        "by_shape": _labelled(everyone, lambda result: result.by_category("shape")),
        "by_texture": _labelled(everyone, lambda result: result.by_category("texture")),
        "pairs": _labelled(everyone, lambda result: result.pair_map()),
        "confusion": confusion,
    }
    if any(result.num_images for result in results):
        pairs = [(a, b) for index, a in enumerate(results) for b in results[index + 1 :]]
        if pairs:
            rows = [asdict(compare_shape_bias(a, b, cluster=comparison.cluster)) for a, b in pairs]
            tables["comparisons"] = pd.DataFrame(rows)
    if len(comparison.consistency):
        tables["consistency"] = comparison.consistency
    for name, table in tables.items():
        with folder.replace(f"{name}.csv") as path:
            write_table(table, path)
    with folder.replace(RAW) as path:
        path.mkdir()
        for result in comparison.seen[: len(results)]:
            write_responses(result, path / f"cue-conflict_{folder_name(result.observer)}_session_1.csv")
    summary: dict[str, Any] = {"observers": comparison.summaries}
    if comparison.reference is not None:
        summary["humans"] = asdict(comparison.reference)
    write_json(folder.add("summary.json"), summary)


def _labelled(results: Sequence[ShapeBiasResult], view: Callable[[ShapeBiasResult], pd.DataFrame]) -> pd.DataFrame:
    tables: list[pd.DataFrame] = []
    for result in results:
        table = view(result)
        table.insert(0, "observer", result.observer)
        tables.append(table)
    return pd.concat(tables)


def drawings_of(comparison: Comparison) -> list[Any]:
    """The figures of a comparison, each a `Drawing`."""
    from analysis.figures import cells_figure
    from analysis.pages.drawing import Drawing
    from analysis.shape_bias import plots as figures

    results, people = comparison.results, comparison.people
    found: list[Any] = []

    def add(name: str, caption: str, draw: Callable[[], Any]) -> None:
        found.append(Drawing(name=name, caption=caption, draw=draw))

    if any(result.num_images for result in results):
        by_category = partial(figures.shape_bias_figure, results, humans=people, cluster=comparison.cluster)
        add("shape_bias", "Texture decisions by shape category.", by_category)
        add("categories", "Shape bias of the shape categories.", partial(figures.box_figure, results, humans=people))
    for result in results:
        suffix = "" if len(results) == 1 else f"_{folder_name(result.observer)}"
        if result.num_images:
            caption = f"{result.observer}: shape bias of every pair of shape and texture."
            add(f"pairs{suffix}", caption, partial(cells_figure, figures.plot_pair_map, [result]))
        caption = f"{result.observer}: what was answered to each shape."
        add(f"confusion{suffix}", caption, partial(cells_figure, figures.plot_confusion, [result]))
    if comparison.reference is not None:
        own = comparison.consistency
        own = own[own["first"].isin([result.observer for result in results])]
        draw = partial(figures.consistency_figure, own, comparison.reference)
        add("consistency", "Error consistency with people.", draw)
    return found


def report(comparison: Comparison, notes: Sequence[str]) -> None:
    """The table and what there is to say about it."""
    results, reference = comparison.results, comparison.reference
    options = results[0].options
    table = Table(
        "observer",
        "images",
        "shape bias [95 % interval]",
        "shape",
        "texture",
        "neither",
        "coverage",
        "congruent",
        "all",
    )
    for row in comparison.summaries:
        bias = f"{row['shape_bias']:.4f} [{row['low']:.3f}, {row['high']:.3f}]"
        shares = (row[name] for name in ("coverage", "congruent_accuracy", "accuracy"))
        part = "" if row["num_common"] == row["num_seen"] else f" of {row['num_seen']}"
        table.add_row(
            row["observer"],
            f"{row['num_common']}{part}",
            "-" if math.isnan(row["shape_bias"]) else bias,
            *(str(row[name]) for name in ("num_shape", "num_texture", "num_neither")),
            *("-" if math.isnan(share) else f"{100 * share:.1f} %" for share in shares),
        )
    print_table(table)
    if len(comparison.everyone) > 1:
        print_line(f"Everyone is compared on the {len(results[0].stimuli)} images that all have seen.")
    print_line(
        f"Shape bias {options.estimator}, congruent images {options.congruent}d, bootstrap over "
        f"{comparison.summaries[0]['cluster']} clusters; coverage: images answered with shape or texture; "
        f"congruent, all: answered with the shape; {guessing_text(results)}."
    )
    if reference is not None:
        print_line(
            f"People: {reference.num_shape} shape, {reference.num_texture} texture: shape bias "
            f"{reference.shape_bias:.4f} pooled, "
            f"{reference.shape_bias_range[0]:.4f} to {reference.shape_bias_range[1]:.4f} one by one; error consistency "
            f"with each other {reference.kappa:.4f} (noise ceiling; 0 is chance)."
        )
        names = [result.observer for result in results]
        agreement = agreement_table(comparison.consistency)
        for name, mean in agreement[agreement["observer"].isin(names)][["observer", "mean"]].itertuples(index=False):
            print_line(f"{name}: mean error consistency with people {mean:.4f}")
    print_notes([*notes, *remarks(comparison)])
    print_notes(bias_warnings(results), "warning")


def remarks(comparison: Comparison) -> list[str]:
    """What a reader of the numbers has to know: what is left out, or counts as neither."""
    results = comparison.results
    left_out = [(row["observer"], row["num_seen"] - row["num_common"], row["num_seen"]) for row in comparison.summaries]
    notes = note_of_counts("images that not all have seen are left out", left_out)
    outside = [_outside(result) for result in (*results, *comparison.people)]
    counts = [
        (result.observer, found.total(), len(result.stimuli))
        for result, found in zip(comparison.everyone, outside, strict=True)
    ]
    words = sum(outside, Counter[str]())
    common = ", ".join([f"{name} {count}" for name, count in words.most_common(3)] + ["..."] * (len(words) > 3))
    notes += note_of_counts(f"answers outside the categories count as neither ({common})", counts)
    silent = [result.observer for result in results if not result.num_images]
    if silent:
        notes.append(f"no image of {few(silent)} has a conflict of shape and texture: no shape bias")
    return notes


def _outside(result: ShapeBiasResult) -> Counter[str]:
    return Counter(name for name in result.responses if name not in (*result.categories, NO_RESPONSE))


def note_of_counts(what: str, counts: Iterable[tuple[str, int, int]]) -> list[str]:
    """A note of the observers with a part that is not 0, those with equal numbers together; none of none.

    Args:
        what: The part.
        counts: Of each observer the name, the part and the whole.
    """
    names: dict[str, list[str]] = {}
    for name, part, whole in counts:
        if part:
            names.setdefault(f"{part} of {whole}", []).append(name)
    shown = [
        f"{own[0]} {share}" if len(own) == 1 else f"{share} of each of {few(own, 4)}" for share, own in names.items()
    ]
    return [f"{what}: {'; '.join(shown)}"] if shown else []
