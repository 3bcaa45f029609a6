"""`replknet study`, `replknet ablate` and `replknet report`."""

import json
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

import replknet
from analysis.cli.console import (
    Device,
    Dtype,
    check_device,
    claim,
    clear_errors_for_files,
    computed_on,
    load_models,
    parse_integers,
    parse_kernels,
    print_table,
    progress_bar,
)
from analysis.runs.memory import keep_freed_memory
from analysis.runs.processes import by_first

app = typer.Typer()


ablate = typer.Typer(help="Kernel-size ablations, trained anew or on a trained network.")


app.add_typer(ablate, name="ablate")


_Out = Annotated[Path, typer.Option(help="Folder for everything; the same command again resumes.")]


_Data = Annotated[
    Path | None,
    typer.Option(help="Image folder with train/ and val/ (or test/), a sub-folder each class; else generated images."),
]


_Kernels = Annotated[str | None, typer.Option(help="Kernel sizes to compare, e.g. 3,7,13,31.")]


_Seeds = Annotated[int | None, typer.Option(help="Trainings of each setting.", min=1)]


_Steps = Annotated[int | None, typer.Option(help="Training steps of each network.", min=1)]


_Workers = Annotated[int, typer.Option(help="Processes that load images; without effect on the results.", min=0)]


_Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace another study in OUT.")]


@ablate.callback()
def _group() -> None:
    """Kernel-size ablations, trained anew or on a trained network."""


@app.command()
def study(
    out: _Out,
    preset: Annotated[str, typer.Option(help="quick (seconds), standard (minutes) or full (hours).")] = "standard",
    data: _Data = None,
    kernels: _Kernels = None,
    seeds: _Seeds = None,
    steps: _Steps = None,
    workers: _Workers = 0,
    device: Device = "cpu",
    overwrite: _Overwrite = False,
) -> None:
    """Train networks that differ in kernel size, measure accuracy, receptive field and shape bias, write a report."""
    from analysis.study import design

    chosen = _changed(design.preset(preset, _resolved(data)), kernels, seeds, steps)
    failed = _sweep(chosen, out, workers, device, overwrite)
    _write_report(out)
    if failed:
        raise typer.Exit(1)


