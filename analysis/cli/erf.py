"""`replknet erf`."""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import pandas as pd
import typer
from rich.console import Console
from rich.table import Table

import replknet
from analysis.cli.console import (
    MODEL_HELP,
    Checkpoint,
    Device,
    Dtype,
    Pretrained,
    claim,
    clear_errors_for_files,
    computed_on,
    folder_name,
    load_models,
    parse_numbers,
    parse_size,
    print_table,
    progress_bar,
)
from analysis.images.sets import ImageSet, load_images
from analysis.models.loaded import LoadedModel
from analysis.receptive_field.measuring import effective_receptive_field
from analysis.receptive_field.options import PROTOCOLS
from analysis.receptive_field.result import THRESHOLDS, ErfResult
from analysis.receptive_field.theoretical import theoretical_receptive_field
from analysis.runs.identity import hash_code, hash_weights
from analysis.runs.memory import keep_freed_memory
from analysis.runs.processes import by_first

_FIGURES = ("erf", "contribution", "growth")


app = typer.Typer()


@app.callback()
def _group() -> None:
    """So that the command keeps its name."""


@app.command()
def erf(
    model: Annotated[list[str], typer.Argument(help=MODEL_HELP)],
    out: Annotated[Path, typer.Option(help="Folder for results, table and figures.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of images; without it, generated dead-leaves images.")
    ] = None,
    checkpoint: Checkpoint = None,
    protocol: Annotated[str, typer.Option(help=f"{' or '.join(PROTOCOLS)}.")] = "standard",
    size: Annotated[str, typer.Option(help="Image size in pixels, N or HxW.")] = "1024",
    num_images: Annotated[int, typer.Option(help="How many images are drawn.")] = 50,
    layers: Annotated[
        str | None, typer.Option(help="Layers by name, separated by commas; 'last' is the last feature map.")
    ] = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="Add an untrained copy of each model.")] = False,
    kernel_sizes: Annotated[
        list[str] | None, typer.Option(help="Kernels of a RepLKNet, e.g. 31,29,27,13; may be given several times.")
    ] = None,
    small_kernel: Annotated[int | None, typer.Option(help="Parallel kernel of a RepLKNet; 0 for none.")] = None,
    pretrained: Pretrained = True,
    mean: Annotated[str | None, typer.Option(help="Three numbers that replace the model's own.")] = None,
    std: Annotated[str | None, typer.Option(help="Three numbers that replace the model's own.")] = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Annotated[int, typer.Option(help="Of the image draw and of random weights.", min=0)] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another run's results in OUT.")] = False,
) -> None:
    """Measure effective receptive fields. The same command again resumes, or answers from what is saved."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"--protocol={protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    pixels = parse_size(size)
    means, stds = parse_numbers("--mean", mean), parse_numbers("--std", std)
    wanted = [None if name == "last" else name for name in layers.split(",")] if layers else [None]
    chosen = load_images(images, size=pixels, num_images=num_images, seed=seed)
    loaded = load_models(model, checkpoint, kernel_sizes, small_kernel, pretrained, seed, untrained, device, dtype)
    notes = [note for item in loaded for note in item.notes]
    notes += [f"skipped {name}: {reason}" for name, reason in chosen.skipped]
    settings = {
        "models": [[item.name, hash_weights(item.module), hash_code(item.module)] for item in loaded],
        "layers": wanted,
        "protocol": protocol,
        "size": pixels,
        "images": hashlib.sha256(" ".join(chosen.hashes).encode()).hexdigest(),
        "mean": means,
        "std": stds,
        **computed_on(device, dtype),
    }
    _check_layers(loaded, wanted, pixels)
    folders = [folder_name(_label(item, layer)) for item in loaded for layer in wanted]
    outputs = ["erf.csv", *folders, *(f"{folder}.partial.npz" for folder in folders)]
    outputs += [f"{figure}.{suffix}" for figure in _FIGURES for suffix in ("png", "pdf")]
    keep_freed_memory()
    with clear_errors_for_files(out):
        claim(out, "erf", settings, outputs, overwrite)
        results = _measure_all(loaded, wanted, chosen, protocol, out, means, stds)
        by_first(lambda: _write_outputs(results, out))
    _report(results, notes, out)


def _check_layers(loaded: Sequence[LoadedModel], layers: Sequence[str | None], size: tuple[int, int]) -> None:
    """Refuse a layer or size that a model cannot do before anything in OUT is touched."""
    for item in loaded:
        for layer in layers:
            try:
                theoretical_receptive_field(item.module, size, layer=layer)
            except RuntimeError as error:
                raise ValueError(
                    f"--size={size[0]}x{size[1]}: {item.name} does not run at this size ({error})"
                ) from error


def _label(item: LoadedModel, layer: str | None) -> str:
    return item.name if layer is None else f"{item.name}, {layer}"


def _measure_all(
    loaded: Sequence[LoadedModel],
    layers: Sequence[str | None],
    images: ImageSet,
    protocol: str,
    out: Path,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> list[ErfResult]:
    results = []
    for item in loaded:
        own_images = images.normalized_by(mean or item.mean, std or item.std)
        for layer in layers:
            module = item.module
            if layer is None and isinstance(module, replknet.RepLKNet):
                module = replknet.reparameterize(module)  # the same map in less time; inner layers keep their names
            label = _label(item, layer)
            target = out / folder_name(label)
            if (target / "result.json").is_file():
                results.append(ErfResult.load(target))
                continue
            with progress_bar(label) as progress:
                result = effective_receptive_field(
                    module,
                    own_images,
                    protocol=protocol,  # type: ignore[arg-type]
                    layer=layer,
                    name=item.name,
                    progress=progress,
                    partial=out / f"{target.name}.partial.npz",
                )
            by_first(partial(result.save, target))
            results.append(result)
    return results


def _write_outputs(results: Sequence[ErfResult], out: Path) -> None:
    from analysis.figures import paper_style
    from analysis.receptive_field import plots

    pd.DataFrame([result.summary() for result in results]).to_csv(out / "erf.csv", index=False)
    with paper_style():
        figures = {"erf": plots.erf_figure(results)}
        figures["contribution"] = plots.plot_contribution(results).get_figure(root=True)  # type: ignore[assignment]
        if len({result.layer for result in results}) > 1:
            figures["growth"] = plots.plot_growth(results).get_figure(root=True)  # type: ignore[assignment]
        for name, figure in figures.items():
            for suffix in ("png", "pdf"):
                figure.savefig(out / f"{name}.{suffix}")


def _report(results: Sequence[ErfResult], notes: Sequence[str], out: Path) -> None:
    table = Table("model", "layer", "images", *[f"area {100 * t:g} %" for t in THRESHOLDS], "RMS radius", "theory")
    for result in results:
        areas = []
        for threshold in THRESHOLDS:
            low, high = (100 * end for end in result.area_ratio_interval(threshold))
            areas.append(f"{100 * result.area_ratio(threshold):.1f} [{low:.1f}, {high:.1f}]")
        theory = "not traced" if result.theoretical is None else f"{result.theoretical[0]:g}"
        table.add_row(
            result.model,
            result.layer,
            str(len(result.images)),
            *areas,
            f"{result.rms_radius():.1f} px",
            "whole image" if theory == "inf" else theory,
        )
    print_table(table)
    console = Console(stderr=True)
    console.print("Areas in % of the image, raw map, 95 % bootstrap interval over images.", highlight=False)
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    for result in results:
        if not result.mean_map.any():
            console.print(
                f"warning: unit {result.unit} of {result.model}, {result.layer} does not react to any image "
                "(its ReLU is off); its measures are undefined",
                highlight=False,
            )
        if result.fills_image():
            console.print(
                f"warning: the 99 % area of {result.model}, {result.layer} fills the image: it shows where the "
                "network attends, not how far it could reach; measure at a larger --size",
                highlight=False,
            )
    typer.echo(f"results, table and figures: {out}")
