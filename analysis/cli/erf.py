"""`replknet erf`."""

import hashlib
import math
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import typer
from rich.table import Table

import replknet
from analysis.cli.choosing import LAST_HELP, MODEL_HELP, ModelChoice, layers_of
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
from analysis.cli.methods import networks_told
from analysis.cli.options import ErfBatch, Fields, Out, Overwrite, Workers, parse_three, takes
from analysis.images.sets import ImageSet, load_images
from analysis.models.layers import ForwardError, LayerError
from analysis.models.layouts import LAST, find_feature_map
from analysis.models.loaded import LoadedModel
from analysis.receptive_field.measures import THRESHOLDS
from analysis.receptive_field.measuring import effective_receptive_field
from analysis.receptive_field.methods import area_text, erf_methods, field_warnings, theory_text
from analysis.receptive_field.options import PROTOCOLS
from analysis.receptive_field.result import ErfResult
from analysis.runs.folder import RunFolder, folder_names
from analysis.runs.identity import NetworkIdentity, identify
from analysis.runs.memory import keep_freed_memory
from analysis.runs.methods import software, warned, write_methods
from analysis.runs.processes import by_first
from analysis.runs.settings import COUNTS, check_number
from analysis.runs.tables import write_table

app = typer.Typer()
_SIZE = 1024
"""Pixels; at the size of a classifier the map of a large-kernel network fills the image."""


@app.callback()
def _group() -> None:
    """So that the command keeps its name."""


