"""Shape bias on a page: tables, figures, and the stimuli with everybody's answers to explore."""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from analysis.images.stimuli import StimulusSet
from analysis.pages.drawing import Drawing, shown_drawings
from analysis.pages.page import Section, Table, rendered
from analysis.shape_bias.comparing import agreement_table, guessing_text, pooled_by_category
from analysis.shape_bias.result import CLUSTERS, ShapeBiasResult

_SIDE, _QUALITY = 64, 70
"""Of a thumbnail: pixels, and quality as JPEG."""
_MOST_BYTES = 3_000_000
"""Of all thumbnails; a page of more stimuli shows their names."""
_SOURCES = [("Geirhos et al. 2019", "1811.12231"), ("Geirhos et al. 2020 (error consistency)", "2006.16736")]


def shape_bias_page(
    results: Sequence[ShapeBiasResult],
    people: Sequence[ShapeBiasResult],
    summaries: Sequence[Mapping[str, Any]],
    drawings: Sequence[Drawing],
    *,
    consistency: pd.DataFrame | None,
    sensitivity: pd.DataFrame,
    stimuli: StimulusSet | None,
    command: str,
    files: Sequence[str],
    warnings: Sequence[str] = (),
) -> str:
    """The page of shape biases, of sensitivities to either cue, or of both.

    Args:
        results: On the images that all have seen; none where there are stimuli of single cues only.
        people: The same of people.
        summaries: Of both, in order; see `ShapeBiasResult.summary`.
        drawings: Figures.
        consistency: Of everybody with people, see `consistency_table`; none without people.
        sensitivity: As the command writes it; empty without ranks.
        stimuli: The images themselves, where they are at hand.
        command: What makes the page again.
        files: To be linked.
        warnings: Shown first.
    """
    sections, data = [], {}
    if results:
        data = _answers(results, people, stimuli)
        sections = [
            Section(title="Observers", tables=[_summary(summaries, results), *_intervals(results)]),
            Section(
                title="The stimuli and the answers",
                text="Share of shape decisions of each shape (row) and texture (column).",
                explorer="answers",
                tables=[_by_shape([*results, *people])],
            ),
        ]
    if consistency is not None and len(consistency):
        sections.append(Section(title="Agreement with people", tables=[_agreement(consistency)]))
    if len(sensitivity):
        sections.append(Section(title="Sensitivity to either cue", tables=[_sensitivity(sensitivity)]))
    if drawings:
        sections.append(Section(title="Figures", figures=shown_drawings(drawings)))
    several = f"{len(results)} observer{'s' * (len(results) != 1)}"
    with_people = f" and {len(people)} people" if people else ""
    seen = f"{several}{with_people} on {len(results[0].stimuli)} images" if results else "Stimuli of single cues"
    environment = next((result.environment for result in results if result.environment), {})
    return rendered(
        "results.html.j2",
        title="Shape or texture?",
        kind="Shape bias",
        summary=f"{seen}.",
        command=command,
        files=files,
        data=data,
        scripts=["answers"] if results else [],
        warnings=warnings,
        setting=_setting(results, summaries[0]) if results else [],
        sections=sections,
        environment=sorted(environment.items()),
        sources=_SOURCES,
    )


