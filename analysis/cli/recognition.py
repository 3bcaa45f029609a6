"""`replknet predict`, `replknet features` and `replknet evaluate`."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from analysis.cli.console import (
    clear_errors_for_files,
    command_line,
    print_notes,
    print_table,
    progress_bar,
    run_folder,
    skipped_notes,
)
from analysis.cli.options import (
    MODEL_HELP,
    BatchSize,
    Fields,
    InputSize,
    ModelChoice,
    Overwrite,
    Workers,
    parse_names,
    takes,
)
from analysis.recognition.evaluation import EvaluationResult, check_files, evaluate, num_outputs
from analysis.recognition.features import POOLED, extract_features
from analysis.recognition.labels import labelled_files
from analysis.recognition.prediction import Predictions, class_names, class_notes, predict
from analysis.runs.folder import RunFolder
from analysis.runs.identity import identify
from analysis.runs.memory import keep_freed_memory
from analysis.runs.processes import by_first
from analysis.runs.tables import write_table
from analysis.runs.writing import check_writable, replacing

app = typer.Typer()
_Model = Annotated[str, typer.Argument(help=MODEL_HELP)]
_Images = Annotated[list[str], typer.Argument(help="Files, folders and patterns such as 'photos/*.jpg'.")]


@app.command("predict")
@takes(choice=Fields(ModelChoice))
def predict_command(
    model: _Model,
    images: _Images,
    choice: ModelChoice,
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
    (loaded,) = choice.load([model])
    loaded = choice.on_images(loaded, images, size)
    with progress_bar("images") as progress:
        found = predict(
            loaded,
            images,
            top=top,
            size=size,
            batch_size=batch_size,
            num_workers=choice.workers(workers),
            partial=_state_of(out),
            progress=progress,
        )
    if out is not None:
        with clear_errors_for_files(out), replacing(out) as path:
            if out.suffix == ".json":
                path.write_text(_json(found))
            else:
                write_table(found.table(), path)
        typer.echo(f"the best classes of {len(found)} images: {out}")
    elif as_csv:
        write_table(found.table(), sys.stdout)
    elif as_json:
        typer.echo(_json(found), nl=False)
    else:
        table = Table("image", "class", "score")
        for item in found:
            for rank, (name, score) in enumerate(zip(item.names, item.scores, strict=True)):
                last = rank == len(item.names) - 1
                table.add_row(item.image if rank == 0 else "", name, f"{score:.4f}", end_section=last)
        print_table(table)
    _notes([*loaded.notes, *found.notes], found.skipped)


def _json(found: Predictions) -> str:
    content = [
        {
            "image": item.image,
            "predictions": [
                {"class_index": index, "class": name, "score": score}
                for index, name, score in zip(item.indices, item.names, item.scores, strict=True)
            ],
        }
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


def _state_of(out: Path | None) -> Path | None:
    """Where an unfinished run is kept, beside its file."""
    return None if out is None else out.with_name(f".{out.name}.partial.npz")


@app.command()
@takes(choice=Fields(ModelChoice))
def features(
    model: _Model,
    images: _Images,
    out: Annotated[Path, typer.Option(help="The .npz file; the same command again resumes.")],
    choice: ModelChoice,
    stages: Annotated[
        str,
        typer.Option(
            help=f"Separated by commas: {POOLED} (what enters the head), numbers of stages from 0, names of layers."
        ),
    ] = POOLED,
    average: Annotated[bool, typer.Option("--average", help="Average maps over their positions.")] = False,
    size: InputSize = None,
    batch_size: BatchSize = 8,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Extract features of images into an .npz file, which numpy.load opens."""
    wanted = [int(name) if name.isdecimal() else name for name in parse_names("--stages", stages)]
    _check_file(out, (".npz",), overwrite)
    (loaded,) = choice.load([model])
    loaded = choice.on_images(loaded, images, size)
    with progress_bar("images") as progress:
        found = extract_features(
            loaded,
            images,
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
    model: _Model,
    data: Annotated[
        Path, typer.Option(help="Image folder with a sub-folder each class, named as the class or its WordNet id.")
    ],
    choice: ModelChoice,
    labels: Annotated[Path | None, typer.Option(help="CSV of file,class, for a folder of another layout.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result and tables; the same command again resumes.")
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
    (loaded,) = choice.load([model])
    files = labelled_files(data, class_names(loaded, num_outputs(loaded)), labels=labels)
    check_files(loaded, files, size)
    keep_freed_memory()
    loaded = choice.on_images(loaded, files.files, size)
    identity = identify(loaded.module)

    def run(partial: Path | None) -> EvaluationResult:
        with progress_bar(loaded.name) as progress:
            return evaluate(
                loaded,
                files,
                size=size,
                batch_size=batch_size,
                num_workers=choice.workers(workers),
                identity=identity,
                partial=partial,
                progress=progress,
            )

    if out is None:
        result = run(None)
    else:
        settings = {
            "model": loaded.name,
            "weights": identity.weights,
            "code": identity.code,
            "data": str(data),
            "images": files.fingerprint,
            "size": size,
            "dtype": choice.dtype,
        }
        with run_folder(out, "evaluate", settings, overwrite=overwrite) as folder:
            if (out / "result" / "result.json").is_file():
                result = EvaluationResult.load(out / "result")
            else:
                result = run(by_first(lambda: folder.add("partial.npz")))
            by_first(lambda: _write(result, folder, confusion))
    _report(result)
    _notes([*loaded.notes, *class_notes(loaded, len(result.classes))], result.skipped)
    typer.echo(f"classes matched {files.rule}", err=True)
    if out is not None:
        typer.echo(f"result, tables and page (index.html): {out}")


def _write(result: EvaluationResult, folder: RunFolder, confusion: bool) -> None:
    from analysis.pages.page import LINKED, PAGE, files_below, write_page
    from analysis.recognition.page import evaluation_page

    if not (folder.path / "result").exists():
        result.save(folder.add("result"))
    tables = {"decisions": result.decisions(), "by_class": result.by_class()}
    for name, table in tables.items():
        with folder.replace(f"{name}.csv") as path:
            write_table(table, path)
    if confusion:
        with folder.replace("confusion.csv") as path:
            write_table(result.confusion(), path, index=True)
    page = evaluation_page(result, command=command_line(), files=files_below(folder.path, *LINKED))
    write_page(folder.add(PAGE), page)


def _report(result: EvaluationResult) -> None:
    table = Table("model", "images", "top-1 (%)", "top-5 (%)", "published top-1, top-5 (%)", "images / s")
    cells = []
    for top in (1, 5):
        low, high = (100 * end for end in result.interval(top))
        cells.append(f"{100 * result.accuracy(top):.2f} [{low:.2f}, {high:.2f}]")
    if result.best.shape[1] < 5:
        cells[1] = "-"
    known = ", ".join(f"{result.published[key]:.2f}" for key in ("top1", "top5") if key in result.published) or "-"
    table.add_row(result.model, str(len(result.images)), *cells, known, f"{result.images_per_second:.1f}")
    print_table(table)


def _notes(notes: Sequence[str], skipped: Sequence[tuple[str, str]]) -> None:
    print_notes([*notes, *skipped_notes(skipped)])
