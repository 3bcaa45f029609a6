"""`replknet shape-bias`."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

from analysis.cli.console import (
    MODEL_HELP,
    BatchSize,
    Checkpoint,
    Device,
    Dtype,
    Pretrained,
    claim,
    clear_errors_for_files,
    computed_on,
    folder_name,
    load_models,
    parse_numbers,
    print_table,
    progress_bar,
)
from analysis.images.stimuli import StimulusSet, load_stimuli, missing_stimuli
from analysis.models.loaded import LoadedModel
from analysis.runs.processes import by_first
from analysis.runs.results import ResultError
from analysis.runs.writing import write_json
from analysis.shape_bias.categories import AGGREGATIONS, IMAGENET, TIES, LabelMapping
from analysis.shape_bias.comparing import HumanReference, compare_shape_bias, consistency_table, human_reference
from analysis.shape_bias.measuring import check_model, evaluate_shape_bias, fingerprint_of, preprocessing_of
from analysis.shape_bias.responses import read_observers, read_responses, write_responses
from analysis.shape_bias.result import CLUSTERS, ESTIMATORS, LOW_CONGRUENT_ACCURACY, ShapeBiasOptions, ShapeBiasResult

_RAW = "raw-responses"


_TABLES = ("shape_bias", "decisions", "by_shape", "by_texture", "pairs", "confusion", "comparisons", "consistency")


_FIGURES = ("shape_bias", "categories", "consistency")


_PER_OBSERVER = ("pairs", "confusion")


app = typer.Typer()


@app.callback()
def _group() -> None:
    """So that the command keeps its name."""


@app.command()
def shape_bias(
    model: Annotated[
        list[str],
        typer.Argument(help=f"{MODEL_HELP} Or a CSV of raw responses."),
    ],
    out: Annotated[Path, typer.Option(help="Folder for results, tables and figures.")],
    stimuli: Annotated[
        Path | None, typer.Option(help="Folder of stimuli named <shape><i>-<texture><j>, e.g. cat7-elephant1.png.")
    ] = None,
    humans: Annotated[Path | None, typer.Option(help="Folder of raw responses of people, one CSV each.")] = None,
    checkpoint: Checkpoint = None,
    kernel_sizes: Annotated[
        list[str] | None, typer.Option(help="Kernels of a RepLKNet, e.g. 31,29,27,13; may be given several times.")
    ] = None,
    small_kernel: Annotated[int | None, typer.Option(help="Parallel kernel of a RepLKNet; 0 for none.")] = None,
    pretrained: Pretrained = True,
    aggregation: Annotated[str, typer.Option(help=f"{', '.join(AGGREGATIONS)}.")] = "mean-probability",
    estimator: Annotated[str, typer.Option(help=f"{', '.join(ESTIMATORS)}.")] = "pooled",
    cluster: Annotated[str, typer.Option(help=f"What the bootstrap draws: {', '.join(CLUSTERS)}.")] = "two-way",
    tie: Annotated[str, typer.Option(help="Equal scores: the first category, or none (no response).")] = "first",
    congruent: Annotated[str, typer.Option(help="Images with shape = texture: exclude or include.")] = "exclude",
    labels: Annotated[
        Path | None, typer.Option(help="CSV with class_index and category, for models with other classes.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Input size in pixels that replaces the model's own.", min=1)] = None,
    mean: Annotated[str | None, typer.Option(help="Three numbers that replace the model's own.")] = None,
    std: Annotated[str | None, typer.Option(help="Three numbers that replace the model's own.")] = None,
    batch_size: BatchSize = 16,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Annotated[int, typer.Option(help="Of random weights.", min=0)] = 0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another run's tables in OUT; logits that fit are kept.")
    ] = False,
) -> None:
    """Measure shape bias. The same command again resumes, or answers from the logits that are saved."""
    for name, value, allowed in (
        ("--aggregation", aggregation, AGGREGATIONS),
        ("--tie", tie, TIES),
        ("--cluster", cluster, CLUSTERS),
        ("--estimator", estimator, ESTIMATORS),
        ("--congruent", congruent, ("exclude", "include")),
    ):
        if value not in allowed:
            raise ValueError(f"{name}={value}: expected one of {', '.join(allowed)}")
    chosen_options: dict[str, Any] = {
        "aggregation": aggregation,
        "tie": tie,
        "estimator": estimator,
        "congruent": congruent,
    }
    options = ShapeBiasOptions(**chosen_options)
    specs = [spec for spec in model if not spec.endswith(".csv")]
    if specs and stimuli is None:
        raise ValueError(f"--stimuli: {specs[0]} needs a folder of stimuli")
    loaded = (
        load_models(specs, checkpoint, kernel_sizes, small_kernel, pretrained, seed, False, device, dtype)
        if specs
        else []
    )
    mapping = _own_mapping(loaded) if labels is None else LabelMapping.from_csv(labels)
    recorded = [read_responses(spec, categories=mapping.categories) for spec in model if spec.endswith(".csv")]
    recorded = [result.with_options(**dataclasses.asdict(options)) for result in recorded]
    people = [] if humans is None else read_observers(humans, categories=mapping.categories)
    people = [human.with_options(**dataclasses.asdict(options)) for human in people]
    chosen = None if stimuli is None or not specs else load_stimuli(stimuli)
    names = [item.name for item in loaded] + [result.observer for result in recorded]
    if len(set(names)) < len(names):
        raise ValueError(f"model: {', '.join(names)} are not all different")
    changes: dict[str, Any] = {
        "mean": parse_numbers("--mean", mean),
        "std": parse_numbers("--std", std),
        "input_size": size,
    }
    _check_common(chosen, [*recorded, *people])
    folders = [folder_name(item.name) for item in loaded]
    keys = [
        _fingerprint(item, chosen, mapping, changes, out / folder)
        for item, folder in zip(loaded, folders, strict=True)
        if chosen is not None
    ]
    settings = {
        "models": [[item.name, key] for item, key in zip(loaded, keys, strict=True)],
        "responses": [[result.observer, result.responses_hash()] for result in recorded],
        "humans": [[human.observer, human.responses_hash()] for human in people],
        "labels": [list(pair) for pair in mapping.indices],
        "cluster": cluster,
        **dataclasses.asdict(options),
        **computed_on(device, dtype),
    }
    with clear_errors_for_files(out):
        keep = [f for f, key in zip(folders, keys, strict=True) if _still_valid(out / f, key)]
        keep += [f"{folder}.partial.npz" for folder in folders]
        claim(out, "shape-bias", settings, _outputs(names, folders), overwrite, keep)
        results = []
        for item, key in zip(loaded, keys, strict=True):
            if chosen is not None:
                results.append(_evaluate(item, chosen, key, mapping, options, changes, batch_size, out, overwrite))
        results += recorded
        summaries = [result.summary(cluster) for result in (*results, *people)]  # type: ignore[arg-type]
        consistency = consistency_table([*results, *people], people)
        reference = human_reference(people) if len(people) > 1 else None
        by_first(lambda: _write_tables(results, people, summaries, consistency, reference, out))
        by_first(lambda: _write_figures(results, people, consistency, reference, out, cluster))
    notes = [note for item in loaded for note in item.notes]
    if chosen is not None:
        notes += chosen.notes
    for result in (*recorded, *people):
        missing = missing_stimuli(result.stimuli)
        notes += [f"{result.observer}: {missing}"] if missing else []
    skipped = dict.fromkeys(entry for result in results for entry in result.skipped)
    notes += [f"skipped {name}: {reason}" for name, reason in skipped]
    _report(results, summaries, consistency, reference, notes)
    typer.echo(f"results, tables and figures: {out}")


def _own_mapping(loaded: Sequence[LoadedModel]) -> LabelMapping:
    """ImageNet's, or that of the classes that all the models name."""
    classes = {item.classes for item in loaded}
    if classes in (set(), {()}):
        return IMAGENET
    if len(classes) > 1:
        raise ValueError(f"model: {', '.join(item.name for item in loaded)} have different classes; pass --labels")
    (own,) = classes
    return LabelMapping.from_dict(dict(enumerate(own)), len(own))


