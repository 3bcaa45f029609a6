"""`replknet ablate`."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from analysis.cli.choosing import ModelChoice, default_workers
from analysis.cli.console import command_line, print_line, print_notes, print_table, progress_bar, run_folder
from analysis.cli.methods import networks_told
from analysis.cli.options import ErfBatch, Fields, Labels, Out, Overwrite, Workers, parse_numbers, takes
from analysis.cli.study import (
    PLACE,
    AtOnce,
    Data,
    Humans,
    Preset,
    Stimuli,
    print_states,
    study_fields,
    study_folder,
    study_for,
    sweep,
)
from analysis.models.libraries import names_library
from analysis.models.specs import split_name
from analysis.runs.folder import RunFolder
from analysis.runs.identity import hash_weights
from analysis.runs.memory import keep_freed_memory
from analysis.runs.methods import software, warned, write_methods
from analysis.runs.processes import by_first
from analysis.runs.settings import SIDES
from analysis.runs.tables import write_table
from analysis.shape_bias.categories import LabelMapping
from analysis.study import posthoc
from analysis.study.answers import unanswered
from analysis.study.design import Study
from analysis.study.jobs import FOLDER, JobOptions, cell_jobs, cell_states, job_script, run_locally, submit
from analysis.study.materials import materials_for
from analysis.study.methods import posthoc_methods
from analysis.study.record import read_study
from analysis.study.result import CellResult
from analysis.training.recipe import Recipe
from replknet.networks import ANY_FAMILY

app = typer.Typer()
ablate = typer.Typer(help="Kernel-size ablations, trained anew or on a trained network.")
app.add_typer(ablate, name="ablate")


@ablate.callback()
def _group() -> None:
    """Kernel-size ablations, trained anew or on a trained network."""


def _minutes(text: str) -> int:
    """Minutes of a time as Slurm writes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    known = all(part.isdecimal() and len(part) < 9 for part in (*parts, days or "0"))
    if not known or len(parts) > 3 or (dash and not days):
        raise ValueError(f"time={text}: expected minutes, H:M:S or D-H:M:S")
    numbers = list(map(int, parts))
    if dash:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return 24 * 60 * int(days or 0) + 60 * hours + minutes + -(-seconds // 60)


_JOB = Fields(
    JobOptions,
    called={"minutes": "time", "at_once": "array_parallelism", "signal_seconds": "signal_delay"},
    parsed={"minutes": _minutes},
    helps={
        "minutes": "Of a job, as Slurm writes it, e.g. 90, 12:00:00 or 2-00; it then goes on in another.",
        "executor": "Each cell a job of its own, through submitit: slurm, or local for processes here.",
        "slurm": "Option of sbatch, e.g. account=vision; may be given several times.",
    },
    tell_defaults=True,
    changes=True,
)


def _parse_decay(text: str) -> float | None:
    try:
        return None if text == "none" else float(text) or None
    except ValueError:
        raise ValueError(f"ema_decay={text!r}: expected a number in [0, 1), or none") from None


_RECIPE = Fields(
    Recipe,
    called={"drop_path_rate": "drop_path"},
    parsed={"ema_decay": _parse_decay},
    helps={"ema_decay": "Of a moving average of the weights, from 0 to 1; 0 or none for none."},
    changes=True,
)


@ablate.command("train")
@takes(study=study_fields(), recipe=_RECIPE, place=PLACE, job=_JOB)
def ablate_train(
    out: Out,
    study: dict[str, Any],
    recipe: dict[str, Any],
    place: ModelChoice,
    job: dict[str, Any],
    preset: Preset = "standard",
    data: Data = None,
    stimuli: Stimuli = None,
    humans: Humans = None,
    workers: Workers = None,
    at_once: AtOnce = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the job script, submit nothing.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Train and measure a sweep with every choice open; `replknet report OUT` makes its page.

    With --executor, each cell is a job: `replknet ablate status OUT` tells how they are, and the same command again
    submits what is neither done nor on its way.
    """
    chosen = study_for(out, overwrite, preset, data, stimuli, humans, study, recipe)
    if job and "executor" not in job and not dry_run:
        raise ValueError(f"{next(iter(job))}={next(iter(job.values()))}: goes with --executor only")
    if "executor" in job or dry_run:
        if at_once is not None:
            raise ValueError(f"at_once={at_once}: goes without --executor; see --array-parallelism")
        options = JobOptions(**job)
        if workers is None:
            workers = default_workers(options.cpus) if options.gpus else 0
        _submit(chosen, out, options, workers, place.device, dry_run, overwrite)
        return
    failed = sweep(chosen, out, workers, place, at_once, overwrite)
    typer.echo(f"cells: {out / 'cells'}; replknet report {out} makes the page")
    if failed:
        raise typer.Exit(1)


def _submit(
    study: Study, out: Path, options: JobOptions, workers: int, device: str, dry_run: bool, overwrite: bool
) -> None:
    """Submit the cells that are neither done nor on their way."""
    states = {state.cell: state for state in cell_states(study, out)}
    wanted = [states[cell.name] for cell in study.cells()]
    names = [state.cell for state in wanted if state.state in ("failed", "missing")]
    chosen = cell_jobs(study, names, out, options, num_workers=workers, device=device)
    if dry_run:
        typer.echo(job_script(chosen, out, options))
        print_notes([f"the cells would be {', '.join(names) or 'none: all are done or on their way'}"])
        return
    with study_folder(study, out, device, overwrite, FOLDER) as images:
        done = [CellResult.load(out / "cells" / state.cell) for state in wanted if state.state == "done"]
        silent = sum(bool(unanswered(result, images)) for result in done)
        if silent:
            print_notes([f"{silent} finished cells have not answered the stimuli; without --executor they do at once"])
        if not chosen:
            print_notes(["every cell is done or on its way; nothing is submitted"])
        elif options.executor == "local":
            with progress_bar("cells") as progress:
                run_locally(chosen, out, options, progress)
        else:
            numbers = submit(chosen, out, options)
            print_line(f"submitted {len(numbers)} cells as {numbers[0].partition('_')[0]}")
    print_states(cell_states(study, out))
    typer.echo(f"replknet ablate status {out} looks again; replknet report {out} makes the page")


@ablate.command("status")
def ablate_status(
    directory: Annotated[Path, typer.Argument(help="Folder of a sweep.")],
) -> None:
    """Tell of every cell of a sweep whether it is done, running, pending, failed or missing, with its last line."""
    study, _ = read_study(directory)
    print_states(cell_states(study, directory))


@ablate.command("posthoc")
@takes(choice=Fields(ModelChoice, only=("checkpoint", "device", "dtype", "seed")))
def ablate_posthoc(
    model: Annotated[
        str,
        typer.Argument(
            help="replknet_31b and siblings, replknet_nano_k31, or the folder or file of a training; NAME=... names it."
        ),
    ],
    out: Out,
    choice: ModelChoice,
    kernels: Annotated[str | None, typer.Option(help="Sides to crop kernels to, e.g. 1,3,7,13,21.")] = None,
    stages: Annotated[bool, typer.Option(help="Also crop one stage at a time.")] = True,
    data: Annotated[
        Path | None, typer.Option(help="Image folder with val/ (or test/), a sub-folder each class, for the accuracy.")
    ] = None,
    stimuli: Annotated[Path | None, typer.Option(help="Folder of cue-conflict stimuli for the shape bias.")] = None,
    labels: Labels = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images for receptive fields; else the network's own kind.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Their side in pixels.", min=32, max=SIDES[1])] = None,
    num_images: Annotated[int, typer.Option(help="How many of them.", min=1)] = 12,
    batch_size: ErfBatch = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Crop the large kernels of a trained network, without retraining, and measure what that does.

    A crop leaves the parallel small kernel as it is, unless the two are merged already.

    A network of a study on generated images needs no data. For others, --data gives the accuracy, --stimuli the shape
    bias; the receptive field and the energy of the kernels need neither.
    """
    wanted = None if kernels is None else parse_numbers("--kernels", kernels)
    if names_library(split_name(model)[1]):
        raise ValueError(f"model={model!r}: expected {ANY_FAMILY}, whose kernels can be cropped")
    (loaded,) = choice.load([model])
    materials = materials_for(
        loaded,
        data=data,
        stimuli=stimuli,
        mapping=None if labels is None else LabelMapping.from_csv(labels),
        images=images,
        size=size,
        num_images=num_images,
        seed=choice.seed,
    )
    module: Any = loaded.module
    variants = posthoc.default_variants(module, wanted, by_stage=stages)
    settings = {
        "weights": hash_weights(module),
        "variants": [variant.name for variant in variants],
        "data": None if data is None else str(data),
        "stimuli": None if stimuli is None else str(stimuli),
        "images": None if images is None else str(images),
        "size": materials.size,
        "num_images": num_images,
        "seed": choice.seed,
        "labels": [list(pair) for pair in materials.mapping.indices],
        **choice.computed_on(),
    }
    keep_freed_memory()
    with run_folder(out, "posthoc", settings, overwrite=overwrite) as folder:
        with progress_bar(loaded.name) as progress:
            results = posthoc.measure_variants(
                loaded,
                variants,
                by_first(lambda: folder.add("variants")),
                erf_images=materials.erf_images,
                labelled=materials.labelled,
                stimuli=materials.stimuli,
                mapping=materials.mapping,
                measured_on=materials.measured_on,
                settings=settings,
                batch_size=batch_size,
                num_workers=choice.workers(workers),
                progress=progress,
            )
        energy = posthoc.kernel_energy(module)
        methods = posthoc_methods(results, loaded.name) + warned(posthoc.posthoc_warnings(results))
        methods += networks_told([model], [loaded], initial=False)
        methods += software([results[0].erf.environment])
        by_first(lambda: write_methods(methods, folder.replace))
        by_first(lambda: _write(results, energy, folder, loaded.name))
    headings, rows = posthoc.posthoc_texts(results)
    shown = Table(*headings)
    for row in rows:
        shown.add_row(*row)
    print_table(shown)
    print_line(f"Variants: {posthoc.names_explained(variants)}.", stderr=False)
    print_line(f"Brackets are {posthoc.intervals_text(results)}.", stderr=False)
    print_notes(loaded.notes)
    if not posthoc.branches_of(module):
        print_notes(["the small kernels of this network are merged or absent; they cannot be dropped"])
    print_notes(posthoc.posthoc_warnings(results), "warning")
    typer.echo(f"table, energy of the kernels, figure and page (index.html): {out}")


def _write(results: Sequence[posthoc.VariantResult], energy: Any, folder: RunFolder, name: str) -> None:
    from analysis.pages.drawing import Drawing, save_drawings
    from analysis.pages.page import LINKED, PAGE, files_below, write_page
    from analysis.study.plots import posthoc_figure
    from analysis.study.posthoc_page import posthoc_page

    table = posthoc.posthoc_table(results)
    for kind, content in (("posthoc", table), ("energy", energy)):
        with folder.replace(f"{kind}.csv") as path:
            write_table(content, path)
    drawing = Drawing(name="posthoc", caption="Every measure.", draw=lambda: posthoc_figure(table, energy))
    save_drawings([drawing], folder.replace)
    files = files_below(folder.path, *LINKED)
    write_page(folder.add(PAGE), posthoc_page(results, energy, name=name, command=command_line(), files=files))
