"""`replknet train`."""

import signal
import threading
from collections.abc import Callable
from dataclasses import asdict, fields
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.table import Table

import replknet
from analysis.cli.choosing import ModelChoice
from analysis.cli.console import print_notes, print_table, progress_bar, run_folder, skipped_notes
from analysis.cli.options import Fields, Out, Overwrite, Workers, takes
from analysis.images.files import is_hidden
from analysis.images.labelled import FolderImages, InMemory, Preparation, Split
from analysis.images.preparing import evaluation_crop
from analysis.images.shards import TarShards
from analysis.models.files import save_library_network, save_network
from analysis.models.loaded import LoadedModel
from analysis.models.precision import float32_settings
from analysis.models.replknets import new_model
from analysis.models.specs import split_name
from analysis.runs.decoding import decoded, made
from analysis.runs.folder import RunFolder
from analysis.runs.identity import describe_environment, hash_weights, processor_name
from analysis.runs.memory import keep_freed_memory
from analysis.runs.processes import by_first, num_processes, rank
from analysis.runs.tables import read_table, write_table
from analysis.runs.texts import parse_json, read_text
from analysis.runs.writing import write_json
from analysis.training.loop import Training, check_training, train
from analysis.training.progress import Curve
from analysis.training.recipe import STEPS, Recipe, load_recipe, parse_changes, recipe_names, why_too_little
from analysis.training.state import remove_state

_STATE, _CURVE, _NETWORK, _SUMMARY, _EVENTS = (
    "checkpoint.pt",
    "curve.csv",
    "network.safetensors",
    "training.json",
    "tensorboard",
)
_COLUMNS = tuple(field.name for field in fields(Curve))
_MEASURED = 50
"""Images whose size decides how large all become, at least, where there are as many."""
_RECORDS = 50
"""Steps between entries of the learning curve, fewer in short trainings."""
app = typer.Typer()


@app.callback()
def _group() -> None:
    """So that the command keeps its name."""


