"""One generated image, with a dial for each of its cues."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from analysis.images.synthetic.outlines import CLASSES, MARGIN, FloatArray, outline
from analysis.images.synthetic.textures import TEXTURES
from analysis.runs.settings import check_fields

Region = Literal["image", "figure"]
_CONTRAST = 0.1
"""Root mean square of the full texture, in units of the brightness range."""
_STEP = 0.36
"""Full difference in brightness between figure and ground. With it and the texture's contrast small networks of either
kernel size learn both cues in some hundred steps."""
_NOISE = 0.02


@dataclass(frozen=True, kw_only=True)
class SyntheticOptions:
    """What is common to the images of a study.

    Args:
        size: Side in pixels; everything drawn is in proportion to it.
        texture_region: The texture covers the whole "image", or only the "figure", whose outline it then also shows.
        texture_scale: Factor on the period of every texture.

    Raises:
        ValueError: If a value is out of range.
    """

    size: int = 64
    texture_region: Region = "image"
    texture_scale: float = 1.0

    def __post_init__(self) -> None:
        check_fields(self, size=(16, 4096, "16 to 4096 pixels"))
        finest = min(period for _, period, _ in TEXTURES.values()) * self.texture_scale * self.size / 64
        if not 0 < self.texture_scale <= 4 or finest < 2:
            raise ValueError(
                f"texture_scale={self.texture_scale}: expected at most 4, and at images of {self.size} pixels at least "
                f"{2 * 64 / 5 / self.size:g}, where the finest texture has two pixels a period"
            )


def draw_image(
    shape: str,
    texture: str,
    *,
    shape_strength: float,
    texture_strength: float,
    seed: int,
    index: int,
    options: SyntheticOptions | None = None,
) -> NDArray[np.uint8]:
    """One image of shape (size, size, 3).

    Pose, colours, background and noise follow from `seed` and `index`, and are the same for any classes and strengths.

    Args:
        shape: Class of the outline.
        texture: Class of the texture.
        shape_strength: From 0 (no figure) to 1: the difference in colour between figure and ground.
        texture_strength: From 0 (none) to 1: the contrast of the texture.
        seed: Of the set.
        index: Of the image in the set.
        options: Size and the rest.

    Raises:
        ValueError: If a class is unknown or a strength out of range.
    """
    for name, value in (("shape", shape), ("texture", texture)):
        if value not in CLASSES:
            raise ValueError(f"{name}={value!r}: expected one of {', '.join(CLASSES)}")
    for name, strength in (("shape_strength", shape_strength), ("texture_strength", texture_strength)):
        if not 0 <= strength <= 1:
            raise ValueError(f"{name}={strength}: expected a number from 0 to 1")
    options = options or SyntheticOptions()
    size = options.size
    generator = np.random.default_rng((seed, index))
    radius = size * generator.uniform(0.32, 0.46)
    room = size / 2 - radius
    center_y, center_x = size / 2 + generator.uniform(-room, room, 2)
    turn = generator.uniform(-np.pi / 6, np.pi / 6)
    texture_turn, light = generator.uniform(0, 2 * np.pi, 2)
    phases = generator.uniform(0, 2 * np.pi, 2)
    stretch = generator.uniform(0.9, 1.1)
    middle, slope = generator.uniform(0.44, 0.56), generator.uniform(0, 0.1)
    polarity = generator.choice((-1.0, 1.0))
    hues = generator.uniform(0, 2 * np.pi, 3)
    shape_contrast, texture_contrast = generator.uniform(0.85, 1.15, 2)
    noise = generator.standard_normal((size, size), dtype=np.float32)

    axis = np.arange(size, dtype=np.float32)
    x, y = axis[None, :] - np.float32(center_x - 0.5), axis[:, None] - np.float32(center_y - 0.5)
    coverage = _coverage(shape, x, y, radius, turn)
    pattern = _pattern(texture, axis, texture_turn, phases, stretch * options.texture_scale, generator)
    if options.texture_region == "figure":
        pattern = pattern * coverage

    # Full cues: half of this on either side of the middle, and the two hues.
    step = _STEP * shape_contrast * polarity
    between = _color(middle, hues[0])
    ground = between + shape_strength * (_color(middle - step / 2, hues[0]) - between)
    figure = between + shape_strength * (_color(middle + step / 2, hues[1]) - between)
    ramp = slope * (np.cos(light) * (axis[None, :] / size - 0.5) + np.sin(light) * (axis[:, None] / size - 0.5))
    grain = _CONTRAST * texture_contrast * texture_strength * pattern
    tint = 1 + 0.25 * _chroma(hues[2])
    image = ground[:, None, None] + (figure - ground)[:, None, None] * coverage
    image = image + tint[:, None, None] * grain + (ramp + _NOISE * noise)
    pixels = np.clip(image * 255 + 0.5, 0, 255).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _coverage(shape: str, x: FloatArray, y: FloatArray, radius: float, turn: float) -> FloatArray:
    """Part of each pixel inside the outline, shape (size, size)."""
    table = outline(shape)
    scale = (len(table) - 1) / (2 * MARGIN * radius)
    cos, sin = np.float32(np.cos(turn) * scale), np.float32(np.sin(turn) * scale)
    middle = np.float32((len(table) - 1) / 2)
    where = np.stack([cos * y - sin * x + middle, cos * x + sin * y + middle])
    distance = ndimage.map_coordinates(table, where, order=1, mode="nearest", prefilter=False)
    return np.asarray(np.clip(np.float32(0.5) - distance * np.float32(radius), 0, 1), dtype=np.float32)


def _pattern(
    texture: str,
    axis: FloatArray,
    turn: float,
    phases: NDArray[np.float64],
    scale: float,
    generator: np.random.Generator,
) -> FloatArray:
    """A texture of mean 0 and root mean square 1, shape (size, size)."""
    _, period, function = TEXTURES[texture]
    frequency = 2 * np.pi * 64 / (len(axis) * period * scale)
    cos, sin = np.float32(np.cos(turn) * frequency), np.float32(np.sin(turn) * frequency)
    u = cos * axis[None, :] + sin * axis[:, None] + np.float32(phases[0])
    v = cos * axis[:, None] - sin * axis[None, :] + np.float32(phases[1])
    values = function(u, v, generator)
    values = values - values.mean()
    return np.asarray(values / np.sqrt(np.mean(np.square(values))), dtype=np.float32)


def _chroma(hue: float) -> NDArray[np.float64]:
    """A direction in RGB at constant mean."""
    return np.cos(hue - np.array([0, 2 * np.pi / 3, 4 * np.pi / 3]))


def _color(brightness: float, hue: float) -> NDArray[np.float64]:
    return np.asarray(brightness + 0.1 * _chroma(hue))