def _outputs(names: Sequence[str], folders: Sequence[str]) -> list[str]:
    """Everything a run with these observers and these networks may write in OUT."""
    found = ["summary.json", _RAW, *(f"{table}.csv" for table in _TABLES), *folders]
    found += [f"{folder}.partial.npz" for folder in folders]
    suffixes = [""] if len(names) == 1 else [f"_{folder_name(name)}" for name in names]
    figures = [f"{kind}{suffix}" for kind in _PER_OBSERVER for suffix in suffixes] + list(_FIGURES)
    return found + [f"{figure}.{kind}" for figure in figures for kind in ("png", "pdf")]


def _fingerprint(
    item: LoadedModel, chosen: StimulusSet, mapping: LabelMapping, changes: dict[str, Any], target: Path
) -> str:
    """The fingerprint of a model that can answer, or has answered already."""
    preprocessing = preprocessing_of(item, **changes)
    key = fingerprint_of(item.module, preprocessing, chosen)
    if _still_valid(target, key):
        ShapeBiasResult.load(target).with_mapping(mapping)
    else:
        check_model(item, chosen, mapping, preprocessing)
    return key


def _still_valid(target: Path, key: str) -> bool:
    """Whether the logits that this network would give again are saved."""
    try:
        return ShapeBiasResult.load(target).fingerprint == key
    except (OSError, ResultError):
        return False