@app.command()
@takes(choice=Fields(ModelChoice))
def erf(
    model: Annotated[list[str], typer.Argument(help=MODEL_HELP)],
    out: Out,
    choice: ModelChoice,
    images: Annotated[
        Path | None, typer.Option(help="Folder of images; without it, generated dead-leaves images.")
    ] = None,
    protocol: Annotated[str, typer.Option(help=f"{' or '.join(PROTOCOLS)}.")] = "standard",
    size: Annotated[
        str | None,
        typer.Option(
            help=f"Image size in pixels, N or HxW. By default {_SIZE}, or that of a network which takes no other."
        ),
    ] = None,
    num_images: Annotated[int, typer.Option(help="How many images are drawn.")] = 50,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Layers by name, separated by commas; {LAST_HELP} By default that map. NAME=... for one network "
            "alone; may be given several times."
        ),
    ] = None,
    grid: Annotated[
        str | None, typer.Option(help="Rows and columns of units, HxW, where a layer's output does not show them.")
    ] = None,
    prefix_tokens: Annotated[
        int | None, typer.Option(help="Tokens before those of the patches in that grid.", min=0)
    ] = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="Add an untrained copy of each model.")] = False,
    mean: Annotated[str | None, typer.Option(help="Three numbers that replace the model's own.")] = None,
    std: Annotated[str | None, typer.Option(help="Three numbers that replace the model's own.")] = None,
    batch_size: ErfBatch = None,
    workers: Workers = None,
    overwrite: Overwrite = False,
) -> None:
    """Measure effective receptive fields. The same command again resumes, or answers from what is saved."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol={protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    units = None if grid is None else parse_size(grid, "--grid")
    means, stds = parse_three("--mean", mean), parse_three("--std", std)
    check_number("num_images", num_images, COUNTS)
    loaded = choice.load(model, untrained=untrained)
    wanted = [[None if name == LAST else name for name in names or (LAST,)] for names in layers_of(layers, loaded)]
    loaded = [replace(item, mean=means or item.mean, std=stds or item.std) for item in loaded]
    pixels, notes = fitting_size(loaded, None if size is None else parse_size(size))
    named = {"grid": units, "prefix_tokens": prefix_tokens}
    _check_layers(loaded, wanted, pixels, named)
    chosen = load_images(images, size=pixels, num_images=num_images, seed=choice.seed)
    if len(chosen) + len(chosen.skipped) < num_images:
        notes.append(f"{images} has {len(chosen)} images, fewer than the {num_images} that were asked for")
    loaded = [choice.on_images(item, chosen) for item in loaded]
    notes += [note for item in loaded for note in item.notes]
    notes += [f"{item.name}: {item.initial}" for item in loaded if item.initial]
    notes += skipped_notes(chosen.skipped)
    identities = [identify(item.module) for item in loaded]
    settings = {
        "models": [
            [item.name, identity.weights, identity.code] for item, identity in zip(loaded, identities, strict=True)
        ],
        "layers": wanted[0] if all(own == wanted[0] for own in wanted) else wanted,
        "protocol": protocol,
        "size": pixels,
        "images": hashlib.sha256(" ".join(chosen.hashes).encode()).hexdigest(),
        "mean": means,
        "std": stds,
        **{key: value for key, value in named.items() if value is not None},
        **choice.computed_on(),
    }
    labels = [
        item.name if layer is None else f"{item.name}, {layer}"
        for item, own in zip(loaded, wanted, strict=True)
        for layer in own
    ]
    places = iter(zip(labels, folder_names(labels), strict=True))
    options = {**named, "protocol": protocol, "batch_size": batch_size, "num_workers": choice.workers(workers)}
    keep_freed_memory()
    with run_folder(out, "erf", settings, overwrite=overwrite) as folder:
        results = []
        for item, identity, own in zip(loaded, identities, wanted, strict=True):
            for layer in own:
                results.append(_measure(item, identity, layer, chosen, options, folder, *next(places)))
        methods = erf_methods(results) + warned(field_warnings(results))
        methods += networks_told(model, loaded, initial=False)
        methods += software(result.environment for result in results)
        by_first(lambda: write_methods(methods, folder.replace))
        by_first(lambda: _write_outputs(results, folder))
    _report(results, notes)
    typer.echo(f"results, table, figures and page (index.html): {out}")


def fitting_size(loaded: Sequence[LoadedModel], asked: tuple[int, int] | None) -> tuple[tuple[int, int], list[str]]:
    """The size at which all are measured, and a note where it is that of a network which takes no other."""
    pixels = asked or (_SIZE, _SIZE)
    for item in loaded if asked is None else ():
        try:
            find_feature_map(item.module, pixels, name=item.name)
        except ForwardError:
            if item.input_size in (None, *pixels):
                raise
            pixels = (item.input_size, item.input_size)
            return pixels, [
                f"{item.name} does not run at {_SIZE} pixels; everything is measured at its own {pixels[0]}"
            ]
        except LayerError:
            continue
    return pixels, []


def _check_layers(
    loaded: Sequence[LoadedModel], wanted: Sequence[Sequence[str | None]], size: tuple[int, int], named: dict[str, Any]
) -> None:
    """Refuse a layer or size that a model cannot do before anything in OUT is touched."""
    for item, layers in zip(loaded, wanted, strict=True):
        for layer in layers:
            try:
                find_feature_map(item.module, size, layer, name=item.name, **named)
            except LayerError as error:
                if len(loaded) == 1:
                    raise
                own = shlex.quote(f"{item.name}=...")
                raise LayerError(f"{item.name}: {error}; --layers {own} gives it layers of its own") from None


def _measure(
    item: LoadedModel,
    identity: NetworkIdentity | None,
    layer: str | None,
    images: ImageSet,
    options: dict[str, Any],
    folder: RunFolder,
    label: str,
    name: str,
) -> ErfResult:
    """One result, measured or read."""
    if (folder.path / name / "result.json").is_file():
        return ErfResult.load(folder.path / name)
    if layer is None and isinstance(item.module, replknet.Network):
        # The same map in less time; inner layers keep their names.
        item, identity = replace(item, module=replknet.reparameterize(item.module)), None
    with progress_bar(label) as progress:
        result = effective_receptive_field(
            item,
            images,
            layer=layer,
            identity=identity,
            **options,
            progress=progress,
            partial=by_first(partial(folder.add, f"{name}.partial.npz")),
        )
    by_first(lambda: result.save(folder.add(name)))
    return result


def _write_outputs(results: Sequence[ErfResult], folder: RunFolder) -> None:
    from analysis.pages.drawing import Drawing, save_drawings
    from analysis.pages.page import LINKED, PAGE, files_below, write_page
    from analysis.receptive_field import plots
    from analysis.receptive_field.page import erf_page

    with folder.replace("erf.csv") as path:
        write_table(pd.DataFrame([result.summary() for result in results]), path)
    captions: dict[str, tuple[Any, str]] = {
        "contribution": (plots.plot_contribution, "Share of the gradient inside growing squares."),
        "radial": (plots.plot_radial, "Mean of the gradient at each distance from the unit."),
    }
    if len({result.layer for result in results}) > 1:
        captions["growth"] = (plots.plot_growth, "Root mean square radius of the layers.")
    drawings = [
        Drawing(name=name, caption=caption, draw=lambda plot=plot: plots.curves_figure(plot, results))  # type: ignore[misc]
        for name, (plot, caption) in captions.items()
    ]
    maps = Drawing(name="erf", caption="The maps.", draw=lambda: plots.erf_figure(results))
    with progress_bar("figures") as progress:
        save_drawings([maps, *drawings], folder.replace, progress)
    files, warnings = files_below(folder.path, *LINKED), field_warnings(results)
    page = erf_page(results, drawings, command=command_line(), files=files, warnings=warnings)
    write_page(folder.add(PAGE), page)


def _report(results: Sequence[ErfResult], notes: Sequence[str]) -> None:
    table = Table("model", "layer", "images", *[f"area {100 * t:g} %" for t in THRESHOLDS], "RMS radius", "theory")
    for result in results:
        table.add_row(
            result.model,
            result.layer,
            str(len(result.images)),
            *(area_text(result, threshold) for threshold in THRESHOLDS),
            "-" if math.isnan(result.rms_radius()) else f"{result.rms_radius():.1f} px",
            theory_text(result),
        )
    print_table(table)
    intervals = ", 95 % bootstrap interval over images" if any(len(result.images) > 1 for result in results) else ""
    print_line(f"Areas in % of the image, raw map{intervals}; theory: side of the theoretical field in pixels.")
    noted = {f"{result.model}: {result.batch_note}": None for result in results if result.batch_note}
    print_notes([*notes, *noted])
    print_notes(field_warnings(results), "warning")