@app.command("train")
@takes(choice=Fields(ModelChoice, without=("pretrained", "trust", "dtype", "unit_scales")))
def train_command(
    model: Annotated[
        str,
        typer.Argument(
            help="replknet_31b or a sibling, timm:NAME or torchvision:NAME; with a tag as in replknet_31b.in1k_224 "
            "from published weights. Its head is new where its classes are others."
        ),
    ],
    recipe: Annotated[str, typer.Option(help=f"{', '.join(recipe_names())}, or a .toml file of the same form.")],
    data: Annotated[
        Path,
        typer.Option(
            help="Folder with train/ and val/ (or test/): a sub-folder each class, or WebDataset's tar shards."
        ),
    ],
    out: Out,
    choice: ModelChoice,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the recipe, e.g. batch_size=256; may be given several times."),
    ] = None,
    max_steps: Annotated[
        int | None,
        typer.Option(
            help="Stop after this step, for a trial; without it the same command goes on.", min=1, max=STEPS[1]
        ),
    ] = None,
    evaluate_every: Annotated[
        int | None,
        typer.Option(help="Steps between measurements of the accuracy; an epoch by default.", min=1, max=STEPS[1]),
    ] = None,
    pretrained: Annotated[
        bool, typer.Option("--pretrained", help="Begin with published weights, though MODEL has no tag.")
    ] = False,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Train a network by a published recipe, alone or under torchrun.

    The recipe's batch is that of all processes together.
    """
    source = load_recipe(recipe)
    changed = parse_changes(changes or [])
    images = _images(data, "train", None)
    chosen = source.for_images(len(images), changed, sides=_sides(images) if source.adapt else ())
    if source.adapt:  # as they are tested, and then moved
        images = _images(data, "train", evaluation_crop(chosen.image_size))
    notes: tuple[str, ...] = ()
    validation: FolderImages | TarShards | None = None
    try:
        validation = _images(data, "val", evaluation_crop(chosen.image_size))
    except FileNotFoundError as error:
        notes = (f"no validation: {error}",)
    for part in (images, validation):
        if isinstance(part, FolderImages):
            notes += tuple(skipped_notes(part.skipped))
    kernels, *others = choice.kernels()
    if others:
        raise ValueError(f"kernel_sizes={', '.join(choice.kernel_sizes or ())}: one network is trained; give it once")
    (checkpoint,) = choice.checkpoints([model])
    _, spec = split_name(model)
    loaded = new_model(
        spec,
        num_classes=len(images.classes),
        pretrained=pretrained,
        drop_path_rate=chosen.drop_path_rate,
        gradient_checkpointing=chosen.gradient_checkpointing,
        checkpoint=checkpoint,
        kernel_sizes=kernels,
        small_kernel=choice.small_kernel,
        seed=choice.seed,
    )
    settings = {
        "model": spec,
        "weights": hash_weights(loaded.module),
        "recipe": asdict(chosen),
        "data": str(data),
        "images": images.fingerprint() + (validation.fingerprint() if validation else ""),
        "seed": choice.seed,
    }
    loaded = loaded.to(choice.device)
    if evaluate_every is not None and validation is None:
        raise ValueError(f"evaluate_every={evaluate_every}: goes with validation images only; there are none")
    height, width, _ = images[0][0].shape
    if chosen.augmentation != "imagenet" and (height, width) != (chosen.image_size, chosen.image_size):
        raise ValueError(
            f"image_size={chosen.image_size}: the training images have {height}x{width} pixels, and only augmentation "
            "'imagenet' resizes them"
        )
    print_notes(notes)
    check_training(loaded.module, images, validation, chosen, mean=loaded.mean, std=loaded.std)
    keep_freed_memory()
    epoch = max(1, len(images) // chosen.batch_size)
    doubt = why_too_little(chosen, trained="." in spec or pretrained or checkpoint is not None)
    with run_folder(out, "train", settings, overwrite=overwrite) as folder:
        finished = by_first(lambda: _finished(out, chosen))
        if finished is not None:
            by_first(lambda: remove_state(out / _STATE))
            _report(finished, chosen, ("finished before",), out)
            return
        print_notes([doubt] if doubt else [], "warning")
        for number in (signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.getsignal(signal.SIGTERM))
        by_first(lambda: [folder.add(name) for name in (_STATE, f"{_STATE}.previous")])
        record, missing = _recorder(folder)
        with progress_bar(loaded.name) as progress:
            result = train(
                loaded.module,
                InMemory(images) if source.adapt else images,
                InMemory(validation) if source.adapt and validation is not None else validation,
                chosen,
                seed=choice.seed,
                mean=loaded.mean,
                std=loaded.std,
                num_workers=choice.workers(workers),
                checkpoint=out / _STATE,
                stop_after=max_steps,
                record_every=max(1, min(_RECORDS, min(chosen.steps, max_steps or chosen.steps) // 10)),
                evaluate_every=evaluate_every or epoch,
                progress=progress,
                recorded=record,
            )
        by_first(lambda: _save(loaded, result, chosen, source.name, images.classes, folder))
    _report(result, chosen, (*choice.device_notes(), *loaded.notes, *missing, *result.notes), out)


def _images(data: Path, split: Split, prepare: Preparation | None) -> FolderImages | TarShards:
    """Shards where there are tar files, a folder of classes otherwise."""
    if any(not is_hidden(path.name) for pattern in ("*.tar", "*/*.tar") for path in data.glob(pattern)):
        return TarShards(data, split, prepare=prepare)
    return FolderImages(data, split, prepare=prepare)


def _sides(images: FolderImages | TarShards) -> list[int]:
    """The shorter sides of some images, spread over all."""
    chosen = range(0, len(images), max(1, len(images) // _MEASURED))
    return [min(images[index][0].shape[:2]) for index in chosen]


def _finished(out: Path, recipe: Recipe) -> Training | None:
    """What a run that did all its steps left."""
    try:
        summary = decoded(parse_json(read_text(out / _SUMMARY, "path")), dict[str, Any])
        rows = [cells for _, cells in read_table(out / _CURVE, "path", _COLUMNS)]
        found: Training = made(
            Training,
            {
                "curve": {name: [_number(name, row[name]) for row in rows] for name in _COLUMNS},
                "seconds_per_step": summary.get("seconds_per_step"),
            },
        )
    except (OSError, TypeError, ValueError):
        return None
    return found if summary.get("steps_done") == recipe.steps and (out / _NETWORK).is_file() else None


def _number(column: str, text: str) -> float:
    return int(text) if column == "step" else float(text or "nan")


def _recorder(folder: RunFolder) -> tuple[Callable[[Curve], None], tuple[str, ...]]:
    """Writes the learning curve as CSV and for TensorBoard; and what to tell the user about it."""
    writer: Any = None
    notes: tuple[str, ...] = ()
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        notes = ("TensorBoard's package is not installed: the learning curve is in curve.csv only",)

    def record(curve: Curve) -> None:
        nonlocal writer
        table = pd.DataFrame(asdict(curve))
        with folder.replace(_CURVE) as path:
            write_table(table, path)
        if notes:
            return
        if writer is None:
            threading.excepthook = partial(_without_tensorboard, threading.excepthook)
            # Events after the state that was resumed from are not valid any more.
            writer = SummaryWriter(str(folder.add(_EVENTS)), purge_step=curve.step[-1])
        row = table.iloc[-1]
        for column in table.columns.drop("step"):
            if not pd.isna(row[column]):
                writer.add_scalar(column, row[column], curve.step[-1])
        writer.flush()

    return record, notes if rank() == 0 else ()


def _without_tensorboard(tell: Callable[[threading.ExceptHookArgs], object], error: threading.ExceptHookArgs) -> None:
    """What TensorBoard's thread cannot write is raised by the next call, too; once is enough."""
    if type(error.thread).__name__ != "_AsyncWriterThread":
        tell(error)