def _check_common(chosen: StimulusSet | None, others: Sequence[ShapeBiasResult]) -> None:
    """Refuse observers that have not seen the same images before anything runs."""
    seen = [set(result.stimuli) for result in others]
    names = [result.observer for result in others]
    if chosen is not None:
        seen.insert(0, set(chosen.names))
        names.insert(0, "--stimuli")
    for name, own in zip(names[1:], seen[1:], strict=True):
        if not own & seen[0]:
            raise ValueError(f"{names[0]} and {name} have no image in common")


def _evaluate(
    item: LoadedModel,
    chosen: StimulusSet,
    key: str,
    mapping: LabelMapping,
    options: ShapeBiasOptions,
    changes: dict[str, Any],
    batch_size: int,
    out: Path,
    overwrite: bool,
) -> ShapeBiasResult:
    target = out / folder_name(item.name)
    if (target / "result.json").is_file():
        try:
            known = ShapeBiasResult.load(target)
        except ResultError as error:
            if not overwrite:
                raise ResultError(f"{error}; --overwrite makes it anew") from error
            known = None
        if known is not None and known.fingerprint == key:
            renewed = known.with_mapping(mapping).with_options(**dataclasses.asdict(options))
            if (renewed.options, renewed.mapping) != (known.options, known.mapping):
                by_first(lambda: renewed.save(target, overwrite=True))
            return renewed
    with progress_bar(item.name) as progress, _clear_errors_of(item.name):
        result = evaluate_shape_bias(
            item,
            chosen,
            mapping=mapping,
            options=options,
            batch_size=batch_size,
            progress=progress,
            partial=out / f"{target.name}.partial.npz",
            **changes,
        )
    by_first(lambda: result.save(target, overwrite=True))
    return result


@contextmanager
def _clear_errors_of(name: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, OSError):
        raise
    except Exception as error:  # a user's own code
        raise ValueError(f"model: {name} failed with {type(error).__name__}: {error}") from error


def _write_tables(
    results: Sequence[ShapeBiasResult],
    people: Sequence[ShapeBiasResult],
    summaries: Sequence[dict[str, Any]],
    consistency: pd.DataFrame,
    reference: HumanReference | None,
    out: Path,
) -> None:
    everyone = [*results, *people]
    tables = {
        "shape_bias": pd.DataFrame(summaries),
        "decisions": pd.concat([result.decisions() for result in everyone]),
        "by_shape": _labelled(everyone, lambda result: result.by_category("shape")),
        "by_texture": _labelled(everyone, lambda result: result.by_category("texture")),
        "pairs": _labelled(everyone, lambda result: result.pair_map()),
        "confusion": _labelled(everyone, lambda result: result.confusion().reset_index()),
    }
    if any(result.num_images for result in results):
        pairs = [(a, b) for index, a in enumerate(results) for b in results[index + 1 :]]
        if pairs:
            rows = [dataclasses.asdict(compare_shape_bias(a, b, cluster=summaries[0]["cluster"])) for a, b in pairs]
            tables["comparisons"] = pd.DataFrame(rows)
    if len(consistency):
        tables["consistency"] = consistency
    for name, table in tables.items():
        table.to_csv(out / f"{name}.csv", index=False)
    (out / _RAW).mkdir(exist_ok=True)
    for result in results:
        write_responses(result, out / _RAW / f"cue-conflict_{folder_name(result.observer)}_session_1.csv")
    summary: dict[str, Any] = {"observers": summaries}
    if reference is not None:
        summary["humans"] = dataclasses.asdict(reference)
    write_json(out / "summary.json", summary)


