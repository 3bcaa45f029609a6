"""`replknet predict`, `replknet features` and `replknet evaluate`."""

import json
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.table import Table

from analysis.cli.choosing import LAST_HELP, MODEL_HELP, ModelChoice
from analysis.cli.console import (
    clear_errors_for_files,
    command_line,
    print_line,
    print_notes,
    print_table,
    progress_bar,
    run_folder,
    skipped_notes,
)
from analysis.cli.methods import networks_told
from analysis.cli.options import BatchSize, Fields, InputSize, Overwrite, Workers, parse_names, takes
from analysis.images.addresses import WebImage, fetched, is_address
from analysis.images.files import find_images
from analysis.models.libraries import names_library
from analysis.models.loaded import LoadedModel
from analysis.models.replknets import is_own
from analysis.recognition.evaluation import EvaluationResult, check_files, evaluate, num_outputs
from analysis.recognition.features import POOLED, extract_features
from analysis.recognition.labels import SORTED, labelled_files
from analysis.recognition.methods import accuracy_warnings, evaluation_methods
from analysis.recognition.prediction import Predictions, class_names, class_notes, predict
from analysis.runs.folder import RunFolder, folder_names
from analysis.runs.identity import identify
from analysis.runs.memory import keep_freed_memory
from analysis.runs.methods import software, warned, write_methods
from analysis.runs.processes import by_first
from analysis.runs.tables import write_table
from analysis.runs.texts import few
from analysis.runs.writing import check_writable, replacing

app = typer.Typer()
_RESULT = "result"
"""Folder of the result of the only network."""
_TABLES = (_RESULT, "accuracy", "decisions", "by_class", "confusion")
_Model = Annotated[str, typer.Argument(help=MODEL_HELP)]
_Images = Annotated[
    list[str], typer.Argument(help="Files, folders, patterns such as 'photos/*.jpg', and addresses, http(s)://.")
]


