"""`replknet compare`."""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from analysis.cli import ARGUMENTS, as_typed
from analysis.cli.choosing import MODEL_HELP, ModelChoice, owned
from analysis.cli.console import (
    command_line,
    parse_size,
    print_line,
    print_notes,
    print_table,
    progress_bar,
    run_folder,
    skipped_notes,
)
from analysis.cli.erf import fitting_size
from analysis.cli.methods import networks_told
from analysis.cli.options import (
    BatchSize,
    ErfBatch,
    Fields,
    LabelsOfEach,
    Out,
    Overwrite,
    Workers,
    parse_numbers,
    takes,
)
from analysis.images.sets import load_images
from analysis.images.stimuli import load_stimuli
from analysis.models.layers import ForwardError
from analysis.models.loaded import LoadedModel
from analysis.models.untrained import signs_of_no_training
from analysis.runs.folder import folder_names
from analysis.runs.memory import keep_freed_memory
from analysis.runs.methods import PAPER
from analysis.runs.settings import COUNTS, check_number
from analysis.shape_bias.categories import LabelMapping
from analysis.shape_bias.mapping import common_classes
from analysis.shape_bias.responses import read_observers
from analysis.study.compared.measuring import NETWORKS, check_comparable, compare_networks
from analysis.study.compared.result import BRIEF, COMPARED, Comparison
from analysis.study.compared.verdict import field_and_bias, people_text, warnings_of_networks
from analysis.study.measures import cell_text
from analysis.study.record import PEOPLE, save_people

app = typer.Typer()


@app.callback()
def _group() -> None:
    """So that the command keeps its name."""


@app.command()
@takes(choice=Fields(ModelChoice, without=("pretrained", "unit_scales")))
def compare(
    model: Annotated[list[str], typer.Argument(help=MODEL_HELP)],
    out: Out,
    choice: ModelChoice,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder of images for receptive fields; without it, generated dead-leaves images."),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            help="Their size in pixels, N or HxW. By default 1024, or that of a network which takes no other."
        ),
    ] = None,
    num_images: Annotated[int, typer.Option(help="How many of them are drawn.")] = 50,
    stimuli: Annotated[
        Path | None, typer.Option(help="Folder of stimuli named <shape><i>-<texture><j>, for the shape bias.")
    ] = None,
    humans: Annotated[Path | None, typer.Option(help="Folder of raw responses of people, one CSV each.")] = None,
    labels: LabelsOfEach = None,
    input_size: Annotated[
        list[str] | None,
        typer.Option(
            help="Side in pixels at which networks get stimuli and labelled images, and are timed, in place of their "
            "own; NAME=N for one network alone; may be given several times."
        ),
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Image folder with a sub-folder each class, for the accuracy.")
    ] = None,
    batch_size: BatchSize = 16,
    erf_batch_size: ErfBatch = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Put trained networks beside each other: receptive field, shape bias, people, accuracy, cost; write a report.

    The same command again resumes, and with more networks measures those only. What a network cannot do is left empty,
    with the reason. With --overwrite, measurements of another run that fit are kept.
    """
    from analysis.study.compared.report import TABLE, write_comparison
    from analysis.study.report import FIGURES, REPORT

    check_number("num_images", num_images, COUNTS)
    if humans is not None and stimuli is None:
        raise ValueError(f"--humans={str(humans)!r}: goes with --stimuli only")
    if labels and stimuli is None and data is None:
        raise ValueError(f"--labels={labels[0]!r}: goes with --stimuli or --data only")
    people = [] if humans is None else read_observers(humans, categories=None)
    folder_names([person.observer for person in people])  # refuses two that would share one
    shown = None if stimuli is None else load_stimuli(stimuli)
    loaded = [replace(item, notes=(*item.notes, *signs_of_no_training(item))) for item in choice.load(model)]
    loaded = [
        item if side is None else _at_size(item, parse_numbers("--input-size", side, count=1, within=(1, 4096))[0])
        for item, side in zip(loaded, owned("--input-size", input_size, loaded), strict=True)
    ]
    mapping = _mappings(labels, loaded)
    check_comparable(loaded, stimuli=shown, people=people, data=data)
    pixels = _common_size(loaded) if size is None else parse_size(size)
    chosen = load_images(images, size=pixels, num_images=num_images, seed=choice.seed)
    settings = {
        "images": hashlib.sha256(" ".join(chosen.hashes).encode()).hexdigest(),
        "size": pixels,
        "stimuli": None if shown is None else hashlib.sha256(" ".join(shown.hashes).encode()).hexdigest(),
        "labels": {name: [list(pair) for pair in own.indices] for name, own in mapping.items()} or None,
        "data": None if data is None else str(data),
        **choice.computed_on(),
    }
    keep_freed_memory()
    with run_folder(out, "compare", settings, overwrite=overwrite, keep=(NETWORKS,)) as folder:
        with progress_bar("networks") as progress:
            comparison = compare_networks(
                loaded,
                folder.add(NETWORKS).parent,
                images=chosen,
                stimuli=shown,
                people=people,
                data=data,
                mapping=mapping,
                batch_size=batch_size,
                erf_batch_size=erf_batch_size,
                num_workers=choice.workers(workers),
                overwrite=overwrite,
                progress=progress,
            )
        comparison = _in_options(comparison)
        for name in (REPORT, TABLE, FIGURES, *PAPER):
            folder.add(name)
        if comparison.people:
            save_people(comparison.people, folder.add(PEOPLE).parent)
        answered = [network.name for network in comparison.networks if network.evaluation is not None]
        told = networks_told(model, loaded, prepared=answered)
        page = write_comparison(comparison, out, command=command_line(), told=told)
    _report(comparison)
    print_notes([*(note for item in loaded for note in item.notes), *skipped_notes(chosen.skipped)])
    if shown is not None:
        print_notes([*shown.notes, *skipped_notes(shown.skipped)])
    typer.echo(f"report: {page}")


def _common_size(loaded: Sequence[LoadedModel]) -> tuple[int, int]:
    """The size of the receptive fields: what all take, but for networks of which none can be measured."""
    usual, _ = fitting_size([], None)
    for item in loaded:
        try:
            pixels, notes = fitting_size([item], None)
        except ForwardError:
            continue
        if pixels != usual:
            print_notes(notes)
            return pixels
    return usual


def _at_size(loaded: LoadedModel, side: int) -> LoadedModel:
    """With images of that size, prepared as RepLKNet's are."""
    return replace(loaded, input_size=side, transform=None)


