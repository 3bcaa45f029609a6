"""`replknet shape-bias`."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.cli.answering import AnsweringNetwork, answers_of
from analysis.cli.choosing import MODEL_HELP, ModelChoice, owned
from analysis.cli.console import command_line, print_notes, progress_bar, run_folder, skipped_notes
from analysis.cli.methods import networks_told
from analysis.cli.options import (
    BatchSize,
    Fields,
    LabelsOfEach,
    Out,
    Overwrite,
    Workers,
    parse_names,
    parse_three,
    takes,
)
from analysis.cli.sensitivity import (
    SINGLE_CUES,
    Sensitivities,
    report_sensitivities,
    sensitivity_drawings,
    write_sensitivities,
)
from analysis.cli.shape_bias_output import RAW, Comparison, drawings_of, note_of_counts, remarks, report, write_tables
from analysis.images.stimuli import StimulusSet, load_stimuli, missing_stimuli
from analysis.models.loaded import LoadedModel
from analysis.models.specs import split_name
from analysis.runs.folder import RunFolder, folder_names
from analysis.runs.methods import Methods, joined, software, warned, write_methods
from analysis.runs.processes import by_first
from analysis.runs.texts import few
from analysis.shape_bias.categories import IMAGENET, LabelMapping, select_categories
from analysis.shape_bias.comparing import common_images
from analysis.shape_bias.mapping import common_classes, own_mapping, renamed
from analysis.shape_bias.measuring import (
    mapping_of,
)
from analysis.shape_bias.methods import bias_warnings, sensitivity_methods, shape_bias_methods
from analysis.shape_bias.responses import read_observers, read_responses
from analysis.shape_bias.result import CLUSTERS, ShapeBiasOptions, ShapeBiasResult
from analysis.study.record import PEOPLE, save_people

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
        list[Path] | None,
        typer.Option(
            help="Folder of stimuli named <shape><i>-<texture><j>, e.g. cat7-elephant1.png, or of single cues in "
            "shape/<class>/ and texture/<class>/ (REFINED-BIAS); may be given once for each."
        ),
    ] = None,
    humans: Annotated[Path | None, typer.Option(help="Folder of raw responses of people, one CSV each.")] = None,
    cluster: Annotated[str, typer.Option(help=f"What the bootstrap draws: {', '.join(CLUSTERS)}.")] = "two-way",
    labels: LabelsOfEach = None,
    categories: Annotated[
        str | None, typer.Option(help="Only these, e.g. cat,dog,car, of stimuli and of answers; all by default.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Input size in pixels that replaces the model's own.", min=1, max=4096)
    ] = None,
    mean: Annotated[str | None, typer.Option(help="Three numbers that replace the model's own.")] = None,
    std: Annotated[str | None, typer.Option(help="Three numbers that replace the model's own.")] = None,
    batch_size: BatchSize = 16,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure shape bias, and how strongly either cue is used. The same command again resumes, or answers from the
    logits that are saved.

    Everyone is compared on the images that all have seen; answers outside the categories count as neither.

    With --overwrite, logits of another run that fit are kept.
    """
    if cluster not in CLUSTERS:
        raise ValueError(f"cluster={cluster}: expected one of {', '.join(CLUSTERS)}")
    specs = [spec for spec in model if not spec.endswith(".csv")]
    if specs and not stimuli:
        raise ValueError(f"--stimuli: {specs[0]} needs a folder of stimuli")
    if not specs:
        given = {**choice.given(), "stimuli": stimuli[0] if stimuli else None, "size": size, "mean": mean, "std": std}
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name}={value}: goes with networks only; none was named")
    named = None if categories is None else parse_names("--categories", categories)
    changes: dict[str, Any] = {
        "mean": parse_three("--mean", mean),
        "std": parse_three("--std", std),
        "input_size": size,
    }
    whole, single = _loaded_stimuli(stimuli or ()) if specs else (None, None)
    if single is not None and whole is None:
        _refuse_alone(
            single,
            [spec for spec in model if spec not in specs],
            options,
            humans,
            labels[0] if labels else None,
            categories,
        )
    loaded = choice.load(specs) if specs else []
    tables = owned("--labels", labels, loaded)
    mappings = _mappings(tables, loaded, whole is not None)
    mapping = mappings[0]
    loaded = [
        item if table is None else replace(item, notes=(*item.notes, *renamed(item, own)))
        for item, table, own in zip(loaded, tables, mappings, strict=False)
    ]
    recorded = [_recorded(spec) for spec in model if spec.endswith(".csv")]
    people = [] if humans is None else read_observers(humans, categories=None)
    asked = [*recorded, *people]
    by_mapping = bool(loaded) or labels is not None
    known = mapping.categories if by_mapping else sorted({name for result in asked for name in result.categories})
    wanted = None if named is None else select_categories(named, known)
    seen = whole or single
    if seen is not None:
        loaded = [choice.on_images(item, seen.paths, size) for item in loaded]
    chosen = whole if whole is None or wanted is None else whole.of_categories(wanted)
    names = [item.name for item in loaded] + [result.observer for result in recorded]
    if len(set(names)) < len(names):
        raise ValueError(f"model: {', '.join(names)} are not all different")
    folder_names([person.observer for person in people])  # refuses two that would share one
    twice = sorted({*names}.intersection(result.observer for result in people))
    if twice:
        raise ValueError(f"--humans={str(humans)!r}: {twice[0]} is among the models, too")
    if chosen is not None:
        _check_stimuli(chosen, mapping)
    of_categories = [_of_categories(result, wanted or known) for result in asked]
    if chosen is not None or of_categories:
        _check_common(chosen, of_categories)
    labels_of_folders = [item.name for item in loaded]
    if single is not None:
        labels_of_folders += [f"{item.name}-{SINGLE_CUES}" for item in loaded]
    labels_of_folders += [result.observer for result in recorded]
    folders = folder_names(labels_of_folders, reserved=(RAW, PEOPLE))
    networks = [
        AnsweringNetwork.known(item, folder, chosen, whole, own, changes, out)
        for item, folder, own in zip(loaded, folders[: len(loaded)], mappings, strict=False)
        if chosen is not None and whole is not None
    ]
    alone = (
        [
            AnsweringNetwork.known(item, folder, single, single, mapping_of(item, single), changes, out)
            for item, folder in zip(loaded, folders[len(loaded) : 2 * len(loaded)], strict=True)
        ]
        if single is not None
        else []
    )
    settings = {
        "models": [[network.loaded.name, network.fingerprint] for network in networks],
        "responses": [[result.observer, result.responses_hash()] for result in recorded],
        "humans": [[human.observer, human.responses_hash()] for human in people],
        "labels": [list(pair) for pair in mapping.indices],
        **({"labels_of_each": [own.indices for own in mappings]} if len(set(mappings)) > 1 else {}),
        "cluster": cluster,
        **asdict(options),
        **({} if wanted is None else {"categories": wanted}),
        **({"single_cues": [[network.loaded.name, network.fingerprint] for network in alone]} if alone else {}),
        **choice.computed_on(),
    }
    keep = [network.folder for network in (*networks, *alone) if network.saved is not None]
    keep += [f"{network.folder}.partial.npz" for network in (*networks, *alone)]
    processes = choice.workers(workers) if loaded else 0
    with run_folder(out, "shape-bias", settings, overwrite=overwrite, keep=keep) as folder:
        measured, single_cues = (
            [answers_of(network, options, only, changes, batch_size, processes, folder, overwrite) for network in own]
            for own, only in ((networks, wanted), (alone, None))
        )
        results = list(measured)
        answers = [result.with_options(**asdict(options)) for result in of_categories]
        own = folders[len(folders) - len(recorded) :]
        by_first(partial(_save_recorded, answers, own, folder))
        results += answers[: len(recorded)]
        comparison = Comparison.of(results, answers[len(recorded) :], cluster) if results else None
        sensitivities = Sensitivities.of(comparison, common_images(single_cues), cluster)
        if comparison is not None:
            by_first(partial(write_tables, comparison, folder))
        by_first(lambda: write_sensitivities(sensitivities, folder))
        methods = _methods(comparison, single_cues, cluster)
        if whole is not None and chosen is not None and wanted is not None and len(chosen) < len(whole):
            those = f"Of the {len(whole)} stimuli only those of {joined(wanted)} were used."
            methods += Methods((those,), ())
        methods += networks_told(specs, loaded)
        methods += software(result.environment for result in (*measured, *single_cues))
        by_first(lambda: write_methods(methods, folder.replace))
        by_first(lambda: _write_page(comparison, sensitivities, chosen, folder))
    notes = [note for item in loaded for note in item.notes]
    if whole is not None and chosen is not None:
        notes += whole.notes
    for result in asked:
        missing = missing_stimuli(result.stimuli)
        notes += [f"{result.observer}: {missing}"] if missing else []
    left_out = [
        (own.observer, len(own.stimuli) - len(kept.stimuli), len(own.stimuli))
        for own, kept in zip(asked, of_categories, strict=True)
    ]
    if whole is not None and chosen is not None:
        left_out.insert(0, ("--stimuli", len(whole) - len(chosen), len(whole)))
    notes += note_of_counts("images of other categories are left out", left_out)
    notes += () if single is None else single.notes
    skipped = dict.fromkeys(entry for result in (*results, *single_cues) for entry in result.skipped)
    notes += skipped_notes(skipped)
    if comparison is None:
        print_notes(notes)
    else:
        report(comparison, notes)
    report_sensitivities(sensitivities)
    typer.echo(f"results, tables, figures and page (index.html): {out}")


