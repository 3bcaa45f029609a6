"""`replknet explore`."""

import webbrowser
from contextlib import suppress
from pathlib import Path
from typing import Annotated

import typer

from analysis.cli.choosing import LAST_HELP, MODEL_HELP, ModelChoice, layers_of
from analysis.cli.console import print_notes, skipped_notes
from analysis.cli.options import Fields, InputSize, takes
from analysis.exploring.explorer import Explorer, images_to_explore
from analysis.models.loaded import DEFAULT_SIZE

app = typer.Typer()


@app.callback()
def _group() -> None:
    """So that the command keeps its name."""


@app.command()
@takes(choice=Fields(ModelChoice))
def explore(
    model: Annotated[list[str], typer.Argument(help=MODEL_HELP)],
    choice: ModelChoice,
    images: Annotated[Path | None, typer.Option(help="Folder of images; without it, generated ones.")] = None,
    num_images: Annotated[int, typer.Option(help="How many images are offered.")] = 24,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help=f"Layers that are offered, by name, separated by commas; {LAST_HELP} NAME=... for one network alone; "
            "may be given several times. By default that map and all with at most one dot in the name."
        ),
    ] = None,
    size: InputSize = None,
    port: Annotated[int | None, typer.Option(help="Of the page; by default a free one.", min=1, max=65535)] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in the browser.")] = False,
) -> None:
    """Click on images: what the unit there sees, in a page on this machine.

    The page shows the effective receptive field of the unit that is clicked on and the best classes, and changes
    image, network, layer and the crop of large kernels. Only this machine can reach it, it asks nothing of any network,
    and Ctrl-C ends it.
    """
    from analysis.exploring.page import HOST, open_port, require_gradio, serve

    require_gradio()
    with open_port(port) as listening:
        loaded = choice.load(model)
        side = size or max(item.input_size or DEFAULT_SIZE for item in loaded)
        offered, skipped = images_to_explore(images, num_images=num_images, size=side, seed=choice.seed)
        loaded = [choice.on_images(item, [own.image for own in offered], size) for item in loaded]
        named = zip(loaded, layers_of(layers, loaded), strict=True)
        chosen = {item.name: names for item, names in named if names}
        explorer = Explorer(loaded, offered, layers=chosen, size=size)
        print_notes([*(note for item in loaded for note in item.notes), *skipped_notes(skipped)])
        address = f"http://{HOST}:{listening.getsockname()[1]}/"

        def begun() -> None:
            typer.echo(f"{address} (Ctrl-C ends it)")
            if browser:
                webbrowser.open(address)

        with suppress(KeyboardInterrupt):
            serve(explorer, listening, begun)
