"""`replknet plot`."""

from io import BytesIO
from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.console import clear_errors_for_files
from analysis.cli.options import Overwrite
from analysis.runs.writing import check_writable, replacing

app = typer.Typer()
FORMATS = ("pdf", "png", "svg")


@app.callback()
def _group() -> None:
    """So that the command keeps its name."""


@app.command()
def plot(
    results: Annotated[
        list[Path], typer.Argument(help="Folders of runs, of single results or of a study; one or several.")
    ],
    out: Annotated[Path, typer.Option(help="The figure, a file; its ending tells the format.")],
    kind: Annotated[
        str | None,
        typer.Option(
            help="erf, contribution, radial, growth; shape-bias, categories, pairs, confusion, consistency, "
            "sensitivity; psychometric, curves, a measure of the study; posthoc; compare. Without it, those that the "
            "results have are told."
        ),
    ] = None,
    width: Annotated[float, typer.Option(help="Of the figure in inches.")] = 3.4,
    font: Annotated[str | None, typer.Option(help="Name of an installed font, e.g. Times.")] = None,
    cmap: Annotated[str | None, typer.Option(help="A colour map of matplotlib, for figures that have one.")] = None,
    image_format: Annotated[
        str | None, typer.Option("--format", help=f"{', '.join(FORMATS)}, where the name of the file does not tell.")
    ] = None,
    centered: Annotated[bool, typer.Option("--centered", help="Of erf: pixels are counted from the unit.")] = False,
    overwrite: Overwrite = False,
) -> None:
    """Draw a figure anew from saved results, in the size and the style of a paper; nothing is measured."""
    ending = out.suffix.lower().removeprefix(".")
    form = image_format or ending
    if form not in FORMATS:
        given = f"format={form!r}" if image_format else f"out={str(out)!r}"
        raise ValueError(f"{given}: expected {', '.join(FORMATS)}" + (" as ending" if not image_format else ""))
    if ending in FORMATS and ending != form:
        raise ValueError(f"format={form!r}: the name {out.name} tells another one")
    if out.is_dir():
        raise ValueError(f"out={str(out)!r}: is a folder; expected a file for the figure")
    if out.exists() and not overwrite:
        raise FileExistsError(f"out={str(out)!r}: exists already; choose another file, or overwrite=True replaces it")
    from analysis.figures import paper_style, plain_text
    from analysis.redrawing.kinds import Look, draw_saved
    from analysis.redrawing.saved import read_saved

    figure = draw_saved(read_saved(results), kind or "", Look(width=width, cmap=cmap, centered=centered), font=font)
    plain_text(figure)
    content = BytesIO()  # the writers of formats fail in their own ways on a full disk
    with paper_style(font=font):
        figure.savefig(content, format=form, dpi=300)
    check_writable(out)
    with clear_errors_for_files(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with replacing(out) as path:
            path.write_bytes(content.getvalue())
    typer.echo(f"figure: {out}")