def _mappings(files: Sequence[str | None], loaded: Sequence[LoadedModel], needed: bool) -> list[LabelMapping]:
    """That of each network, or the one for answers alone.

    Args:
        files: The table of each, or of the answers alone.
        loaded: The networks.
        needed: Whether they answer stimuli by categories.

    Raises:
        ValueError: If one table is for networks of different classes, or the tables have different categories.
    """
    if not loaded:
        return [own_mapping(()) if file is None else LabelMapping.from_csv(file) for file in files]
    for file in dict.fromkeys(files):
        common_classes([item for item, own in zip(loaded, files, strict=True) if own == file and (needed or file)])
    found = [
        (own_mapping([item]) if needed else IMAGENET) if file is None else LabelMapping.from_csv(file)
        for item, file in zip(loaded, files, strict=True)
    ]
    for item, own in zip(loaded, found, strict=True):
        if own.categories != found[0].categories:
            raise ValueError(
                f"labels: {loaded[0].name} has the categories {few(found[0].categories)}, {item.name} "
                f"{few(own.categories)}; expected the same of all"
            )
    return found


def _save_recorded(answers: Sequence[ShapeBiasResult], names: Sequence[str], folder: RunFolder) -> None:
    """The answers of those who are not networks here; without a name, of people."""
    for name, result in zip(names, answers, strict=False):
        result.save(folder.add(name), overwrite=True)
    if answers[len(names) :]:
        save_people(answers[len(names) :], folder.add(PEOPLE).parent)