@ablate.command("train")
def ablate_train(
    out: _Out,
    preset: Annotated[str, typer.Option(help="Where the other options start: quick, standard or full.")] = "standard",
    data: _Data = None,
    kernels: _Kernels = None,
    small_kernels: Annotated[
        str | None, typer.Option(help="Parallel kernels to compare, 0 for none, e.g. 3,0.")
    ] = None,
    shortcut: Annotated[
        str | None, typer.Option(help="Identity shortcut of the blocks: with, without or both.")
    ] = None,
    seeds: _Seeds = None,
    size: Annotated[int | None, typer.Option(help="Side of the images in pixels.", min=16)] = None,
    layers: Annotated[str | None, typer.Option(help="Pairs of blocks of each stage, e.g. 1,1,2,1.")] = None,
    channels: Annotated[str | None, typer.Option(help="Width of each stage, e.g. 16,32,64,128.")] = None,
    steps: _Steps = None,
    batch_size: Annotated[int | None, typer.Option(help="Images in a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak rate of AdamW.")] = None,
    weight_decay: Annotated[float | None, typer.Option(help="Of AdamW.")] = None,
    warmup: Annotated[float | None, typer.Option(help="Part of the steps in which the rate rises.")] = None,
    label_smoothing: Annotated[float | None, typer.Option(help="Probability given to all classes together.")] = None,
    drop_path: Annotated[float | None, typer.Option(help="Drop-path rate of the last blocks.")] = None,
    augmentation: Annotated[str | None, typer.Option(help="none, flip or flip-crop.")] = None,
    ema_decay: Annotated[float | None, typer.Option(help="Of a moving average of the weights; 0 for none.")] = None,
    train_images: Annotated[int | None, typer.Option(help="Generated images to train on.")] = None,
    train_balance: Annotated[
        str | None,
        typer.Option(help="Balance of the cues in training, from -1 (no texture) to 1 (no figure), or random."),
    ] = None,
    texture_region: Annotated[str | None, typer.Option(help="Where the texture is: image or figure.")] = None,
    texture_scale: Annotated[float | None, typer.Option(help="Factor on the period of the textures.")] = None,
    erf_size: Annotated[int | None, typer.Option(help="Side in pixels of images for receptive fields.")] = None,
    erf_images: Annotated[int | None, typer.Option(help="How many of them.")] = None,
    workers: _Workers = 0,
    device: Device = "cpu",
    executor: Annotated[
        str | None,
        typer.Option(help="Each cell a job of its own, through submitit: slurm, or local for processes here."),
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Of the cluster.")] = None,
    nodes: Annotated[int, typer.Option(help="Machines for each job.", min=1)] = 1,
    gpus: Annotated[int, typer.Option(help="On each machine; one process for each.", min=0)] = 0,
    processes: Annotated[int, typer.Option(help="On each machine, where there are no GPUs.", min=1)] = 1,
    cpus: Annotated[int, typer.Option(help="For each process.", min=1)] = 1,
    memory: Annotated[float | None, typer.Option(help="Gigabytes for each machine.")] = None,
    time: Annotated[
        str, typer.Option(help="Of a job, as Slurm writes it, e.g. 90, 12:00:00 or 2-00; it then goes on in another.")
    ] = "1-00:00:00",
    array_parallelism: Annotated[
        int | None, typer.Option(help="Jobs at the same time; by default 16 on a cluster, one here.", min=1)
    ] = None,
    signal_delay: Annotated[
        int,
        typer.Option(help="Seconds before its end at which a job writes its state and asks for another turn.", min=1),
    ] = 90,
    slurm: Annotated[
        list[str] | None, typer.Option(help="Option of sbatch, e.g. account=vision; may be given several times.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the job script, submit nothing.")] = False,
    overwrite: _Overwrite = False,
) -> None:
    """Train and measure a sweep with every choice open; `replknet report OUT` makes its page.

    With --executor, each cell is a job: `replknet ablate status OUT` tells how they are, and the same command again
    submits what is neither done nor on its way.
    """
    from analysis.study import design

    base = design.preset(preset, _resolved(data))
    settings: dict[str, Any] = {
        "size": size,
        "num_train": train_images,
        "texture_region": texture_region,
        "texture_scale": texture_scale,
        "erf_size": erf_size if erf_size is not None or size is None else 4 * size,
        "num_erf": erf_images,
    }
    for name, text in (("layers", layers), ("channels", channels)):
        settings[name] = None if text is None else parse_integers(f"--{name}", text)
    if small_kernels is not None:
        settings["small_kernels"] = parse_kernels(small_kernels, "--small-kernels", "3,0")
    if shortcut is not None:
        choices = {"with": (True,), "without": (False,), "both": (True, False)}
        if shortcut not in choices:
            raise ValueError(f"--shortcut={shortcut}: expected with, without or both")
        settings["shortcuts"] = choices[shortcut]
    recipe: dict[str, Any] = {
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "weight_decay": weight_decay,
        "warmup": warmup,
        "label_smoothing": label_smoothing,
        "drop_path_rate": drop_path,
        "augmentation": augmentation,
    }
    given = {name: value for name, value in recipe.items() if value is not None}
    if ema_decay is not None:
        given["ema_decay"] = ema_decay or None
    if train_balance is not None:
        try:
            settings["train_balance"] = None if train_balance == "random" else float(train_balance)
        except ValueError:
            raise ValueError(f"--train-balance={train_balance}: expected a number from -1 to 1, or random") from None
    kept = {name: value for name, value in settings.items() if value is not None or name == "train_balance"}
    changed = replace(base, **kept, recipe=replace(base.recipe, **given))
    chosen = _changed(changed, kernels, seeds, steps)
    if executor is not None or dry_run:
        from analysis.study.jobs import JobOptions

        options = JobOptions(
            executor=executor or "slurm",
            partition=partition,
            nodes=nodes,
            gpus=gpus,
            processes=processes,
            cpus=cpus,
            memory=memory,
            minutes=_minutes(time),
            at_once=array_parallelism or (1 if executor == "local" else 16),
            signal_seconds=signal_delay,
            slurm=_sbatch_options(slurm or []),
        )
        _submit(chosen, out, options, workers, device, dry_run, overwrite)
        return
    failed = _sweep(chosen, out, workers, device, overwrite)
    typer.echo(f"cells: {out / 'cells'}; replknet report {out} makes the page")
    if failed:
        raise typer.Exit(1)


@ablate.command("status")
def ablate_status(
    directory: Annotated[Path, typer.Argument(help="Folder of a sweep.")],
) -> None:
    """Tell of every cell of a sweep whether it is done, running, pending, failed or missing, with its last line."""
    from analysis.study import jobs, record

    study, _ = record.read_study(directory)
    _print_states(jobs.cell_states(study, directory))


@app.command()
def report(
    directory: Annotated[Path, typer.Argument(help="Folder of a study.")],
) -> None:
    """Write the table, the figures and the page of a study anew."""
    _write_report(directory)


def _resolved(data: Path | None) -> str | None:
    return None if data is None else str(data.resolve() if data.exists() else data)


def _changed(study: Any, kernels: str | None, seeds: int | None, steps: int | None) -> Any:
    changes: dict[str, Any] = {}
    if kernels is not None:
        changes["kernels"] = parse_integers("--kernels", kernels)
    if seeds is not None:
        changes["num_seeds"] = seeds
    if steps is not None:
        changes["recipe"] = replace(study.recipe, steps=steps)
    return replace(study, **changes)


def _minutes(text: str) -> int:
    """Minutes of a time as Slurm writes it: M, M:S, H:M:S, D-H, D-H:M or D-H:M:S."""
    days, dash, clock = text.rpartition("-")
    parts = clock.split(":")
    if not all(part.isdecimal() for part in (*parts, days or "0")) or len(parts) > 3 or (dash and not days):
        raise ValueError(f"--time={text}: expected minutes, H:M:S or D-H:M:S")
    numbers = list(map(int, parts))
    if dash:
        hours, minutes, seconds = [*numbers, 0, 0][:3]
    elif len(numbers) == 3:
        hours, minutes, seconds = numbers
    else:
        hours, (minutes, seconds) = 0, [*numbers, 0][:2]
    return 24 * 60 * int(days or 0) + 60 * hours + minutes + -(-seconds // 60)


def _sbatch_options(texts: list[str]) -> dict[str, str]:
    if not all("=" in text for text in texts):
        raise ValueError(f"--slurm={', '.join(texts)}: expected name=value, such as account=vision")
    return {name: value for name, _, value in (text.partition("=") for text in texts)}


def _submit(study: Any, out: Path, options: Any, workers: int, device: str, dry_run: bool, overwrite: bool) -> None:
    """Submit the cells that are neither done nor on their way."""
    from analysis.study import jobs

    states = {state.cell: state for state in jobs.cell_states(study, out)}
    wanted = [states[cell.name] for cell in study.cells()]
    names = [state.cell for state in wanted if state.state in ("failed", "missing")]
    chosen = jobs.cell_jobs(study, names, out, options, num_workers=workers, device=device)
    console = Console(stderr=True)
    if dry_run:
        typer.echo(jobs.job_script(chosen, out, options))
        console.print(f"note: the cells would be {', '.join(names) or 'none: all are done or on their way'}")
        return
    _claim_study(study, out, device, overwrite)
    if not chosen:
        console.print("note: every cell is done or on its way; nothing is submitted", highlight=False)
    elif options.executor == "local":
        with progress_bar("cells") as progress:
            jobs.run_locally(chosen, out, options, progress)
    else:
        numbers = jobs.submit(chosen, out, options)
        console.print(f"submitted {len(numbers)} cells as {numbers[0].partition('_')[0]}", highlight=False)
    _print_states(jobs.cell_states(study, out))
    typer.echo(f"replknet ablate status {out} looks again; replknet report {out} makes the page")


def _print_states(states: Sequence[Any]) -> None:
    table = Table("cell", "state", "job", "last line")
    for state in states:
        table.add_row(state.cell, state.state, state.job, state.line)
    print_table(table)
    counts = Counter(state.state for state in states)
    typer.echo(", ".join(f"{count} {state}" for state, count in sorted(counts.items())))


def _claim_study(study: Any, out: Path, device: str, overwrite: bool) -> None:
    """Make OUT the folder of this study, if its images are fit."""
    from analysis.study import record
    from analysis.study import report as pages
    from analysis.study.images import StudyImages
    from analysis.study.jobs import FOLDER

    check_device(device)
    settings = asdict(study)
    for name in ("kernels", "small_kernels", "shortcuts", "num_seeds"):
        settings.pop(name)  # cells are added to a study; what they share makes it another one
    images = StudyImages(study)
    images.check()  # what is wrong with the images is said before OUT is touched
    settings["images"] = images.fingerprint
    outputs = ["cells", FOLDER, record.STUDY_FILE, pages.TABLE, pages.REPORT, pages.FIGURES]
    with clear_errors_for_files(out):
        claim(out, "study", settings, outputs, overwrite)
        by_first(lambda: record.save_study(study, "replknet " + shlex.join(sys.argv[1:]), out))


def _sweep(study: Any, out: Path, workers: int, device: str, overwrite: bool) -> int:
    """Run a study in OUT; returns the number of failed cells."""
    from analysis.study.running import run_study

    keep_freed_memory()
    _claim_study(study, out, device, overwrite)
    with clear_errors_for_files(out), progress_bar("study") as progress:
        outcomes = run_study(study, out, num_workers=workers, device=device, progress=progress)
    console = Console(stderr=True)
    reused = sum(outcome.reused for outcome in outcomes)
    if reused:
        console.print(f"note: {reused} of {len(outcomes)} cells were finished before", highlight=False)
    failed = [outcome for outcome in outcomes if outcome.result is None]
    for outcome in failed:
        console.print(
            f"warning: cell {outcome.cell.name} failed: {outcome.error}; the whole trace is in "
            f"{out / 'cells' / outcome.cell.name / 'error.txt'}",
            highlight=False,
            markup=False,
        )
    if len(failed) == len(outcomes):
        raise ValueError(f"every cell failed; the first with {failed[0].error}")
    return len(failed)


def _write_report(directory: Path) -> None:
    from analysis.study import record
    from analysis.study import report as pages
    from analysis.study.plots import settings_of
    from analysis.study.result import study_table
    from analysis.study.verdict import findings, interval_text

    with clear_errors_for_files(directory, "directory"):
        path = by_first(lambda: pages.write_report(directory))
    found = record.load_study(directory)
    if any(state.state != "done" for state in found.states):
        _print_states(found.states)
    if not found.results:
        typer.echo(f"report: {path}")
        return
    rows = study_table(found.results)
    biased = rows["shape_bias"].notna().any()
    for label, own in settings_of(rows):
        table = Table("kernel", "seeds", "accuracy (%)", "ERF 50 % area (%)", "untrained (%)", title=label or None)
        if biased:
            for name in ("shape bias", "PSE"):
                table.add_column(name)
        for kernel, cells in own.groupby("kernel"):
            columns = [(name, True) for name in ("accuracy", "erf_area_0.5", "untrained_erf_area_0.5")]
            columns += [("shape_bias", False), ("pse", False)] if biased else []
            values = [
                interval_text(cells[name].tolist(), percent=percent, lowest=-1.0 if name == "pse" else 0.0)
                for name, percent in columns
            ]
            table.add_row(str(kernel), str(len(cells)), *values)
        print_table(table)
        if len(set(own["kernel"])) > 1:
            for finding in findings(own):
                typer.echo(f"{finding.question} {finding.answer}")
    typer.echo(f"report: {path}")


@ablate.command("posthoc")
def ablate_posthoc(
    model: Annotated[
        str, typer.Argument(help="replknet_31b and siblings, replknet_nano_k31, or the network.safetensors of a study.")
    ],
    out: _Out,
    kernels: Annotated[str | None, typer.Option(help="Sides to crop kernels to, e.g. 1,3,7,13,21.")] = None,
    stages: Annotated[bool, typer.Option(help="Also crop one stage at a time.")] = True,
    checkpoint: Annotated[Path | None, typer.Option(help="Weight file of a RepLKNet.")] = None,
    data: _Data = None,
    stimuli: Annotated[Path | None, typer.Option(help="Folder of cue-conflict stimuli for the shape bias.")] = None,
    labels: Annotated[
        Path | None, typer.Option(help="CSV with class_index and category, for models with other classes.")
    ] = None,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images for receptive fields; else the network's own kind.")
    ] = None,
    size: Annotated[int | None, typer.Option(help="Their side in pixels.", min=32)] = None,
    num_images: Annotated[int, typer.Option(help="How many of them.", min=1)] = 12,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Annotated[int, typer.Option(help="Of random weights and of the image draw.", min=0)] = 0,
    overwrite: _Overwrite = False,
) -> None:
    """Crop the large kernels of a trained network, without retraining, and measure what that does.

    A crop leaves the parallel small kernel as it is, unless the two are merged already.

    A network of a study on generated images needs no data. For others, --data gives the accuracy, --stimuli the shape
    bias; the receptive field and the energy of the kernels need neither.
    """
    from analysis.images.labelled import FolderImages, InMemory
    from analysis.images.sets import load_images
    from analysis.images.stimuli import load_stimuli
    from analysis.images.synthetic.outlines import CLASSES
    from analysis.runs.identity import hash_weights
    from analysis.shape_bias.categories import IMAGENET, MAPPING, LabelMapping
    from analysis.shape_bias.measuring import check_model, preprocessing_of
    from analysis.study import posthoc
    from analysis.study.design import Study
    from analysis.study.images import StudyImages

    (loaded,) = load_models([model], checkpoint, None, None, True, seed, False, device, dtype)
    module = loaded.module
    if not isinstance(module, replknet.RepLKNet):
        raise ValueError(f"model={model!r}: expected a RepLKNet")
    trained = loaded.training
    own = loaded.classes == CLASSES and data is None
    side = size or int(trained.get("erf_size", 4 * (loaded.input_size or 128)))
    labelled, generated = None, None
    if own:
        generated = StudyImages(
            Study(
                size=loaded.input_size or 64,
                layers=module.config.layers,
                channels=module.config.channels,
                train_balance=trained.get("train_balance"),
                texture_region=trained.get("texture_region", "image"),
                texture_scale=trained.get("texture_scale", 1.0),
                erf_size=side,
                num_erf=num_images,
            )
        )
        labelled = generated.val
    if data is not None:
        labelled = InMemory(FolderImages(data, "val", size=loaded.input_size or 224))
        if len(labelled.classes) != module.config.num_classes or loaded.classes not in ((), labelled.classes):
            raise ValueError(
                f"--data={str(data)!r}: has the classes {', '.join(labelled.classes[:5])}, ...; the network "
                f"{', '.join(loaded.classes[:5]) or module.config.num_classes}, ..."
            )
    chosen = load_stimuli(stimuli) if stimuli is not None else generated.conflict(0.0) if generated else None
    mapping = LabelMapping.from_csv(labels) if labels is not None else MAPPING if own else IMAGENET
    if chosen is not None:
        check_model(loaded, chosen, mapping, preprocessing_of(loaded))
    erf_images: Any
    if generated is not None and images is None:
        erf_images = generated.erf
    else:
        erf_images = load_images(images, size=side, num_images=num_images, seed=seed, mean=loaded.mean, std=loaded.std)
    wanted = None if kernels is None else parse_kernels(kernels, "--kernels", "3,7,13")
    variants = posthoc.default_variants(module, wanted, by_stage=stages)
    settings = {
        "weights": hash_weights(module),
        "variants": [variant.name for variant in variants],
        "data": None if data is None else str(data),
        "stimuli": None if stimuli is None else str(stimuli),
        "images": None if images is None else str(images),
        "size": side,
        "num_images": num_images,
        "seed": seed,
        "labels": [list(pair) for pair in mapping.indices],
        **computed_on(device, dtype),
    }
    outputs = ["variants", "posthoc.csv", "energy.csv", "posthoc.png", "posthoc.pdf"]
    keep_freed_memory()
    with clear_errors_for_files(out):
        claim(out, "posthoc", settings, outputs, overwrite)
        with progress_bar(loaded.name) as progress:
            results = posthoc.measure_variants(
                loaded,
                variants,
                out / "variants",
                erf_images=erf_images,
                labelled=labelled,
                stimuli=chosen,
                mapping=mapping,
                settings=json.loads(json.dumps(settings)),
                progress=progress,
            )
        table, energy = posthoc.posthoc_table(results), posthoc.kernel_energy(module)
        table.to_csv(out / "posthoc.csv", index=False)
        energy.to_csv(out / "energy.csv", index=False)
        _posthoc_figure(table, energy, out)
    shown = Table("variant", "accuracy (%)", "ERF 50 % area (%)", "ERF 99 % area (%)", "shape bias", "coverage (%)")
    for row in table.to_dict("records"):
        numbers = [(row["accuracy"], 100, 1), (row["erf_area_0.5"], 100, 1), (row["erf_area_0.99"], 100, 1)]
        numbers += [(row["shape_bias"], 1, 2), (row["coverage"], 100, 1)]
        cells = ["-" if value != value else f"{scale * value:.{digits}f}" for value, scale, digits in numbers]
        shown.add_row(row["variant"], *cells)
    print_table(shown)
    for note in loaded.notes:
        typer.echo(f"note: {note}", err=True)
    if not posthoc.has_small_branch(module):
        typer.echo("note: the small kernels of this network are merged or absent; they cannot be dropped", err=True)
    typer.echo(f"table, energy of the kernels and figure: {out}")


def _posthoc_figure(table: Any, energy: Any, out: Path) -> None:
    from analysis.figures import paper_style
    from analysis.study import plots

    with paper_style():
        figure = plots.posthoc_figure(table, energy)
        for suffix in ("png", "pdf"):
            figure.savefig(out / f"posthoc.{suffix}")