def _mappings(labels: Sequence[str] | None, loaded: Sequence[LoadedModel]) -> dict[str, LabelMapping]:
    """What tables say of networks, by their names.

    Raises:
        ValueError: If one table is for networks of different classes.
    """
    files = owned("--labels", labels, loaded)
    for file in dict.fromkeys(filter(None, files)):
        try:
            common_classes([item for item, own in zip(loaded, files, strict=True) if own == file])
        except ValueError:
            raise ValueError(
                f"labels={file!r}: one table, and the networks have different classes; NAME={file} is for one alone"
            ) from None
    return {
        item.name: LabelMapping.from_csv(file) for item, file in zip(loaded, files, strict=True) if file is not None
    }


def _in_options(comparison: Comparison) -> Comparison:
    """With reasons that speak of what can be typed; those in the folders speak of arguments of functions."""
    return replace(
        comparison,
        networks=tuple(
            replace(network, missing={name: as_typed(why, ARGUMENTS.get()) for name, why in network.missing.items()})
            for network in comparison.networks
        ),
    )


def _report(comparison: Comparison) -> None:
    rows = comparison.table
    names = [name for name in BRIEF if rows[name].notna().any()]
    table = Table("network", *(COMPARED[name].heading for name in names))
    for row in rows.to_dict("records"):
        table.add_row(row["network"], *(cell_text(row, COMPARED[name]) for name in names))
    print_table(table)
    typer.echo("Parameters and multiply-accumulates of networks of this project are those with kernels merged.")
    people = people_text(comparison)
    if people:
        print_line(f"People: {people}.")
    if rows["shape_bias"].notna().any():
        found = field_and_bias(rows)
        typer.echo(f"{found.question} {found.answer}")
        if found.detail:
            typer.echo(found.detail)
    print_notes(warnings_of_networks(comparison), "warning")