def _labelled(results: Sequence[ShapeBiasResult], view: Callable[[ShapeBiasResult], pd.DataFrame]) -> pd.DataFrame:
    tables: list[pd.DataFrame] = []
    for result in results:
        table = view(result)
        table.insert(0, "observer", result.observer)
        tables.append(table)
    return pd.concat(tables)


def _write_figures(
    results: Sequence[ShapeBiasResult],
    people: Sequence[ShapeBiasResult],
    consistency: pd.DataFrame,
    reference: HumanReference | None,
    out: Path,
    cluster: Any,
) -> None:
    from matplotlib.figure import Figure

    from analysis.figures import paper_style
    from analysis.shape_bias import plots as figures

    def panel(width: float, height: float) -> Any:
        return Figure(figsize=(width, height), layout="constrained").add_subplot()

    with paper_style():
        made: dict[str, Any] = {}
        if any(result.num_images for result in results):
            made["shape_bias"] = figures.shape_bias_figure(results, humans=people, cluster=cluster)
            rows = len(results) + bool(people)
            made["categories"] = figures.plot_category_box(
                results, humans=people, ax=panel(4.0, 0.7 + 0.4 * rows)
            ).figure
        for result in results:
            suffix = "" if len(results) == 1 else f"_{folder_name(result.observer)}"
            if result.num_images:
                made[f"pairs{suffix}"] = figures.plot_pair_map(result, ax=panel(5.2, 4.6)).figure
            made[f"confusion{suffix}"] = figures.plot_confusion(
                result, ax=panel(5.2, 1.9 + 0.17 * len(set(result.shapes)))
            ).figure
        if reference is not None:
            own = consistency[consistency["first"].isin([result.observer for result in results])]
            ax = panel(4.0, 1.3 + 0.5 * len(results))
            made["consistency"] = figures.plot_consistency(own, reference, ax=ax).figure
        for name, figure in made.items():
            for suffix in ("png", "pdf"):
                figure.savefig(out / f"{name}.{suffix}")


def _report(
    results: Sequence[ShapeBiasResult],
    summaries: Sequence[dict[str, Any]],
    consistency: pd.DataFrame,
    reference: HumanReference | None,
    notes: Sequence[str],
) -> None:
    options, cluster = results[0].options, summaries[0]["cluster"]
    table = Table(
        "observer", "shape bias [95 % interval]", "shape", "texture", "neither", "coverage", "congruent", "all"
    )
    for row in summaries:
        bias = f"{row['shape_bias']:.4f} [{row['low']:.3f}, {row['high']:.3f}]"
        shares = (row[name] for name in ("coverage", "congruent_accuracy", "accuracy"))
        table.add_row(
            row["observer"],
            "-" if math.isnan(row["shape_bias"]) else bias,
            *(str(row[name]) for name in ("num_shape", "num_texture", "num_neither")),
            *("-" if math.isnan(share) else f"{100 * share:.1f} %" for share in shares),
        )
    print_table(table)
    console = Console(stderr=True)

    def print_line(text: str) -> None:
        console.print(text, highlight=False, markup=False, soft_wrap=True)

    print_line(
        f"Shape bias {options.estimator}, congruent images {options.congruent}d, bootstrap over {cluster} clusters; "
        "coverage: images answered with shape or texture; congruent, all: answered with the shape."
    )
    if reference is not None:
        print_line(
            f"People: {reference.num_shape} / {reference.num_texture} = {reference.shape_bias:.4f} pooled, "
            f"{reference.shape_bias_range[0]:.4f} to {reference.shape_bias_range[1]:.4f} one by one; error consistency "
            f"with each other {reference.kappa:.4f} (noise ceiling)."
        )
        means = consistency.groupby("first")["kappa"].mean()
        for result in results:
            print_line(f"{result.observer}: mean error consistency with people {means[result.observer]:.4f}")
    for note in notes:
        print_line(f"note: {note}")
    for result in results:
        if result.congruent_accuracy < LOW_CONGRUENT_ACCURACY:
            print_line(
                f"warning: {result.observer} names only {100 * result.congruent_accuracy:.1f} % of the images without "
                "conflict correctly; its shape bias means little"
            )
        if not result.num_images:
            print_line(f"note: no image of {result.observer} has a conflict of shape and texture: no shape bias")
