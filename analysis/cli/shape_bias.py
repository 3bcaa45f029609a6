"""`replknet shape-bias`."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Self

import pandas as pd
import typer
from rich.table import Table

from analysis.cli.console import print_line, print_notes, print_table, progress_bar, run_folder, skipped_notes
from analysis.cli.options import (
    MODEL_HELP,
    BatchSize,
    Fields,
    Labels,
    ModelChoice,
    Out,
    Overwrite,
    Workers,
    parse_three,
    takes,
)
from analysis.images.stimuli import StimulusSet, load_stimuli, missing_stimuli
from analysis.models.loaded import LoadedModel
from analysis.runs.folder import RunFolder, folder_name, folder_names
from analysis.runs.identity import NetworkIdentity, identify
from analysis.runs.processes import by_first
from analysis.runs.results import ResultError
from analysis.runs.writing import write_json
from analysis.shape_bias.categories import IMAGENET, LabelMapping
from analysis.shape_bias.comparing import HumanReference, compare_shape_bias, consistency_table, human_reference
from analysis.shape_bias.measuring import check_model, evaluate_shape_bias, fingerprint_of, preprocessing_of
from analysis.shape_bias.responses import read_observers, read_responses, write_responses
from analysis.shape_bias.result import CLUSTERS, LOW_CONGRUENT_ACCURACY, ShapeBiasOptions, ShapeBiasResult

_RAW = "raw-responses"
app = typer.Typer()


@app.callback()
def _group() -> None:
    """So that the command keeps its name."""


@app.command()
@takes(choice=Fields(ModelChoice), options=Fields(ShapeBiasOptions))
def shape_bias(
    model: Annotated[list[str], typer.Argument(help=f"{MODEL_HELP} Or a CSV of raw responses.")],
    out: Out,
    choice: ModelChoice,
    options: ShapeBiasOptions,
    stimuli: Annotated[
        Path | None, typer.Option(help="Folder of stimuli named <shape><i>-<texture><j>, e.g. cat7-elephant1.png.")
    ] = None,
    humans: Annotated[Path | None, typer.Option(help="Folder of raw responses of people, one CSV each.")] = None,
    cluster: Annotated[str, typer.Option(help=f"What the bootstrap draws: {', '.join(CLUSTERS)}.")] = "two-way",
    labels: Labels = None,
    size: Annotated[int | None, typer.Option(help="Input size in pixels that replaces the model's own.", min=1)] = None,
    mean: Annotated[str | None, typer.Option(help="Three numbers that replace the model's own.")] = None,
    std: Annotated[str | None, typer.Option(help="Three numbers that replace the model's own.")] = None,
    batch_size: BatchSize = 16,
    workers: Workers = 0,
    overwrite: Overwrite = False,
) -> None:
    """Measure shape bias. The same command again resumes, or answers from the logits that are saved.

    With --overwrite, logits of another run that fit are kept.
    """
    if cluster not in CLUSTERS:
        raise ValueError(f"cluster={cluster}: expected one of {', '.join(CLUSTERS)}")
    specs = [spec for spec in model if not spec.endswith(".csv")]
    if specs and stimuli is None:
        raise ValueError(f"--stimuli: {specs[0]} needs a folder of stimuli")
    loaded = choice.load(specs) if specs else []
    mapping = _own_mapping(loaded) if labels is None else LabelMapping.from_csv(labels)
    recorded = [read_responses(spec, categories=mapping.categories) for spec in model if spec.endswith(".csv")]
    people = [] if humans is None else read_observers(humans, categories=mapping.categories)
    recorded, people = ([result.with_options(**asdict(options)) for result in group] for group in (recorded, people))
    chosen = None if stimuli is None or not specs else load_stimuli(stimuli)
    names = [item.name for item in loaded] + [result.observer for result in recorded]
    if len(set(names)) < len(names):
        raise ValueError(f"model: {', '.join(names)} are not all different")
    changes: dict[str, Any] = {
        "mean": parse_three("--mean", mean),
        "std": parse_three("--std", std),
        "input_size": size,
    }
    _check_common(chosen, [*recorded, *people])
    networks = [
        _Network.known(item, folder, chosen, mapping, changes, out)
        for item, folder in zip(loaded, folder_names([item.name for item in loaded], reserved=(_RAW,)), strict=True)
        if chosen is not None
    ]
    settings = {
        "models": [[network.loaded.name, network.fingerprint] for network in networks],
        "responses": [[result.observer, result.responses_hash()] for result in recorded],
        "humans": [[human.observer, human.responses_hash()] for human in people],
        "labels": [list(pair) for pair in mapping.indices],
        "cluster": cluster,
        **asdict(options),
        **choice.computed_on(),
    }
    keep = [network.folder for network in networks if network.saved is not None]
    keep += [f"{network.folder}.partial.npz" for network in networks]
    with run_folder(out, "shape-bias", settings, overwrite=overwrite, keep=keep) as folder:
        results = [
            _evaluate(network, chosen, mapping, options, changes, batch_size, workers, folder, overwrite)
            for network in networks
            if chosen is not None
        ]
        results += recorded
        summaries = [result.summary(cluster) for result in (*results, *people)]
        consistency = consistency_table([*results, *people], people)
        reference = human_reference(people) if len(people) > 1 else None
        by_first(lambda: _write_tables(results, people, summaries, consistency, reference, folder))
        by_first(lambda: _write_figures(results, people, consistency, reference, folder, cluster))
    notes = [note for item in loaded for note in item.notes]
    if chosen is not None:
        notes += chosen.notes
    for result in (*recorded, *people):
        missing = missing_stimuli(result.stimuli)
        notes += [f"{result.observer}: {missing}"] if missing else []
    skipped = dict.fromkeys(entry for result in results for entry in result.skipped)
    notes += skipped_notes(skipped)
    _report(results, summaries, consistency, reference, notes)
    typer.echo(f"results, tables and figures: {out}")


@dataclass(frozen=True)
class _Network:
    """A network that can answer the stimuli, or has answered them already."""

    loaded: LoadedModel
    folder: str
    identity: NetworkIdentity
    fingerprint: str
    saved: ShapeBiasResult | None
    """The logits that it would give again."""

    @classmethod
    def known(
        cls,
        loaded: LoadedModel,
        folder: str,
        chosen: StimulusSet,
        mapping: LabelMapping,
        changes: dict[str, Any],
        out: Path,
    ) -> Self:
        preprocessing = preprocessing_of(loaded, **changes)
        identity = identify(loaded.module)
        fingerprint = fingerprint_of(identity, preprocessing, chosen)
        try:
            saved: ShapeBiasResult | None = ShapeBiasResult.load(out / folder)
        except (OSError, ResultError):
            saved = None
        if saved is not None and saved.fingerprint == fingerprint:
            saved.with_mapping(mapping)
        else:
            saved = None
            check_model(loaded, chosen, mapping, preprocessing)
        return cls(loaded, folder, identity, fingerprint, saved)


def _own_mapping(loaded: Sequence[LoadedModel]) -> LabelMapping:
    """ImageNet's, or that of the classes that all the models name."""
    classes = {item.classes for item in loaded}
    if classes in (set(), {()}):
        return IMAGENET
    if len(classes) > 1:
        raise ValueError(f"model: {', '.join(item.name for item in loaded)} have different classes; pass --labels")
    (own,) = classes
    return LabelMapping.from_dict(dict(enumerate(own)), len(own))


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
    network: _Network,
    chosen: StimulusSet,
    mapping: LabelMapping,
    options: ShapeBiasOptions,
    changes: dict[str, Any],
    batch_size: int,
    workers: int,
    folder: RunFolder,
    overwrite: bool,
) -> ShapeBiasResult:
    known, target, name = network.saved, folder.path / network.folder, network.loaded.name
    if known is not None:
        renewed = known.with_mapping(mapping).with_options(**asdict(options))
        if (renewed.options, renewed.mapping) != (known.options, known.mapping):
            by_first(lambda: renewed.save(folder.add(network.folder), overwrite=True))
        return renewed
    if (target / "result.json").is_file() and not overwrite:
        try:
            ShapeBiasResult.load(target)
        except ResultError as error:
            raise ResultError(f"{error}; overwrite=True makes it anew") from error
    with progress_bar(name) as progress, _clear_errors_of(name):
        result = evaluate_shape_bias(
            network.loaded,
            chosen,
            mapping=mapping,
            options=options,
            batch_size=batch_size,
            num_workers=workers,
            identity=network.identity,
            progress=progress,
            partial=by_first(lambda: folder.add(f"{network.folder}.partial.npz")),
            **changes,
        )
    by_first(lambda: result.save(folder.add(network.folder), overwrite=True))
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
    folder: RunFolder,
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
            rows = [asdict(compare_shape_bias(a, b, cluster=summaries[0]["cluster"])) for a, b in pairs]
            tables["comparisons"] = pd.DataFrame(rows)
    if len(consistency):
        tables["consistency"] = consistency
    for name, table in tables.items():
        with folder.replace(f"{name}.csv") as path:
            table.to_csv(path, index=False)
    with folder.replace(_RAW) as path:
        path.mkdir()
        for result in results:
            write_responses(result, path / f"cue-conflict_{folder_name(result.observer)}_session_1.csv")
    summary: dict[str, Any] = {"observers": summaries}
    if reference is not None:
        summary["humans"] = asdict(reference)
    write_json(folder.add("summary.json"), summary)


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
    folder: RunFolder,
    cluster: Any,
) -> None:
    from matplotlib.figure import Figure

    from analysis.figures import paper_style, save_figure
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
            save_figure(figure, name, folder.replace)


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
    print_notes(notes)
    for result in results:
        if result.congruent_accuracy < LOW_CONGRUENT_ACCURACY:
            print_line(
                f"warning: {result.observer} names only {100 * result.congruent_accuracy:.1f} % of the images without "
                "conflict correctly; its shape bias means little"
            )
        if not result.num_images:
            print_line(f"note: no image of {result.observer} has a conflict of shape and texture: no shape bias")
