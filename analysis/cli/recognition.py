"""`replknet predict`, `replknet features` and `replknet evaluate`."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from analysis.cli.console import (
    MODEL_HELP,
    BatchSize,
    Checkpoint,
    Device,
    Dtype,
    InputSize,
    Overwrite,
    Pretrained,
    Workers,
    claim,
    clear_errors_for_files,
    load_models,
    print_table,
    progress_bar,
)
from analysis.models.loaded import LoadedModel
from analysis.recognition.evaluation import EvaluationResult, evaluate, num_outputs
from analysis.recognition.features import POOLED, extract_features
from analysis.recognition.labels import labelled_files
from analysis.recognition.prediction import class_names, predict
from analysis.runs.memory import keep_freed_memory
from analysis.runs.processes import by_first
from analysis.runs.writing import check_writable

app = typer.Typer()


_Model = Annotated[str, typer.Argument(help=MODEL_HELP)]


_Images = Annotated[list[str], typer.Argument(help="Files, folders and patterns such as 'photos/*.jpg'.")]


_Seed = Annotated[int, typer.Option(help="Of random weights.", min=0)]


@app.command("predict")
def predict_command(
    model: _Model,
    images: _Images,
    top: Annotated[int, typer.Option(help="Classes for each image.", min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = True,
    size: InputSize = None,
    batch_size: BatchSize = 8,
    workers: Workers = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: _Seed = 0,
) -> None:
    """Name what is in images: the best classes with their softmax probabilities."""
    if as_json and as_csv:
        raise ValueError("--json, --csv: expected one of them")
    loaded = _load(model, checkpoint, pretrained, seed, device, dtype)
    with progress_bar("images") as progress:
        found = predict(
            loaded, images, top=top, size=size, batch_size=batch_size, num_workers=workers, progress=progress
        )
    if as_csv:
        found.table().to_csv(sys.stdout, index=False)
    elif as_json:
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
        typer.echo(json.dumps(content, indent=2))
    else:
        table = Table("image", "class", "score")
        for item in found:
            for rank, (name, score) in enumerate(zip(item.names, item.scores, strict=True)):
                last = rank == len(item.names) - 1
                table.add_row(item.image if rank == 0 else "", name, f"{score:.4f}", end_section=last)
        print_table(table)
    _notes(loaded, found.skipped)


@app.command()
def features(
    model: _Model,
    images: _Images,
    out: Annotated[Path, typer.Option(help="The .npz file.")],
    stages: Annotated[
        str,
        typer.Option(
            help=f"Separated by commas: {POOLED} (what enters the head), numbers of stages from 0, names of layers."
        ),
    ] = POOLED,
    average: Annotated[bool, typer.Option("--average", help="Average maps over their positions.")] = False,
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = True,
    size: InputSize = None,
    batch_size: BatchSize = 8,
    workers: Workers = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: _Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Extract features of images into an .npz file, which numpy.load opens."""
    if out.suffix != ".npz":
        raise ValueError(f"--out={str(out)!r}: expected a name that ends in .npz")
    if out.exists() and not overwrite:
        raise FileExistsError(f"--out={str(out)!r}: exists already; choose another file or pass --overwrite")
    loaded = _load(model, checkpoint, pretrained, seed, device, dtype)
    check_writable(out)
    wanted = [int(stage) if stage.strip().isdecimal() else stage.strip() for stage in stages.split(",")]
    with progress_bar("images") as progress:
        found = extract_features(
            loaded,
            images,
            wanted,
            average=average,
            size=size,
            batch_size=batch_size,
            num_workers=workers,
            progress=progress,
        )
    with clear_errors_for_files(out):
        found.save(out, overwrite=overwrite)
    table = Table("array", "shape", "dtype")
    for name, array in found.arrays.items():
        table.add_row(name, " x ".join(map(str, array.shape)), str(array.dtype))
    print_table(table)
    _notes(loaded, found.skipped)
    typer.echo(f"features, and the names of the {len(found.images)} images: {out}")


@app.command("evaluate")
def evaluate_command(
    model: _Model,
    data: Annotated[
        Path, typer.Option(help="Image folder with a sub-folder each class, named as the class or its WordNet id.")
    ],
    labels: Annotated[Path | None, typer.Option(help="CSV of file,class for a folder without sub-folders.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the result and tables; the same command again resumes.")
    ] = None,
    confusion: Annotated[bool, typer.Option("--confusion", help="Also write confusion.csv into OUT.")] = False,
    checkpoint: Checkpoint = None,
    pretrained: Pretrained = True,
    size: InputSize = None,
    batch_size: BatchSize = 16,
    workers: Workers = 0,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: _Seed = 0,
    overwrite: Overwrite = False,
) -> None:
    """Measure the accuracy on an image folder, with 95 % intervals, beside the published value."""
    if confusion and out is None:
        raise ValueError("--confusion: needs a folder for the table, --out")
    loaded = _load(model, checkpoint, pretrained, seed, device, dtype)
    files = labelled_files(data, class_names(loaded, num_outputs(loaded)), labels=labels)
    keep_freed_memory()
    partial = None
    if out is not None:
        from analysis.runs.identity import hash_weights

        settings = {
            "model": loaded.name,
            "weights": hash_weights(loaded.module),
            "data": str(data),
            "images": files.fingerprint,
            "size": size,
            "dtype": dtype,
        }
        outputs = ["result", "partial.npz", "decisions.csv", "by_class.csv", "confusion.csv"]
        partial = out / "partial.npz"
        with clear_errors_for_files(out):
            claim(out, "evaluate", settings, outputs, overwrite)
    if out is not None and (out / "result" / "result.json").is_file():
        result = EvaluationResult.load(out / "result")
    else:
        with progress_bar(loaded.name) as progress:
            result = evaluate(
                loaded,
                files,
                size=size,
                batch_size=batch_size,
                num_workers=workers,
                partial=partial,
                progress=progress,
            )
    if out is not None:
        with clear_errors_for_files(out):
            by_first(lambda: _write(result, out, confusion))
    _report(result)
    _notes(loaded, result.skipped)
    typer.echo(f"classes matched {files.rule}", err=True)
    if out is not None:
        typer.echo(f"result and tables: {out}")


def _write(result: EvaluationResult, out: Path, confusion: bool) -> None:
    if not (out / "result").exists():
        result.save(out / "result")
    result.decisions().to_csv(out / "decisions.csv", index=False)
    result.by_class().to_csv(out / "by_class.csv", index=False)
    if confusion:
        result.confusion().to_csv(out / "confusion.csv")


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


def _load(model: str, checkpoint: Path | None, pretrained: bool, seed: int, device: str, dtype: str) -> LoadedModel:
    (loaded,) = load_models([model], checkpoint, None, None, pretrained, seed, False, device, dtype)
    return loaded


def _notes(loaded: LoadedModel, skipped: tuple[tuple[str, str], ...]) -> None:
    console = Console(stderr=True)
    for note in [*loaded.notes, *(f"skipped {name}: {reason}" for name, reason in skipped)]:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