def _save(
    loaded: LoadedModel, result: Training, recipe: Recipe, name: str, classes: tuple[str, ...], folder: RunFolder
) -> None:
    """Write the network and the summary; when all steps are done, the state is needed no more."""
    trained = {"recipe_name": name, "recipe": asdict(recipe), "steps_done": result.curve.step[-1]}
    if isinstance(loaded.module, replknet.Network):
        save_network(
            folder.add(_NETWORK),
            loaded.module,
            classes=classes,
            input_size=recipe.image_size,
            mean=loaded.mean,
            std=loaded.std,
            crop=None,
            training=trained,
        )
    else:
        save_library_network(
            folder.add(_NETWORK),
            loaded,
            classes=classes,
            input_size=recipe.image_size,
            training=trained,
        )
    reference = next(loaded.module.parameters())
    summary = trained | {
        "val_accuracy": result.curve.val_accuracy[-1],
        "seconds_per_step": result.seconds_per_step,
        "processes": num_processes(),
        "environment": describe_environment(reference)
        | {"processor": processor_name()}
        | float32_settings(reference.device),
    }
    write_json(folder.add(_SUMMARY), summary)
    if result.curve.step[-1] == recipe.steps:
        remove_state(folder.path / _STATE)


def _report(result: Training, recipe: Recipe, notes: tuple[str, ...], out: Path) -> None:
    curve = result.curve
    table = Table("step", "learning rate", "loss", "training accuracy (%)", "validation accuracy (%)")
    shown = sorted({round(k * (len(curve.step) - 1) / 9) for k in range(10)})
    for index in shown:
        accurate = curve.val_accuracy[index]
        table.add_row(
            str(curve.step[index]),
            f"{curve.learning_rate[index]:.2g}",
            f"{curve.train_loss[index]:.4f}",
            f"{100 * curve.train_accuracy[index]:.1f}",
            "" if pd.isna(accurate) else f"{100 * accurate:.2f}",
        )
    print_table(table)
    print_notes(notes)
    speed = recipe.batch_size / result.seconds_per_step
    typer.echo(
        f"{curve.step[-1]} of {recipe.steps} steps, {speed:.1f} images/s without loading; network, learning curve and "
        f"summary: {out}"
    )
