"""Receptive fields on a page: their pictures, and the numbers that its script redraws the squares from."""

import base64
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import to_hex
from numpy.typing import NDArray
from PIL import Image

from analysis.pages.drawing import Drawing, shown_drawings
from analysis.pages.page import Section, Table, doubles, rendered
from analysis.receptive_field.measures import THRESHOLDS, FloatArray
from analysis.receptive_field.methods import area_text, measured_text, theory_text
from analysis.receptive_field.result import ErfResult
from analysis.runs.methods import fitting_digits

DECADES = 4
"""Below the maximum, that the colours show; the values under the pointer reach twice as deep."""
_PIXELS = 2**19
"""Of all pictures of a page together; larger maps are shown as means of squares of pixels."""
_SQUARES = (0.5, 0.99)
_CENTERS = {"unit": "that of the unit's own field", "image": "that of the image, pixel (H // 2, W // 2)"}


def erf_page(
    results: Sequence[ErfResult],
    drawings: Sequence[Drawing],
    *,
    command: str,
    files: Sequence[str],
    warnings: Sequence[str] = (),
) -> str:
    """The page of effective receptive fields: maps to explore, figures and a table.

    Args:
        results: In order.
        drawings: Figures beside the maps.
        command: What makes the page again.
        files: To be linked.
        warnings: Shown first.
    """
    several = len({result.layer for result in results}) > 1
    maps = [
        (result, f"{result.model}, {result.layer}" if several else result.model, _picked(result)) for result in results
    ]
    groups, numbers = map_groups([("", maps)])
    first = results[0]
    columns = ["model", "layer", "images", *(f"area {100 * threshold:g} % (%)" for threshold in THRESHOLDS)]
    columns += ["RMS radius (px)", "FWHM (px)", "theoretical field (px)"]
    return rendered(
        "results.html.j2",
        title="How far does the network see?",
        kind="Effective receptive fields",
        summary=f"{len(results)} map{'s' * (len(results) != 1)} of {first.map_size[0]} x {first.map_size[1]} pixels.",
        command=command,
        files=files,
        data={"maps": numbers},
        scripts=["maps"],
        warnings=warnings,
        setting=[
            ("images", f"{len(first.images)}; {first.image_source}"),
            ("protocol", first.protocol),
            ("measured", measured_text(first.options, "the layer")),
            ("centre of squares", _CENTERS[first.options.square_center]),
            ("scale", "raw: neither normalised nor logarithmic; areas are parts of the image"),
        ],
        sections=[
            Section(
                title="Maps",
                text="Mean over images of the gradient magnitude, each map relative to its maximum, all on one scale. "
                "The solid square holds half of the gradient, the dashed one 99 %.",
                maps=groups,
            ),
            Section(title="Curves", figures=shown_drawings(drawings)),
            Section(
                title="Table", tables=[Table(columns=columns, rows=[_row(result) for result in results], note=_NOTE)]
            ),
        ],
        environment=sorted(first.environment.items()),
        sources=_SOURCES,
    )


_NOTE = "Value [95 % bootstrap interval over images]; all measures are in erf.csv."
_SOURCES = [
    ("Luo et al. 2016", "1701.04128"),
    ("Ding et al. 2022", "2203.06717"),
]


def _picked(result: ErfResult) -> dict[str, Any]:
    return {"model": result.model, "layer": result.layer}


def _row(result: ErfResult) -> list[str]:
    signed = result.options.gradient_rule == "signed"
    areas = ["-" if signed else area_text(result, threshold) for threshold in THRESHOLDS]
    radius = float("nan") if signed else result.rms_radius()
    extents = ["-" if np.isnan(extent) else f"{extent:.1f}" for extent in (radius, result.fwhm())]
    return [result.model, result.layer, str(len(result.images)), *areas, *extents, theory_text(result)]


