"""`replknet study` and `replknet report`, and what they share with `replknet ablate`."""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from analysis.cli.choosing import ModelChoice
from analysis.cli.console import (
    clear_errors_for_files,
    command_line,
    print_line,
    print_notes,
    print_table,
    progress_bar,
    run_folder,
)
from analysis.cli.options import Fields, Out, Overwrite, Workers, parse_names, takes
from analysis.runs.folder import RunFolder
from analysis.runs.memory import keep_freed_memory
from analysis.runs.methods import PAPER
from analysis.runs.processes import by_first
from analysis.runs.results import ResultError
from analysis.runs.settings import AT_ONCE
from analysis.runs.writing import clear_leftovers
from analysis.study.design import ADDED, GENERATED, PRESETS, Study, preset
from analysis.study.families import family_differences
from analysis.study.images import StudyImages
from analysis.study.jobs import CellState
from analysis.study.measures import BRIEF, shown
from analysis.study.record import PEOPLE, STUDY_FILE, load_study, read_study, save_people, save_study
from analysis.study.result import settings_of, study_table
from analysis.study.running import check_cells
from analysis.study.sweeping import run_study
from analysis.study.verdict import findings, summary_text, warnings_of

app = typer.Typer()
PLACE = Fields(ModelChoice, only=("device",))
Data = Annotated[
    Path | None,
    typer.Option(help="Image folder with train/ and val/ (or test/), a sub-folder each class; else generated images."),
]
_MOST_SEEDS = 100
"""Of a study that stops by itself."""
Stimuli = Annotated[
    list[Path] | None,
    typer.Option(
        help="With --data: cue-conflict stimuli on which the networks are tested, too, in the categories that their "
        "classes name; again for folders called edges and silhouettes."
    ),
]
Humans = Annotated[
    Path | None, typer.Option(help="Folder of raw responses of people to these stimuli, one CSV each, to compare with.")
]
AtOnce = Annotated[
    int | None,
    typer.Option(
        help="Cells at the same time, each with its part of the cores; by default one for each core; on a "
        "GPU so, too, if the networks are so small that it waits for the CPU, else one.",
        min=AT_ONCE[0],
        max=AT_ONCE[1],
    ),
]
_PRESET_HELP = "quick (seconds), standard (minutes) or full (hours); where all other options start."
Preset = Annotated[str, typer.Option("--preset", help=_PRESET_HELP)]


def study_fields(*names: str) -> Fields:
    """Options of these fields of a study; of all but the image folder, the recipe and the capped ones by default."""
    return Fields(
        Study,
        only=names,
        without=("data", "stimuli", "humans", "recipe", *(() if names else ("until_width",))),
        called={
            "num_seeds": "seeds",
            "shortcuts": "shortcut",
            "num_train": "train_images",
            "num_val": "val_images",
            "num_conflict": "conflict_images",
            "num_erf": "erf_images",
        },
        parsed={
            "families": partial(parse_names, "--families"),
            "shortcuts": _parse_shortcuts,
            "train_balance": _parse_balance,
        },
        helps={
            "shortcuts": "Identity shortcut of the blocks: with, without or both.",
            "train_balance": "Balance of the cues in training, from -1 (no texture) to 1 (no figure), or random.",
        },
        changes=True,
    )


def _parse_shortcuts(text: str) -> tuple[bool, ...]:
    choices = {"with": (True,), "without": (False,), "both": (True, False)}
    if text not in choices:
        raise ValueError(f"shortcut={text}: expected with, without or both")
    return choices[text]


def _parse_balance(text: str) -> float | None:
    try:
        return None if text == "random" else float(text)
    except ValueError:
        raise ValueError(f"train_balance={text}: expected a number from -1 to 1, or random") from None