def _setting(results: Sequence[ShapeBiasResult], summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the answers were had; rules of decision and the stimuli's folder are those of networks."""
    first = results[0]
    options = first.options
    decided = [result for result in results if result.logits is not None]
    sources = "".join(f"; {source}" for source in dict.fromkeys(own.source for own in decided) if source)
    rows = [("stimuli", f"{len(first.stimuli)}, of which {first.num_images} count{sources}")]
    if decided:
        rows.append(("decision of networks", f"{options.aggregation}, ties: {options.tie}"))
    rows.append(("categories", ", ".join(first.categories)))
    rows.append(("shape bias", f"S / (S + T), {options.estimator}, congruent images {options.congruent}d"))
    rows.append(("intervals", f"95 %, bootstrap over {summary['cluster']} clusters"))
    return rows


def _number(value: float, scale: float = 1.0, digits: int = 3) -> str:
    return "-" if np.isnan(value) else f"{scale * value:.{digits}f}"


def _with_ends(value: float, low: float, high: float) -> str:
    return _number(value) if np.isnan(low) else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _summary(summaries: Sequence[Mapping[str, Any]], results: Sequence[ShapeBiasResult]) -> Table:
    ordered = sorted(summaries, key=lambda row: -row["shape_bias"] if row["shape_bias"] == row["shape_bias"] else 0.0)
    rows = [
        [
            row["observer"],
            str(row["num_common"]),
            _with_ends(row["shape_bias"], row["low"], row["high"]),
            *(str(row[name]) for name in ("num_shape", "num_texture", "num_neither")),
            *(_number(row[name], 100, 1) for name in ("coverage", "congruent_accuracy", "accuracy")),
        ]
        for row in ordered
    ]
    columns = ["observer", "images", "shape bias [95 % interval]", "shape", "texture", "neither"]
    columns += ["coverage (%)", "congruent (%)", "all (%)"]
    note = (
        "From the highest to the lowest shape bias. Coverage: images answered with shape or texture. Congruent, all: "
        f"answered with the shape. By chance: {guessing_text(results)}."
    )
    return Table(columns=columns, rows=rows, note=note)


def _agreement(consistency: pd.DataFrame) -> Table:
    rows = [
        [row["observer"], str(rank), *(_number(row[name]) for name in ("mean", "min", "max"))]
        for rank, row in enumerate(agreement_table(consistency).to_dict("records"), 1)
    ]
    note = (
        "Error consistency (Cohen's kappa of who is right on which image) with each person, of a person with the "
        "others; from the highest to the lowest mean. 0 is chance, what the two accuracies make likely; 1 is to be "
        "right on the same images."
    )
    return Table(columns=["observer", "rank", "mean", "lowest", "highest"], rows=rows, note=note)


def _intervals(results: Sequence[ShapeBiasResult]) -> list[Table]:
    if all(result.drawn_over(cluster) == "image" for result in results for cluster in CLUSTERS):
        return []  # one way, whatever its name
    rows = []
    for result in results:
        ends = [result.confidence_interval(cluster) for cluster in CLUSTERS] if result.num_images else []
        cells = ["-" if np.isnan(low) else f"[{low:.3f}, {high:.3f}] ({high - low:.3f})" for low, high in ends]
        rows += [[result.observer, _number(result.shape_bias), *cells]] if cells else []
    note = (
        "Intervals by what the bootstrap draws, with their widths: images of one object or texture are not independent."
    )
    return [Table(columns=["observer", "shape bias", *CLUSTERS], rows=rows, note=note)] if rows else []


def _by_shape(observers: Sequence[ShapeBiasResult]) -> Table:
    tables = [(result.observer, pooled_by_category([result])) for result in observers]
    categories = sorted({name for _, table in tables for name in table["shape"]})
    biases = [dict(zip(table["shape"], table["shape_bias"], strict=True)) for _, table in tables]
    rows = [[name, *(_number(own.get(name, float("nan")), digits=2) for own in biases)] for name in categories]
    return Table(
        columns=["shape", *(name for name, _ in tables)],
        rows=rows,
        note="Shape bias of each shape category. More, and by texture, in by_shape.csv, by_texture.csv and pairs.csv.",
    )


def _sensitivity(table: pd.DataFrame) -> Table:
    rows = []
    for row in table.to_dict("records"):
        cells = []
        for cue in ("shape", "texture"):
            ends = (row[f"{cue}_{name}"] for name in ("sensitivity", "low", "high"))
            cells += [_with_ends(*ends), _number(row[f"{cue}_chance"]), _number(row[f"{cue}_top1"])]
        rows.append([row["observer"], row["stimuli"], *cells, _number(row["relative_sensitivity"])])
    columns = ["observer", "stimuli", "shape: 1/rank", "by chance", "top-1"]
    columns += ["texture: 1/rank", "by chance", "top-1", "S / (S + T)"]
    note = "Mean reciprocal rank of the right class among all outputs [95 % interval]; by chance: in random order."
    return Table(columns=columns, rows=rows, note=note)


def _answers(
    results: Sequence[ShapeBiasResult], people: Sequence[ShapeBiasResult], stimuli: StimulusSet | None
) -> dict[str, Any]:
    """What the script `answers` shows; words are numbers in a list of them."""
    first = results[0]
    everyone = [*results, *people]
    words = sorted({word for own in everyone for word in (*own.responses, *own.shapes, *own.textures)})
    number = {word: index for index, word in enumerate(words)}
    return {
        "words": words,
        "stimuli": list(first.stimuli),
        "shapes": [number[name] for name in first.shapes],
        "textures": [number[name] for name in first.textures],
        "observers": [
            {
                "name": own.observer,
                "person": index >= len(results),
                "answers": [number[word] for word in own.responses],
            }
            for index, own in enumerate(everyone)
        ],
        "pictures": [] if stimuli is None else _thumbnails(stimuli, first.stimuli),
    }


def _thumbnails(stimuli: StimulusSet, names: Sequence[str]) -> list[str]:
    """Small JPEG files in base64; none where they would be too many."""
    place = {name: index for index, name in enumerate(stimuli.names)}
    found, total = [], 0
    for name in names:
        if name not in place:
            return []
        picture = Image.fromarray(stimuli.pixels(place[name])).convert("RGB")
        buffer = io.BytesIO()
        picture.resize((_SIDE, _SIDE), Image.Resampling.LANCZOS, reducing_gap=2.0).save(
            buffer, "jpeg", quality=_QUALITY, optimize=True
        )
        total += buffer.tell()
        if total > _MOST_BYTES:
            return []
        found.append(base64.b64encode(buffer.getvalue()).decode())
    return found