def map_groups(
    groups: Sequence[tuple[str, Sequence[tuple[ErfResult, str, Mapping[str, Any]]]]],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Receptive fields for a template and for the script `maps`.

    Args:
        groups: Caption and maps of each: the result, its label, and what it can be picked by (such as "model"); what is
            "hidden" is shown once it is picked.

    Returns:
        The groups with the pictures, for the template, and the numbers of each map in order, for the script.
    """
    total = sum(math.prod(result.map_size) for _, own in groups for result, _, _ in own)
    factor = max(1, math.ceil(math.sqrt(total / _PIXELS)))
    shown: list[dict[str, Any]] = []
    numbers: list[dict[str, Any]] = []
    colors = mpl.colormaps["magma"]
    for caption, own in groups:
        maps = []
        for result, label, picked in own:
            maps.append(
                _picture(result, label, factor) | {"index": len(numbers), "hidden": picked.get("hidden", False)}
            )
            numbers.append(_numbers(result, factor) | dict(picked))
        shown.append(
            {
                "name": str(len(shown)),
                "caption": caption,
                "maps": maps,
                "lowest": f"{10.0**-DECADES:g}",
                "colors": ", ".join(to_hex(colors(part / 8)) for part in range(9)),
            }
        )
    return shown, numbers


def _picture(result: ErfResult, label: str, factor: int) -> dict[str, Any]:
    signed = result.options.gradient_rule == "signed"
    squares, texts = [], []
    for threshold in () if signed else _SQUARES:
        top, left, height, width = result.square(threshold)
        area = result.area_ratio(threshold)
        if np.isnan(area):
            texts = ["undefined: no gradient"]
            continue
        # A pixel of the picture reaches from its number to the next.
        squares.append({"top": top + 0.5, "left": left + 0.5, "height": height, "width": width})
        texts.append(f"{100 * threshold:g} % in {100 * area:.{fitting_digits(100 * area)}f} %")
    depth = np.log10(np.maximum(_relative(result, factor), 10.0**-DECADES)) / DECADES + 1
    picture = Image.fromarray(np.rint(255 * depth).astype(np.uint8))
    palette = np.rint(255 * np.asarray(mpl.colormaps["magma"](np.arange(256)))[:, :3]).astype(np.uint8)
    picture.putpalette(palette.tobytes())
    return {
        "label": label,
        "picture": _data_url(picture),
        # Of whole squares of pixels, which may reach beyond the map.
        "height": -(-result.map_size[0] // factor) * factor,
        "width": -(-result.map_size[1] // factor) * factor,
        "squares": squares,
        "squares_text": ", ".join(texts) + " of the area" * bool(squares) or "signed: areas are undefined",
    }


def _numbers(result: ErfResult, factor: int) -> dict[str, Any]:
    signed = result.options.gradient_rule == "signed"
    areas = result.contribution_curve()[0] if not signed else np.zeros(0)
    curves = {} if signed else {scale: doubles(result.contribution_curve(scale)[1]) for scale in ("raw", "log")}
    relative = _relative(result, factor)
    with np.errstate(divide="ignore"):
        depth = np.log10(relative) + 2 * DECADES
    levels = np.where(depth < 0, 0, 1 + np.rint(65534 * np.maximum(depth, 0) / (2 * DECADES))).astype(np.uint16)
    fine = np.concatenate([levels >> 8, levels & 255]).astype(np.uint8)  # high bytes above the low ones
    return {
        "height": result.map_size[0],
        "width": result.map_size[1],
        "center": list(result.center),
        "steps": result.protocol == "official",
        "factor": factor,
        "decades": 2 * DECADES,
        "fine": _data_url(Image.fromarray(fine)),
        "areas": doubles(areas),
        "raw": None,
        "log": None,
        **curves,
    }


def _relative(result: ErfResult, factor: int) -> FloatArray:
    """Magnitude relative to the largest, as means of squares of `factor` pixels; smaller ones at the ends."""
    magnitude = np.abs(result.mean_map)
    starts = [np.arange(0, side, factor) for side in magnitude.shape]
    sums = np.add.reduceat(np.add.reduceat(magnitude, starts[0], 0), starts[1], 1)
    counts: list[NDArray[Any]] = [np.diff([*start, side]) for start, side in zip(starts, magnitude.shape, strict=True)]
    return np.asarray(sums / np.outer(*counts) / (magnitude.max() or 1.0))


def _data_url(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "png", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