def _methods(comparison: Comparison | None, single: Sequence[ShapeBiasResult], cluster: Any) -> Methods:
    """Of shape biases, of sensitivities, or of both."""
    found = Methods((), ())
    if comparison is not None:
        found += shape_bias_methods(comparison.results, comparison.people, cluster)
        found += warned(bias_warnings(comparison.results))
        decided = [own for own in comparison.results if own.logits is not None and own.columns["conflict"].any()]
        found += sensitivity_methods(decided) if decided else Methods((), ())
    return found + sensitivity_methods(single) if single else found


def _write_page(
    comparison: Comparison | None, sensitivities: Sensitivities, stimuli: StimulusSet | None, folder: RunFolder
) -> None:
    """The figures, as PNG and PDF, and the page."""
    from analysis.pages.drawing import save_drawings
    from analysis.pages.page import LINKED, PAGE, files_below, write_page
    from analysis.shape_bias.page import shape_bias_page

    drawings = [] if comparison is None else drawings_of(comparison)
    drawings += sensitivity_drawings(sensitivities)
    with progress_bar("figures") as progress:
        save_drawings(drawings, folder.replace, progress)
    page = shape_bias_page(
        [] if comparison is None else comparison.results,
        [] if comparison is None else comparison.people,
        [] if comparison is None else comparison.summaries,
        drawings,
        consistency=None if comparison is None else comparison.consistency,
        sensitivity=sensitivities.table,
        stimuli=stimuli,
        command=command_line(),
        files=files_below(folder.path, *LINKED),
        warnings=[]
        if comparison is None
        else [*bias_warnings(comparison.results), *(f"{text[0].upper()}{text[1:]}." for text in remarks(comparison))],
    )
    write_page(folder.add(PAGE), page)


