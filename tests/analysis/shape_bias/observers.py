"""Observers whose every answer is known."""

import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from analysis import ShapeBiasResult
from analysis.images.stimuli import parse_stimulus
from analysis.shape_bias.categories import CATEGORIES


def observer(
    answers: Sequence[tuple[str, str]], *, name: str = "someone", categories: Sequence[str] = CATEGORIES
) -> ShapeBiasResult:
    """From (stimulus without its suffix, response)."""
    parts = [parse_stimulus(f"{stimulus}.png") for stimulus, _ in answers]
    return ShapeBiasResult(
        observer=name,
        stimuli=tuple(f"{stimulus}.png" for stimulus, _ in answers),
        shapes=tuple(part[0] for part in parts),
        shape_exemplars=tuple(part[1] for part in parts),
        textures=tuple(part[2] for part in parts),
        texture_exemplars=tuple(part[3] for part in parts),
        responses=tuple(response for _, response in answers),
        categories=tuple(categories),
    )


def crossed(num_shapes: int, num_textures: int) -> list[tuple[str, str]]:
    """Every cat with every elephant, each exemplar once in each pair; (stimulus, "") to be answered."""
    return [(f"cat{i}-elephant{j}", "") for i in range(num_shapes) for j in range(num_textures)]


def write_stimuli(folder: Path, names: Sequence[str], size: int = 16) -> Path:
    """Noise images in sub-folders by shape, as the published ones are."""
    for name in names:
        target = folder / parse_stimulus(f"{name}.png")[0]
        target.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 255, (size, size, 3), np.uint8)
        Image.fromarray(pixels).save(target / f"{name}.png")
    return folder


def write_single_cues(
    folder: Path, names: Sequence[str], *, size: tuple[int, int] = (16, 16), before: str = ""
) -> Path:
    """Noise images in the tree of single cues: `<cue>/<class>/<name>` with the suffix ".png"."""
    for name in names:
        target = folder / f"{before}{name}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        height, width = size
        pixels = np.random.default_rng(zlib.crc32(name.encode())).integers(0, 255, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(target)
    return folder
