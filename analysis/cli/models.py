"""`replknet models`, `replknet convert`, `replknet reparameterize` and `replknet export`."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.table import Table
from torch import nn

import replknet
from analysis.cli.choosing import MODEL_HELP, ModelChoice
from analysis.cli.console import print_notes, print_table, progress_bar
from analysis.cli.options import Fields, Overwrite, takes
from analysis.models.complexity import num_macs, num_parameters
from analysis.models.specs import network_in

app = typer.Typer()
_Source = Annotated[
    Path,
    typer.Argument(
        help="A weight file of a network (replknet models), in any naming and format, or the folder of a training."
    ),
]
_Destination = Annotated[Path, typer.Argument(help="The new file; .safetensors, .pth or .pt fixes its format.")]


@app.command()
def models() -> None:
    """List the networks and the published weights, with parameters, multiply-accumulates and accuracies."""
    rows: list[tuple[str, int, dict[str, Any]]] = []
    for name in replknet.PRESETS:
        own = {entry.image_size for entry in replknet.PUBLISHED.values() if entry.architecture == name}
        rows += [(name, size, {}) for size in sorted(own) or [64 if name in replknet.SHIPPED else 224]]
    rows.append(("replknet_31b", 224, {"kernel_sizes": (3, 3, 3, 3), "small_kernel": None}))
    others = {
        name: weights
        for name, weights in replknet.PUBLISHED.items()
        if weights.num_classes != replknet.PRESETS[weights.architecture].num_classes
    }
    costs: dict[tuple[str, int], list[str]] = {}
    table = Table("model", "input", "parameters", "merged", "MACs", "merged MACs", title="Architectures")
    with progress_bar("counting") as progress:
        for number, (name, size, overrides) in enumerate(rows):
            progress(number, len(rows) + len(others))
            with torch.device("meta"):
                model = replknet.create_model(name, **overrides).eval()
            plain, merged = (_cost(form, size) for form in (model, replknet.reparameterize(model, level="kernels")))
            costs.setdefault((name, size), plain)
            label = name + (" --kernel-sizes 3,3,3,3 --small-kernel 0" if overrides else "")
            table.add_row(label, str(size), *(own[kind] for kind in (0, 1) for own in (plain, merged)))
        for number, (name, weights) in enumerate(others.items(), len(rows)):
            progress(number, len(rows) + len(others))
            with torch.device("meta"):
                costs[name, weights.image_size] = _cost(replknet.create_model(name).eval(), weights.image_size)
        progress(len(rows) + len(others), len(rows) + len(others))
    print_table(table)
    typer.echo("merged: branches folded into the large kernels, as `reparameterize --level kernels` does; of one image")
    columns = ("model", "trained on", "input", "parameters", "MACs", "top-1 (%)", "top-5 (%)", "licence")
    published = Table(*columns, title="Published weights")
    for name, weights in replknet.PUBLISHED.items():
        accuracies = ["-" if value is None else f"{value:.2f}" for value in (weights.top1, weights.top5)]
        cost = costs[name if name in others else weights.architecture, weights.image_size]
        published.add_row(name, weights.training_data, str(weights.image_size), *cost, *accuracies, weights.license)
    for name in replknet.SHIPPED:
        published.add_row(name, "generated images of this project", "64", *costs[name, 64], "-", "-", "MIT")
    print_table(published)
    for source in dict.fromkeys(weights.source for weights in replknet.PUBLISHED.values()):
        typer.echo(f"source: {source}; ImageNet-1K accuracies as it reports them")


def _cost(model: nn.Module, size: int) -> list[str]:
    """Parameters and multiply-accumulates."""
    return [f"{num_parameters(model):,}", f"{num_macs(model, (size, size)):,}"]


@app.command()
def convert(
    source: _Source,
    destination: _Destination,
    to: Annotated[
        str, typer.Option(help="Key names: official or mmpretrain; safetensors: official ones in that format.")
    ] = "official",
    overwrite: Overwrite = False,
) -> None:
    """Write weights under other key names or in another format; the new file is read again and compared."""
    if to == "safetensors":
        if destination.suffix != ".safetensors":
            raise ValueError(f"DST={str(destination)!r}: expected a name that ends in .safetensors")
        to = "official"
    replknet.convert_checkpoint(_file(source), destination, to=to, overwrite=overwrite)  # type: ignore[arg-type]
    typer.echo(f"{destination}: {to} names; read again, its network gives the same outputs")


@app.command()
def reparameterize(
    source: _Source,
    destination: _Destination,
    level: Annotated[
        str, typer.Option(help="full: no batch norm is left; kernels: the official deploy form.")
    ] = "full",
    to: Annotated[str, typer.Option(help="Key names: official or mmpretrain.")] = "official",
    overwrite: Overwrite = False,
) -> None:
    """Merge the kernels and batch norms of a weight file; the new file is read again and compared."""
    if level not in ("full", "kernels"):
        raise ValueError(f"--level={level}: expected full or kernels")
    done = replknet.convert_checkpoint(
        _file(source),
        destination,
        to=to,  # type: ignore[arg-type]
        level=level,  # type: ignore[arg-type]
        overwrite=overwrite,
    )
    typer.echo(f"{destination}: {done.num_parameters_before:,} parameters became {done.num_parameters:,}")
    typer.echo(f"read again, its outputs differ by at most {done.difference:.1e} of the largest one")


def _file(source: Path) -> Path:
    """That of a training's folder, or the one that is named."""
    return network_in(source) if source.is_dir() else source


@app.command()
@takes(choice=Fields(ModelChoice, without=("device", "dtype", "unit_scales")))
def export(
    model: Annotated[str, typer.Argument(help=MODEL_HELP)],
    out: Annotated[Path, typer.Option(help="The file: .onnx, .pt or .ts (TorchScript), or .pt2 (torch.export).")],
    choice: ModelChoice,
    format_: Annotated[
        str | None, typer.Option("--format", help="onnx, torchscript or export; by default what OUT ends in.")
    ] = None,
    size: Annotated[
        int | None, typer.Option(help="Side in pixels of the image it is traced with.", min=32, max=4096)
    ] = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a network as ONNX, TorchScript or a program of torch.export.

    Networks of replknet are re-parameterised first. The file is run at several batch and image sizes and its outputs
    are compared before it gets its name; which sizes it takes is printed, and kept in it.
    """
    from analysis.models.exporting import export_model, format_of

    kind = format_of(out, format_)
    (loaded,) = replace(choice, device="cpu").load([model])
    report = export_model(loaded, out, format=kind, size=size, overwrite=overwrite)
    print_notes(loaded.notes)
    typer.echo(f"{out}: {kind}, {out.stat().st_size / 1e6:.1f} MB")
    typer.echo(
        f"tried with {report.engine}, it takes images of shape {_listed(report.shapes)}; its outputs differ by at most "
        f"{report.difference:.1e} of the largest one"
    )
    if report.refused:
        typer.echo(f"it refuses {_listed(report.refused)}, which the network takes; --size traces it with others")


def _listed(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join(" x ".join(map(str, shape)) for shape in shapes)