def _recorded(spec: str) -> ShapeBiasResult:
    """Somebody's responses in a file, which may have a name before it."""
    name, path = split_name(spec)
    result = read_responses(path, categories=None)
    return replace(result, observer=name or result.observer)


def _loaded_stimuli(folders: Sequence[Path]) -> tuple[StimulusSet | None, StimulusSet | None]:
    """Those with a conflict of cues, or without a texture, and those of single cues."""
    found: dict[bool, StimulusSet] = {}
    for folder in folders:
        own = load_stimuli(folder)
        kind = own.single_cues is not None
        if kind in found:
            what = "single cues" if kind else "other stimuli"
            raise ValueError(f"--stimuli={str(folder)!r}: expected one folder of {what}, not {found[kind].source}, too")
        found[kind] = own
    return found.get(False), found.get(True)


def _refuse_alone(
    single: StimulusSet, recorded: Sequence[str], options: ShapeBiasOptions, *given: Path | str | None
) -> None:
    """Refuse what goes with a ratio of shape and texture, where stimuli of single cues give none."""
    changed = {name: value for name, value in asdict(options).items() if value != getattr(ShapeBiasOptions, name)}
    values = dict(zip(("humans", "labels", "categories"), given, strict=True)) | changed
    values["model"] = next(iter(recorded), None)
    for name, value in values.items():
        if value is not None:
            raise ValueError(f"{name}={value}: goes with cue-conflict stimuli; {single.source} holds single cues only")


def _check_stimuli(chosen: StimulusSet, mapping: LabelMapping) -> None:
    try:
        mapping.check_stimuli(chosen.names, chosen.shapes, chosen.textures)
    except ValueError as error:
        raise ValueError(f"{error}, and --categories leaves stimuli out") from error


def _of_categories(result: ShapeBiasResult, wanted: Sequence[str]) -> ShapeBiasResult:
    own = [name for name in wanted if name in result.categories]
    if not own:
        raise ValueError(
            f"{result.observer}: its images show {', '.join(result.categories)}; none is among {', '.join(wanted)}"
        )
    return result if len(own) == len(result.categories) else result.with_categories(own)


def _check_common(chosen: StimulusSet | None, others: Sequence[ShapeBiasResult]) -> None:
    """Refuse observers that have not seen the same images before anything runs."""
    seen = [(result.observer, set(result.stimuli)) for result in others]
    if chosen is not None:
        seen.insert(0, ("--stimuli", set(chosen.names)))
    common = seen[0][1]
    for index, (name, own) in enumerate(seen):
        common = common & own
        if not common:
            disjoint = [other for other, images in seen[:index] if not images & own][:1]
            before = disjoint or [other for other, _ in seen[:index]]
            raise ValueError(f"{', '.join(before)} and {name} have no image in common")
