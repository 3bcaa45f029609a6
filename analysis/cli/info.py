"""`replknet info`."""

import json
import math
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

import replknet
from analysis.cli.choosing import MODEL_HELP, ModelChoice
from analysis.cli.console import parse_size, print_line, print_notes, print_table
from analysis.cli.options import Fields, takes
from analysis.models.inspecting import ModelDescription, describe_model, field_text, stride_text
from analysis.models.layers import FeatureExtractor
from analysis.models.layouts import LayerOutput
from analysis.models.loaded import DEFAULT_SIZE
from analysis.models.specs import NETWORK_FILE, split_name
from replknet.checkpoints.programs import program_in
from replknet.networks import ANY_FAMILY

app = typer.Typer()
_FORMS = {"training": "training", "merged": "large kernels merged", "folded": "re-parameterised, no batch norm"}
_DEPTH = 2


@app.callback()
def _group() -> None:
    """So that the command keeps its name."""


@app.command()
@takes(choice=Fields(ModelChoice, without=("device", "dtype", "unit_scales")))
def info(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    choice: ModelChoice,
    size: Annotated[
        str | None, typer.Option(help="Size of the image in pixels, N or HxW; by default the network's own.")
    ] = None,
    depth: Annotated[
        int, typer.Option(help="Dots in the names of the layers that are shown, at most; JSON has all.", min=0)
    ] = _DEPTH,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell of a network its layers and stages, what images it takes, its classes and its cost; of a weight file, what
    it holds and what is wrong with it.

    The names are those for --layers of erf and --stages of features. The exit code is 1 if anything is wrong with a
    weight file.
    """
    pixels = None if size is None else parse_size(size)
    file = _weight_file(model)
    found = None if file is None else replknet.inspect_checkpoint(file)
    problems = list(found.problems) if found is not None else []
    described: ModelDescription | None = None
    notes: tuple[str, ...] = ()
    try:
        (loaded,) = ModelChoice(**{**vars(choice), "device": "cpu"}).load([model])
    except ValueError as error:
        if not problems:
            raise
        if found is not None and found.config is None:  # what to do with it
            notes = (str(error).replace("with checkpoint=", "with --checkpoint "),)
    else:
        if found is not None and found.config is None:  # a network of another library that the file names
            problems = [text for text in problems if not text.startswith(f"not {ANY_FAMILY}")]
        notes = loaded.notes
        described = describe_model(loaded, pixels)
    if as_json:
        content = ({} if found is None else {"file": _file_content(found, problems)}) | (
            {} if described is None else _content(described)
        )
        typer.echo(json.dumps(content, indent=2, allow_nan=False))
    else:
        if found is not None:
            print_table(_file_table(found, problems, bare=described is None))
        if described is not None:
            _show(described, depth)
    print_notes(notes)
    if problems:
        raise typer.Exit(1)


def _weight_file(model: str) -> Path | None:
    """The file of weights that a spec names, by itself or by its folder."""
    path = Path(split_name(model)[1])
    path = path / NETWORK_FILE if path.is_dir() else path
    try:
        return path if path.is_file() and not program_in(path) else None
    except (ValueError, NotImplementedError, OSError):
        return None


def _file_table(found: replknet.CheckpointInfo, problems: list[str], *, bare: bool) -> Table:
    table = Table(show_header=False, title="File")
    if found.config is not None or bare:
        table.add_row("architecture", found.architecture)
    if found.config is not None:
        for name, value in found.config.kernels(merged=found.form != "training").items():
            table.add_row(name, value)
        table.add_row("classes", str(found.config.num_classes or "no head"))
        table.add_row("form", _FORMS[found.form])
        table.add_row("key names", found.naming)
    table.add_row("format", found.format + (f", under {found.wrapper!r}" if found.wrapper else ""))
    if found.beside:
        table.add_row("averaging", f"averaged weights under {found.wrapper!r}, the last ones under {found.beside!r}")
    table.add_row("parameters", f"{found.num_parameters:,}")
    table.add_row("dtype", ", ".join(found.dtypes))
    table.add_row("SHA-256", found.sha256)
    table.add_row("published as", found.published or "none of the published files")
    table.add_row("problems", "; ".join(problems) or "none")
    return table


def _show(described: ModelDescription, depth: int) -> None:
    loaded, own = described.model, described.model.input_size
    side = "x".join(map(str, described.image_size))
    tried = ", ".join(str(other) for other in described.taken)
    table = Table(show_header=False, title=f"{loaded.name}, for an image of {side} pixels")
    table.add_row("module", loaded.architecture)
    kind = "free" if described.free_size else "fixed"
    taken = ", ".join(str(other) for other, works in described.taken.items() if works)
    table.add_row(
        "input size",
        f"{own or f'any, {DEFAULT_SIZE} by default'}, {kind} ({taken if described.free_size else tried} "
        f"{'work, too' if described.free_size else 'do not work'})",
    )
    normalization = [", ".join(f"{value:g}" for value in own) for own in (loaded.mean, loaded.std)]
    table.add_row("mean, std", " and ".join(normalization))
    table.add_row("preparation", _steps(loaded.preparation()))
    table.add_row("classes", _classes(described))
    table.add_row("parameters", f"{described.num_parameters:,}")
    table.add_row("MACs", "cannot be counted" if described.num_macs is None else f"{described.num_macs:,}")
    table.add_row("last feature map", _last(described))
    print_table(table)
    layers = Table("layer", "kind", "output", "stride", "theoretical field")
    hidden = 0
    for layer in described.layers:
        if layer.kind and layer.name.count(".") > depth:
            hidden += 1
            continue
        shape = "-" if layer.shape is None else " x ".join(map(str, layer.shape))
        layers.add_row(layer.name, layer.kind, shape, stride_text(layer), field_text(layer))
    print_table(layers)
    if hidden:
        print_line(f"{hidden} layers with more dots in their names: --depth {depth + 1}", stderr=False)


def _steps(transform: Any) -> str:
    """What is done to an image, one after the other."""
    inner = getattr(transform, "transforms", None)
    return " ".join(str(transform).split()) if inner is None else ", ".join(map(_steps, inner))


def _classes(described: ModelDescription) -> str:
    count, names = described.num_outputs, described.model.classes
    if count is None:
        return "no class scores"
    return f"{count}" + (f": {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "")


def _last(described: ModelDescription) -> str:
    if described.last is None:
        return "not found; name a layer"
    whole = "what forward_features returns" if isinstance(described.model.module, FeatureExtractor) else "the output"
    return described.last or whole


def _content(described: ModelDescription) -> dict[str, Any]:
    loaded = described.model
    return {
        "name": loaded.name,
        "module": loaded.architecture,
        "image_size": described.image_size,
        "input_size": loaded.input_size,
        "free_size": described.free_size,
        "sizes_tried": {str(side): works for side, works in described.taken.items()},
        "mean": loaded.mean,
        "std": loaded.std,
        "preparation": str(loaded.preparation()),
        "num_classes": described.num_outputs,
        "classes": loaded.classes,
        "parameters": described.num_parameters,
        "macs": described.num_macs,
        "last": described.last,
        "layers": [_layer_content(layer) for layer in described.layers if layer.kind],
        "stages": [_layer_content(layer) for layer in described.layers if not layer.kind],
    }


def _layer_content(layer: LayerOutput) -> dict[str, Any]:
    axes = None if layer.units is None else layer.units.axes
    sizes = [axis.size for axis in axes or ()]
    return {
        "name": layer.name,
        "kind": layer.kind,
        "shape": layer.shape,
        "grid": None if layer.units is None else layer.units.grid,
        "stride": None if axes is None else [axis.stride for axis in axes],
        "field": sizes if sizes and all(map(math.isfinite, sizes)) else None,
        "field_text": field_text(layer),
    }


def _file_content(found: replknet.CheckpointInfo, problems: list[str]) -> dict[str, Any]:
    return {
        "architecture": found.architecture,
        "form": found.form,
        "naming": found.naming,
        "format": found.format,
        "wrapper": found.wrapper,
        "beside": found.beside,
        "parameters": found.num_parameters,
        "dtypes": found.dtypes,
        "sha256": found.sha256,
        "published": found.published,
        "problems": problems,
    }
