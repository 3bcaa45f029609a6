"""`replknet data`."""

from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.console import progress_bar

app = typer.Typer()


data = typer.Typer(help="Fetch published weights and stimuli, or generate some.")


app.add_typer(data, name="data")


@data.callback()
def _group() -> None:
    """Fetch published weights and stimuli, or generate some."""


@data.command("weights")
def weights(
    name: Annotated[
        str, typer.Argument(help="Published weights, e.g. replknet_31b.in1k_224; replknet models lists them.")
    ],
    url: Annotated[str | None, typer.Option(help="Another address of the file.")] = None,
) -> None:
    """Fetch published weights into torch's hub folder, verified; later commands find them there without a network."""
    import replknet

    typer.echo(f"verified: {replknet.download_weights(name, url=url)}")


@data.command("cue-conflict")
def cue_conflict(
    to: Annotated[Path, typer.Option(help="Folder for the stimuli.")],
    url: Annotated[str | None, typer.Option(help="Address of the folder that holds airplane/, bear/, ...")] = None,
) -> None:
    """Fetch the 1280 cue-conflict stimuli of Geirhos et al. 2019, verified. The same command again completes it."""
    from analysis.images import downloads

    with progress_bar("cue-conflict stimuli") as progress:
        fetched = downloads.download_cue_conflict(to, url=url or downloads.CUE_CONFLICT_URL, progress=progress)
    typer.echo(f"1280 stimuli, all verified, are in {to} ({fetched} fetched now)")
    typer.echo(f"licence: {downloads.CUE_CONFLICT_LICENCE}")
    typer.echo(f"cite: {downloads.CUE_CONFLICT_CITATION}")


@data.command("synthetic")
def synthetic(
    to: Annotated[Path, typer.Option(help="Folder for the stimuli; files that are there already are left alone.")],
    kind: Annotated[str, typer.Option(help="conflict, congruent or shape-only.")] = "conflict",
    num_images: Annotated[int, typer.Option(help="How many; 132 is every pair of classes once.", min=1)] = 132,
    balance: Annotated[
        float, typer.Option(help="From -1 (no texture) over 0 (both cues full) to 1 (no figure).")
    ] = 0.0,
    size: Annotated[int, typer.Option(help="Side in pixels.")] = 64,
    texture_region: Annotated[str, typer.Option(help="Where the texture is: image or figure.")] = "image",
    seed: Annotated[int, typer.Option(help="Of the set.", min=0)] = 0,
) -> None:
    """Generate images with a shape and a texture, for the networks of a study (replknet_nano_k31)."""
    from analysis.images.synthetic.drawing import SyntheticOptions
    from analysis.images.synthetic.sets import SyntheticImages, save_stimuli

    options = SyntheticOptions(size=size, texture_region=texture_region)  # type: ignore[arg-type]
    images = SyntheticImages(
        kind=kind,  # type: ignore[arg-type]
        num_images=num_images,
        seed=seed,
        balance=balance,
        options=options,
    )
    with progress_bar("images") as progress:
        written = save_stimuli(images, to, progress=progress)
    typer.echo(f"{num_images} stimuli are in {to} ({written} written now)")
    if kind == "congruent":
        typer.echo(f"replknet evaluate replknet_nano_k31 --data {to} classifies them")
    else:
        typer.echo(f"replknet shape-bias replknet_nano_k3 replknet_nano_k31 --stimuli {to} --out OUT answers them")
