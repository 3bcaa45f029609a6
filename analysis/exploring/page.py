"""The page itself, by gradio, which only this module knows: it asks nothing of any network and reports to nobody."""

import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from importlib.util import find_spec
from typing import Any

from PIL import Image

from analysis.exploring.explorer import Explorer, NamedImage
from analysis.exploring.plots import enlarged, enlargement, marked_picture, plot_unit
from analysis.images.files import read_rgb
from analysis.pages.drawing import Drawing, shown_drawings
from analysis.receptive_field.result import ErfResult
from analysis.recognition.prediction import Predictions

HOST = "127.0.0.1"
_THUMBNAIL = 128
"""Pixels."""
_SECONDS = 1
"""For what is under way when the page ends."""
_STYLE = """
.gradio-container { max-width: 78rem !important; width: 100%; margin: 0 auto; }
#picture img { width: 100%; height: auto; cursor: crosshair; image-rendering: pixelated; }
#unit { --paper: #fff; --line: var(--border-color-primary); --blue: #0072b2; }
#unit svg { min-width: 0 !important; max-width: 34rem !important; width: 100%; color: var(--body-text-color); }
#images .grid-container { grid-template-columns: repeat(auto-fill, minmax(6.4rem, 1fr)) !important; }
#images .grid-wrap { min-height: 0; max-height: 30rem; }
#images .caption-label { font-size: 0.7rem; padding: 0.1rem 0.3rem; white-space: normal; overflow-wrap: anywhere; }
#classes table, #classes tr, #classes td, #classes th { border: none; color: var(--body-text-color); }
#classes table { width: 100%; font-variant-numeric: tabular-nums; }
#classes td, #classes th { padding: 0.3rem 0; text-align: left; border-bottom: 1px solid var(--border-color-primary); }
#classes td:last-child, #classes th:last-child { text-align: right; }
"""


def require_gradio() -> None:
    """Refuse to begin where gradio is not installed.

    Raises:
        ValueError: Saying what to install.
    """
    if find_spec("gradio") is None:
        raise ValueError('explore: needs the package gradio; pip install "replknet[explore]"')


def open_port(port: int | None) -> socket.socket:
    """A socket of this machine alone that listens, at a free port by default.

    Raises:
        ValueError: If the port cannot be had.
    """
    try:
        return socket.create_server((HOST, port or 0))
    except OSError as error:
        raise ValueError(f"port={port}: cannot be used here ({error.strerror or error})") from error