def changed_preset(
    name: str,
    data: Path | None,
    stimuli: Sequence[Path] | None,
    humans: Path | None,
    study: dict[str, Any],
    recipe: dict[str, Any],
) -> Study:
    """A preset, of an image folder or not, with other values of some fields."""
    base = preset(name, None if data is None else _whole(data))
    base = replace(base, stimuli=tuple(map(_whole, stimuli or ())), humans=None if humans is None else _whole(humans))
    for field in GENERATED if data is not None else ():
        if field in study:
            raise ValueError(f"{field}={study[field]}: goes with generated images only, not with an image folder")
    if "image_size" in recipe and recipe.get("augmentation", base.recipe.augmentation) != "imagenet":
        raise ValueError(f"image_size={recipe['image_size']}: goes with augmentation 'imagenet' only")
    if "size" in study:
        study = {"erf_size": 4 * study["size"], **study}
    return replace(base, **study, recipe=replace(base.recipe, **recipe))


def study_for(out: Path, overwrite: bool, name: str, *options: Any) -> Study:
    """The study of `changed_preset`.

    Raises:
        ValueError: If OUT holds another one, which has these options and another preset.
    """
    chosen = changed_preset(name, *options)
    earlier = name if overwrite else _preset_of(out, name, options)
    if earlier != name:
        raise ValueError(
            f"out={str(out)!r}: holds another study; --preset {earlier} would be that of the earlier run, this is "
            f"{name}; choose that preset or another folder, or --overwrite replaces it"
        )
    return chosen


def _preset_of(out: Path, name: str, options: Sequence[Any]) -> str:
    """The preset that makes these options the study in OUT, `name` where it does; also if none does."""
    for other in (name, *PRESETS):
        with suppress(ValueError):  # there is no study, or the options do not go with that preset
            if _shared(changed_preset(other, *options)) == _shared(read_study(out)[0]):
                return other
    return name


def _shared(study: Study) -> dict[str, Any]:
    """What all cells of a study, and those that are added to it, share."""
    return {name: value for name, value in asdict(study).items() if name not in ADDED}


def _whole(path: Path) -> str:
    return str(path.resolve() if path.exists() else path)


@app.command()
@takes(changes=study_fields("families", "budget", "kernels", "num_seeds", "until_width"), place=PLACE)
def study(
    out: Out,
    changes: dict[str, Any],
    place: ModelChoice,
    preset: Preset = "standard",
    data: Data = None,
    stimuli: Stimuli = None,
    humans: Humans = None,
    steps: Annotated[int | None, typer.Option(help="Training steps of each network.", min=1)] = None,
    workers: Workers = None,
    at_once: AtOnce = None,
    overwrite: Overwrite = False,
) -> None:
    """Train networks that differ in kernel size, measure accuracy, receptive field and shape bias, write a report."""
    if "until_width" in changes:
        changes = {"num_seeds": _MOST_SEEDS, **changes}
    recipe = {} if steps is None else {"steps": steps}
    chosen = study_for(out, overwrite, preset, data, stimuli, humans, changes, recipe)
    failed = sweep(chosen, out, workers, place, at_once, overwrite)
    _write_report(out)
    if failed:
        raise typer.Exit(1)


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="Folder of a study.")],
) -> None:
    """Write the table, the figures and the page of a study anew."""
    _write_report(directory)


@contextmanager
def study_folder(study: Study, out: Path, device: str, overwrite: bool, *folders: str) -> Iterator[StudyImages]:
    """Make OUT the folder of this study, with folders for its cells and others, if its images are fit."""
    from analysis.study.report import FIGURES, REPORT, TABLE

    if not overwrite:
        _keep_rule(study, out)
    settings = asdict(study)
    for name in ADDED:
        settings.pop(name)  # cells are added to a study; what they share makes it another one
    images = StudyImages(study)
    check_cells(study, images, device)  # what is wrong is said before OUT is touched
    settings["images"] = images.fingerprint
    for name in study.families:
        without = sorted(set(study.kernels).difference(study.kernels_of(name)))
        if without:
            print_notes([f"{name} has no kernels of {', '.join(map(str, without))}, and no cells with them"])
    with run_folder(out, "study", settings, overwrite=overwrite) as folder:
        for name in ("cells", *folders):
            by_first(partial(folder.add, name)).mkdir(exist_ok=True)
        for name in folders:
            by_first(partial(clear_leftovers, out / name, alone=True))
        for name in (REPORT, TABLE, FIGURES, *PAPER):  # `report` may be called meanwhile
            by_first(lambda name=name: None if (out / name).exists() else folder.add(name))  # type: ignore[misc]
        by_first(lambda: save_study(study, command_line(), folder.add(STUDY_FILE).parent))
        if images.people:
            by_first(lambda: save_people(images.people, folder.add(PEOPLE).parent))
        yield images


