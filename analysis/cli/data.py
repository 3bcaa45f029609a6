"""`replknet data`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.cli.console import progress_bar
from analysis.cli.options import Fields, takes
from analysis.images.stimuli import published_sets
from analysis.images.synthetic.drawing import SyntheticOptions
from analysis.images.synthetic.sets import SyntheticImages, save_stimuli

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
    sha256: Annotated[
        str | None, typer.Option(help="SHA-256 that it must have, in hexadecimal; by default the published one.")
    ] = None,
) -> None:
    """Fetch published weights into torch's hub folder, verified; later commands find them there without a network."""
    import replknet
    from replknet.checkpoints.published import published_name, sha256_of

    path = replknet.download_weights(name, url=url, sha256=sha256)
    if sha256 is not None or replknet.PUBLISHED[published_name(name) or name].sha256:
        typer.echo(f"verified: {path}")
    else:
        typer.echo(f"fetched: {path}\nno hash of it is published; its SHA-256, to give as --sha256: {sha256_of(path)}")


def _fetch(name: str) -> None:
    """Add the command that fetches a published set of stimuli."""
    published = published_sets()[name]

    @data.command(name, help=f"Fetch {published.about}, verified. The same command again completes it.")
    def fetch(
        to: Annotated[Path, typer.Option(help="Folder for the stimuli.")],
        url: Annotated[str | None, typer.Option(help="Another address of the folder that holds them.")] = None,
    ) -> None:
        from analysis.images.downloads import download_stimuli

        all_of_them = 0
        with progress_bar(f"{name} stimuli") as progress:

            def told(done: int, total: int) -> None:
                nonlocal all_of_them
                all_of_them = total
                progress(done, total)

            fetched = download_stimuli(name, to, url=url, progress=told)
        typer.echo(f"{all_of_them} stimuli, all verified, are in {to} ({fetched} fetched now)")
        typer.echo(f"licence: {published.licence}")
        typer.echo(f"cite: {published.citation}")


for _name in published_sets():
    _fetch(_name)


@data.command("synthetic")
@takes(options=Fields(SyntheticOptions), images=Fields(SyntheticImages, without=("options",), changes=True))
def synthetic(
    to: Annotated[Path, typer.Option(help="Folder for the stimuli; files that are there already are left alone.")],
    images: dict[str, Any],
    options: SyntheticOptions,
) -> None:
    """Generate images with a shape and a texture, for the networks of a study (replknet_nano_k31).

    By default 132 images in conflict, every pair of classes once.
    """
    chosen = SyntheticImages(**{"kind": "conflict", "num_images": 132, "options": options, **images})
    with progress_bar("images") as progress:
        written = save_stimuli(chosen, to, progress=progress)
    typer.echo(f"{len(chosen)} stimuli are in {to} ({written} written now)")
    if chosen.kind == "congruent":
        typer.echo(f"replknet evaluate replknet_nano_k31 --data {to} classifies them")
    else:
        typer.echo(f"replknet shape-bias replknet_nano_k3 replknet_nano_k31 --stimuli {to} --out OUT answers them")