def serve(explorer: Explorer, listening: socket.socket, begun: Callable[[], None]) -> None:
    """Serve the page until the process is interrupted.

    Args:
        explorer: What it asks.
        listening: Of `open_port`.
        begun: Called when the page can be had.
    """
    with _on_its_own():
        import fastapi
        import gradio
        import uvicorn

        theme = gradio.themes.Base(
            primary_hue="blue",
            font=["system-ui", "-apple-system", "Segoe UI", "Liberation Sans", "DejaVu Sans", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        )
        app = gradio.mount_gradio_app(
            fastapi.FastAPI(openapi_url=None),
            _blocks(explorer),
            "/",
            server_name=HOST,
            footer_links=[],
            run_history=False,
            ssr_mode=False,
            mcp_server=False,
            pwa=False,
            enable_monitoring=False,
            theme=theme,
            css=_STYLE,
        )
        config = uvicorn.Config(app, log_level="critical", timeout_graceful_shutdown=_SECONDS)
        begun()
        uvicorn.Server(config).run(sockets=[listening])


@contextmanager
def _on_its_own() -> Iterator[None]:
    """What gradio reads from the environment: no reports, and its files in a folder that is removed at the end."""
    with tempfile.TemporaryDirectory(prefix="replknet-explore-", ignore_cleanup_errors=True) as folder:
        own = {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "True", "GRADIO_TEMP_DIR": folder}
        before = {name: os.environ.get(name) for name in own}
        os.environ.update(own)
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


def _blocks(explorer: Explorer) -> Any:
    import gradio as gr

    first = explorer.models[0]

    def answer(model: str, layer: str, kernel: float, image: int, place: Any) -> tuple[Any, ...]:
        """All that depends on what is chosen."""
        try:
            pixels = explorer.picture(model, image)
            size = (pixels.shape[0], pixels.shape[1])
            pixel = None if place is None else (place[0] * size[0] - 0.5, place[1] * size[1] - 0.5)
            sides = explorer.kernels(model)
            cropped = int(kernel) if sides and kernel < sides[-1] else None
            field = explorer.field(model, image, layer, pixel=pixel, kernel=cropped)
        except ValueError as error:
            raise gr.Error(str(error), print_exception=False) from error
        try:
            classes = _table(explorer.classes(model, image, kernel=cropped))
        except ValueError as error:  # of a network that is no classifier
            classes = f"<p>{escape(str(error))}</p>"
        return (
            marked_picture(pixels, field),
            _map(field),
            classes,
            _facts(field, explorer.images[image].name, cropped=cropped is not None),
        )

    def clicked(model: str, image: int, event: gr.SelectData) -> tuple[float, float]:
        """The middle of the pixel, in parts of the picture's height and width."""
        shape = explorer.picture(model, image).shape
        factor = enlargement((shape[0], shape[1]))
        return (event.index[1] + 0.5) / (factor * shape[0]), (event.index[0] + 0.5) / (factor * shape[1])

    def choices(model: str, layer: str) -> tuple[Any, Any]:
        return gr.Dropdown(**_layers(explorer, model, layer)), gr.Slider(**_crop(explorer, model))

    def picked(event: gr.SelectData) -> int:
        return int(event.index)

    with gr.Blocks(title="replknet explore", analytics_enabled=False) as blocks:
        image, place = gr.State(0), gr.State(None)
        gr.Markdown(
            "# What does a unit see?\n"
            "Click anywhere in the picture: the map tells how much each of its pixels moves the unit there."
        )
        with gr.Row():
            model = gr.Dropdown(
                list(explorer.models),
                value=first,
                label="Network",
                elem_id="network",
                interactive=len(explorer.models) > 1,
                min_width=260,
            )
            layer = gr.Dropdown(
                **_layers(explorer, first), label="Layer", elem_id="layer", interactive=True, min_width=260
            )
            kernel = gr.Slider(
                **_crop(explorer, first),
                step=2,
                label="Large kernels cropped to",
                info="The largest value is the whole kernel. Weights outside are set to zero; nothing is retrained.",
                elem_id="kernel",
                interactive=True,
                min_width=260,
            )
        with gr.Row():
            with gr.Column(scale=4, min_width=300):
                picture = gr.Image(
                    enlarged(explorer.picture(first, 0)),
                    label="What the network gets",
                    show_label=False,
                    format="png",
                    type="pil",
                    interactive=False,
                    buttons=[],
                    elem_id="picture",
                )
                facts = gr.HTML(elem_id="facts")
            with gr.Column(scale=4, min_width=300):
                shown = gr.HTML(elem_id="unit")
            with gr.Column(scale=2, min_width=220):
                classes = gr.HTML(elem_id="classes")
        gallery = gr.Gallery(
            [(_thumbnail(item), item.name) for item in explorer.images],
            label="Images",
            show_label=False,
            format="png",
            height="auto",
            allow_preview=False,
            interactive=False,
            buttons=[],
            elem_id="images",
        )
        quick: dict[str, Any] = {"show_progress": "hidden", "api_visibility": "private"}
        asked: dict[str, Any] = {
            "fn": answer,
            "inputs": [model, layer, kernel, image, place],
            "outputs": [picture, shown, classes, facts],
            "trigger_mode": "always_last",
            "concurrency_id": "networks",
            "concurrency_limit": 1,
            "show_progress": "minimal",
            "show_progress_on": [shown],
            "api_visibility": "private",
        }
        model.input(choices, [model, layer], [layer, kernel], **quick).then(**asked)
        picture.select(clicked, [model, image], [place], **quick).then(**asked)
        gallery.select(picked, None, [image], **quick).then(**asked)
        gr.on([blocks.load, layer.input, kernel.input], **asked)
    return blocks


def _layers(explorer: Explorer, model: str, chosen: str = "") -> dict[str, Any]:
    """Of the list of layers of a network, each with its units; the chosen one stays, where this network has it."""
    layers = explorer.layers(model)
    offered = [(f"{name} ({rows}x{columns} units)", name) for name, (rows, columns) in layers.items()]
    return {"choices": offered, "value": chosen if chosen in layers else offered[0][1]}


def _crop(explorer: Explorer, model: str) -> dict[str, Any]:
    """Of the slider, which only a network with large kernels has."""
    sides = explorer.kernels(model) or range(1, 4, 2)
    return {"minimum": 1, "maximum": sides[-1], "value": sides[-1], "visible": bool(explorer.kernels(model))}


def _map(field: ErfResult) -> str:
    drawing = Drawing(name="unit", caption="The effective receptive field.", draw=lambda: plot_unit(field))
    return str(shown_drawings([drawing])[0]["svg"])


def _facts(field: ErfResult, name: str, *, cropped: bool) -> str:
    theory = "not traced"
    if field.theoretical is not None:
        infinite = max(field.theoretical) == float("inf")
        theory = "the whole image" if infinite else "{:g}x{:g} pixels".format(*field.theoretical)
    text = (
        f"{name}: unit ({field.unit[0]}, {field.unit[1]}) of {field.grid[0]}x{field.grid[1]}, row and column from 0, "
        f"centre at pixel ({field.center[0]:g}, {field.center[1]:g}); theoretical field"
        f"{' with whole kernels' * cropped}: {theory}."
    )
    if not field.mean_map.any():
        text += " It does not react to this image (its ReLU is off)."
    return f"<p>{escape(text)}</p>"


def _table(found: Predictions) -> str:
    best = found[0]
    pairs = zip(best.names, best.scores, strict=True)
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{score:.4f}</td></tr>" for name, score in pairs)
    notes = "".join(f"<p>{escape(note)}</p>" for note in found.notes)
    return f"<table><thead><tr><th>class</th><th>probability</th></tr></thead><tbody>{rows}</tbody></table>{notes}"


def _thumbnail(item: NamedImage) -> Image.Image:
    picture = Image.fromarray(item.image) if not isinstance(item.image, os.PathLike) else read_rgb(item.image)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return picture
