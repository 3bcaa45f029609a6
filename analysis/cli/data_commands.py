"""`replknet data`."""

from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.console import progress_bar

data = typer.Typer(help="Fetch published stimuli.")


@data.callback()
def _group() -> None:
    """Fetch published stimuli."""


@data.command("cue-conflict")
def cue_conflict(
    to: Annotated[Path, typer.Option(help="Folder for the stimuli.")],
    url: Annotated[str | None, typer.Option(help="Address of the folder that holds airplane/, bear/, ...")] = None,
) -> None:
    """Fetch the 1280 cue-conflict stimuli of Geirhos et al. 2019, verified. The same command again completes it."""
    from analysis import downloads

    with progress_bar("cue-conflict stimuli") as progress:
        fetched = downloads.download_cue_conflict(to, url=url or downloads.CUE_CONFLICT_URL, progress=progress)
    typer.echo(f"1280 stimuli, all verified, are in {to} ({fetched} fetched now)")
    typer.echo(f"licence: {downloads.CUE_CONFLICT_LICENCE}")
    typer.echo(f"cite: {downloads.CUE_CONFLICT_CITATION}")