def _keep_rule(study: Study, out: Path) -> None:
    """Refuse tests for a number of seeds that was not fixed before."""
    try:
        former, _ = read_study(out)
    except ResultError:
        return
    if former.until_width is not None and study.until_width is None:
        raise ValueError(
            f"out={str(out)!r}: expected replknet study --until-width {former.until_width:g}, as before: seeds were "
            "added until an interval was narrow, which no test for a number fixed before allows for"
        )


def sweep(
    study: Study, out: Path, workers: int | None, place: ModelChoice, at_once: int | None, overwrite: bool
) -> int:
    """Run a study in OUT; returns the number of failed cells."""
    keep_freed_memory()
    limited = study.until_width is not None
    with study_folder(study, out, place.device, overwrite), progress_bar("study", at_most=limited) as progress:
        outcomes = run_study(
            study,
            out,
            num_workers=place.workers(workers),
            device=place.device,
            at_once=at_once,
            progress=progress,
        )
        if len(outcomes) < len(study.cells()):  # it was stopped by `until_width`
            seeds = 1 + max(outcome.cell.seed for outcome in outcomes)
            by_first(lambda: save_study(replace(study, num_seeds=seeds), command_line(), out))
    if limited:
        what = "stopped at" if len(outcomes) < len(study.cells()) else "the limit was reached:"
        print_notes([f"{what} {1 + max(outcome.cell.seed for outcome in outcomes)} seeds"])
    if not all(outcome.reused for outcome in outcomes):
        print_notes(place.device_notes())
    reused = sum(outcome.reused for outcome in outcomes)
    if reused:
        print_notes([f"{reused} of {len(outcomes)} cells were finished before"])
    failed = [outcome for outcome in outcomes if outcome.result is None]
    for outcome in failed:
        print_line(
            f"warning: cell {outcome.cell.name} failed: {outcome.error}; the whole trace is in "
            f"{out / 'cells' / outcome.cell.name / 'error.txt'}"
        )
    if len(failed) == len(outcomes):
        raise ValueError(f"every cell failed; the first with {failed[0].error}")
    return len(failed)


def print_states(states: Sequence[CellState]) -> None:
    """A table of the cells of a study, and how many are in which state."""
    table = Table("cell", "state", "job", "last line")
    for state in states:
        table.add_row(state.cell, state.state, state.job, state.line)
    print_table(table)
    counts = Counter(state.state for state in states)
    typer.echo(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))


def _write_report(directory: Path) -> None:
    from analysis.study.report import FIGURES, REPORT, TABLE, write_report

    def write() -> Path:
        folder = RunFolder.existing(directory)
        if folder is None:
            return write_report(directory)
        for name in (REPORT, TABLE, FIGURES, *PAPER):
            folder.add(name)
        return write_report(directory)

    with clear_errors_for_files(directory, "directory"):
        path = by_first(write)
    record = load_study(directory)
    if any(state.state != "done" for state in record.states):
        print_states(record.states)
    if not record.results:
        typer.echo(f"report: {path}")
        return
    rows = study_table(record.results)
    measures = shown(BRIEF, rows)
    for label, own in settings_of(rows):
        table = Table("kernel", "seeds", *(measure.heading for measure in measures), title=label or None)
        for kernel, cells in own.groupby("kernel"):
            values = [summary_text(cells[measure.name].tolist(), measure) for measure in measures]
            table.add_row(str(kernel), str(len(cells)), *values)
        print_table(table)
        if len(set(own["kernel"])) > 1:
            for finding in findings(own, sequential=record.study.until_width is not None):
                typer.echo(f"{finding.question} {finding.answer}")
    for found in family_differences(rows, sequential=record.study.until_width is not None):
        typer.echo(found.text)
    print_notes(warnings_of(rows, chance=record.chance), "warning")
    typer.echo(f"report: {path}")