@app.command("predict")
@takes(choice=Fields(ModelChoice))
def predict_command(
    model: _Model,
    images: _Images,
    choice: ModelChoice,
    beside: Annotated[
        list[str] | None,
        typer.Option("--model", help="Another network beside MODEL; may be given several times."),
    ] = None,
    top: Annotated[int, typer.Option(help="Classes for each image.", min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    out: Annotated[
        Path | None, typer.Option(help="Write a file instead, .json or .csv; the same command again resumes.")
    ] = None,
    size: InputSize = None,
    batch_size: BatchSize = 8,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Name what is in images: the best classes with their softmax probabilities."""
    if as_json and as_csv:
        raise ValueError("--json, --csv: expected one of them")
    if out is not None and (as_json or as_csv):
        raise ValueError(f"--{'json' if as_json else 'csv'}: prints; with --out, its name tells the format")
    _check_file(out, (".json", ".csv"), overwrite)
    for item in images:
        if (is_own(item) or names_library(item)) and not Path(item).exists():
            raise ValueError(f"images={item!r}: is a network; --model {item} has it answer beside {model}")
    given = _found(images)
    loaded = choice.load([model, *(beside or ())])
    found = []
    loaded = [choice.on_images(item, given, size) for item in loaded]
    for number, network in enumerate(loaded):
        with progress_bar("images" if len(loaded) == 1 else network.name) as progress:
            found.append(
                predict(
                    network,
                    given,
                    top=top,
                    size=size,
                    batch_size=batch_size,
                    num_workers=choice.workers(workers),
                    partial=_state_of(out, number),
                    keep_partial=len(loaded) > 1,
                    progress=progress,
                )
            )
    if out is not None:
        with clear_errors_for_files(out), replacing(out) as path:
            if out.suffix == ".json":
                path.write_text(_json(found))
            else:
                write_table(_with_models(found, [own.table() for own in found]), path)
        for state in (_state_of(out, number) for number in range(len(found))):
            if state is not None:
                state.unlink(missing_ok=True)
        typer.echo(f"the best classes of {len(found[0])} images: {out}")
    elif as_csv:
        write_table(_with_models(found, [own.table() for own in found]), sys.stdout)
    elif as_json:
        typer.echo(_json(found), nl=False)
    else:
        _show(found)
    notes = [*(note for item in loaded for note in item.notes), *(note for own in found for note in own.notes)]
    _notes(notes, list(dict.fromkeys(entry for own in found for entry in own.skipped)))


def _show(found: Sequence[Predictions]) -> None:
    several = len(found) > 1
    table = Table(*["model"] * several, "image", "class", "score")
    for own in found:
        for item in own:
            for rank, (name, score) in enumerate(zip(item.names, item.scores, strict=True)):
                heads = [*[own.model] * several, item.image] if rank == 0 else [""] * (1 + several)
                table.add_row(*heads, name, f"{score:.4f}", end_section=rank == len(item.names) - 1)
    print_table(table)


def _found(images: Sequence[str]) -> list[str | WebImage]:
    """Images as `fetched` gives them, missing ones refused before any network is loaded."""
    files = [item for item in images if not is_address(item)]
    if files:
        find_images(files)
    return fetched(images)


def _with_models(results: Sequence[Predictions | EvaluationResult], tables: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One table; of several networks with a first column of their names."""
    if len(tables) == 1:
        return tables[0]
    for result, table in zip(results, tables, strict=True):
        table.insert(0, "model", result.model)
    return pd.concat(tables, ignore_index=True)


def _json(results: Sequence[Predictions]) -> str:
    content = [
        ({"model": found.model} if len(results) > 1 else {})
        | {
            "image": item.image,
            "predictions": [
                {"class_index": index, "class": name, "score": score}
                for index, name, score in zip(item.indices, item.names, item.scores, strict=True)
            ],
        }
        for found in results
        for item in found
    ]
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def _check_file(out: Path | None, suffixes: tuple[str, ...], overwrite: bool) -> None:
    if out is None:
        _refuse_without_out("overwrite", overwrite)
        return
    if out.suffix not in suffixes:
        raise ValueError(f"out={str(out)!r}: expected a name that ends in {' or '.join(suffixes)}")
    if out.exists() and not overwrite:
        raise FileExistsError(f"out={str(out)!r}: exists already; choose another file, or overwrite=True replaces it")
    check_writable(out)


def _refuse_without_out(option: str, given: bool) -> None:
    if given:
        raise ValueError(f"--{option}: goes with --out only")


def _state_of(out: Path | None, number: int = 0) -> Path | None:
    """Where an unfinished run, of the network of this number, is kept, beside its file."""
    mark = f".{number}" if number else ""
    return None if out is None else out.with_name(f".{out.name}{mark}.partial.npz")


@app.command()
@takes(choice=Fields(ModelChoice))
def features(
    model: _Model,
    images: _Images,
    out: Annotated[Path, typer.Option(help="The .npz file; the same command again resumes.")],
    choice: ModelChoice,
    stages: Annotated[
        str | None,
        typer.Option(
            help=f"Separated by commas: {POOLED} (what enters the head; the default), numbers of stages from 0, names "
            "of layers."
        ),
    ] = None,
    layers: Annotated[
        str | None,
        typer.Option(
            help=f"Layers by name, also 0, 1, ..., separated by commas; {LAST_HELP}",
        ),
    ] = None,
    average: Annotated[bool, typer.Option("--average", help="Average maps over their positions.")] = False,
    size: InputSize = None,
    batch_size: BatchSize = 8,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Extract features of images into an .npz file, which numpy.load opens."""
    named = parse_names("--stages", stages) if stages is not None else () if layers is not None else (POOLED,)
    wanted = [int(name) if name.isdecimal() else name for name in named]
    wanted += () if layers is None else parse_names("--layers", layers)
    _check_file(out, (".npz",), overwrite)
    given = _found(images)
    (loaded,) = choice.load([model])
    loaded = choice.on_images(loaded, given, size)
    with progress_bar("images") as progress:
        found = extract_features(
            loaded,
            given,
            wanted,
            average=average,
            size=size,
            batch_size=batch_size,
            num_workers=choice.workers(workers),
            partial=_state_of(out),
            progress=progress,
        )
    with clear_errors_for_files(out):
        found.save(out, overwrite=overwrite)
    table = Table("array", "shape", "dtype")
    for name, array in found.arrays.items():
        table.add_row(name, " x ".join(map(str, array.shape)), str(array.dtype))
    print_table(table)
    _notes(loaded.notes, found.skipped)
    typer.echo(f"features, and the names of the {len(found.images)} images: {out}")


@app.command("evaluate")
@takes(choice=Fields(ModelChoice))
def evaluate_command(
    model: Annotated[list[str], typer.Argument(help=MODEL_HELP)],
    data: Annotated[
        Path, typer.Option(help="Image folder with a sub-folder each class, named as the class or its WordNet id.")
    ],
    choice: ModelChoice,
    labels: Annotated[Path | None, typer.Option(help="CSV of file,class, for a folder of another layout.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the results and tables; the same command again resumes.")
    ] = None,
    confusion: Annotated[bool, typer.Option("--confusion", help="Also write confusion.csv into OUT.")] = False,
    size: InputSize = None,
    batch_size: BatchSize = 16,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure the accuracy on an image folder, with 95 % intervals, beside the published value."""
    if out is None:
        _refuse_without_out("confusion", confusion)
        _refuse_without_out("overwrite", overwrite)
    loaded = choice.load(model)
    labelled = [labelled_files(data, class_names(item, num_outputs(item)), labels=labels) for item in loaded]
    for item, files in zip(loaded, labelled, strict=True):
        check_files(item, files, size)
    keep_freed_memory()
    loaded = [choice.on_images(item, files.files, size) for item, files in zip(loaded, labelled, strict=True)]
    identities = [identify(item.module) for item in loaded]
    names = [_RESULT] if len(loaded) == 1 else folder_names([item.name for item in loaded], reserved=_TABLES)

    def run(number: int, state: Path | None) -> EvaluationResult:
        with progress_bar(loaded[number].name) as progress:
            return evaluate(
                loaded[number],
                labelled[number],
                size=size,
                batch_size=batch_size,
                num_workers=choice.workers(workers),
                identity=identities[number],
                partial=state,
                progress=progress,
            )

    if out is None:
        results = [run(number, None) for number in range(len(loaded))]
    else:
        networks = [
            {"model": item.name, "weights": identity.weights, "code": identity.code}
            for item, identity in zip(loaded, identities, strict=True)
        ]
        settings = {
            **(networks[0] if len(networks) == 1 else {"models": networks}),
            "data": str(data),
            "images": " ".join(dict.fromkeys(files.fingerprint for files in labelled)),
            "size": size,
            "dtype": choice.dtype,
        }
        results = []
        with run_folder(out, "evaluate", settings, overwrite=overwrite) as folder:
            for number, name in enumerate(names):
                if not (out / name / "result.json").is_file():
                    state = f"{name}.partial.npz" if len(names) > 1 else "partial.npz"
                    found = run(number, by_first(partial(folder.add, state)))
                    by_first(partial(_save, found, name, folder))
                    results.append(found)
                else:
                    results.append(EvaluationResult.load(out / name))
            by_first(lambda: _for_paper(results, folder, model, loaded, size))
            by_first(lambda: _write(results, folder, confusion))
    _report(results)
    notes = [note for item in loaded for note in item.notes]
    for item, files in zip(loaded, labelled, strict=True):
        notes += class_notes(item, len(files.classes)) if files.rule != SORTED else ()  # named by the folders
    _notes(notes, list(dict.fromkeys(entry for result in results for entry in result.skipped)))
    rules: dict[str, list[str]] = {}
    for item, files in zip(loaded, labelled, strict=True):
        if files.rule != SORTED:  # of which a warning tells
            rules.setdefault(files.rule, []).append(item.name)
    for rule, names in rules.items():
        print_line(f"classes{f' of {few(names)}' if len(rules) > 1 else ''} matched {rule}")
    print_notes(accuracy_warnings(results), "warning")
    if out is not None:
        typer.echo(f"result{'s' * (len(results) > 1)}, tables and page (index.html): {out}")


def _for_paper(
    results: Sequence[EvaluationResult],
    folder: RunFolder,
    specs: Sequence[str],
    loaded: Sequence[LoadedModel],
    size: int | None,
) -> None:
    methods = (
        evaluation_methods(results)
        + warned(accuracy_warnings(results))
        + networks_told(specs, loaded, prepared=[item.name for item in loaded], size=size)
    )
    write_methods(methods + software(result.settings for result in results), folder.replace)


def _save(result: EvaluationResult, name: str, folder: RunFolder) -> None:
    result.save(folder.add(name))


def _write(results: Sequence[EvaluationResult], folder: RunFolder, confusion: bool) -> None:
    from analysis.pages.page import LINKED, PAGE, files_below, write_page
    from analysis.recognition.page import evaluation_page

    tables = {
        "decisions": _with_models(results, [result.decisions() for result in results]),
        "by_class": _with_models(results, [result.by_class() for result in results]),
        "accuracy": pd.DataFrame([_row(result) for result in results]),
    }
    if confusion:
        tables["confusion"] = _with_models(results, [result.confusion().reset_index() for result in results])
    for name, table in tables.items():
        with folder.replace(f"{name}.csv") as path:
            write_table(table, path)
    page = evaluation_page(results, command=command_line(), files=files_below(folder.path, *LINKED))
    write_page(folder.add(PAGE), page)


def _row(result: EvaluationResult) -> dict[str, Any]:
    """Accuracies as parts of 1, with 95 % intervals."""
    row: dict[str, Any] = {"model": result.model, "images": len(result.images)}
    for top in result.tops:
        low, high = result.interval(top)
        row |= {f"top{top}": result.accuracy(top), f"top{top}_low": low, f"top{top}_high": high}
    return row | {f"published_{name}": value / 100 for name, value in result.published.items()}


def _report(results: Sequence[EvaluationResult]) -> None:
    table = Table("model", "images", "top-1 (%)", "top-5 (%)", "published top-1, top-5 (%)", "images / s")
    for result in results:
        row = _row(result)
        cells = []
        for name in ("top1", "top5"):
            parts = [100 * row.get(key, math.nan) for key in (name, f"{name}_low", f"{name}_high")]
            cells.append("{:.2f} [{:.2f}, {:.2f}]".format(*parts) if name in row else "-")
        known = ", ".join(f"{result.published[key]:.2f}" for key in ("top1", "top5") if key in result.published) or "-"
        table.add_row(result.model, str(len(result.images)), *cells, known, f"{result.images_per_second:.1f}")
    print_table(table)


def _notes(notes: Sequence[str], skipped: Sequence[tuple[str, str]]) -> None:
    print_notes([*notes, *skipped_notes(skipped)])
