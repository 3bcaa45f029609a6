"""Generated images with a shape and a texture, either of which may name the class, and a dial for each.

Each of twelve classes has an outline and a texture of its own. A congruent image shows both of one class, a conflict
image the outline of one and the texture of another. The texture covers the whole image, as in the stimuli of Geirhos et
al., so that its border tells nothing about the shape. A dial scales the contrast of its cue and nothing else: that of
the texture, or that between figure and ground.

Image `index` of a set depends on the set's options, its seed and its index alone.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from analysis.categories import LabelMapping
from analysis.cue_conflict import StimulusSet

FloatArray = NDArray[np.floating[Any]]
Kind = Literal["congruent", "conflict", "shape-only", "texture-only"]
Region = Literal["image", "figure"]
KINDS: tuple[Kind, ...] = ("congruent", "conflict", "shape-only", "texture-only")
REGIONS: tuple[Region, ...] = ("image", "figure")

_CONTRAST = 0.1
"""Root mean square of the full texture, in units of the brightness range."""
_STEP = 0.36
"""Full difference in brightness between figure and ground. With it and the texture's contrast small networks of either
kernel size learn both cues in some hundred steps."""
_NOISE = 0.02
_MARGIN = 1.3
"""Half the side of the square on which outlines are tabulated, in radii."""


# Outlines: signed distances, negative inside, in units in which the shape fits the circle of radius 1 ---------------


def _polygon(points: Sequence[tuple[float, float]], x: FloatArray, y: FloatArray) -> FloatArray:
    nearest = np.full(x.shape, np.inf, dtype=np.float32)
    inside = np.zeros(x.shape, dtype=bool)
    for (x0, y0), (x1, y1) in zip(points, [*points[1:], points[0]], strict=True):
        edge_x, edge_y = x1 - x0, y1 - y0
        along = np.clip(((x - x0) * edge_x + (y - y0) * edge_y) / (edge_x**2 + edge_y**2), 0, 1)
        nearest = np.minimum(nearest, np.hypot(x - x0 - along * edge_x, y - y0 - along * edge_y))
        if edge_y:
            inside ^= ((y0 <= y) != (y1 <= y)) & (x - x0 < edge_x * (y - y0) / edge_y)
    return np.where(inside, -nearest, nearest).astype(np.float32)


def _corners(*radii: float) -> list[tuple[float, float]]:
    """Points at equal angles, the first one above."""
    angles = 2 * np.pi * np.arange(len(radii)) / len(radii)
    return [(float(r * np.sin(a)), float(-r * np.cos(a))) for r, a in zip(radii, angles, strict=True)]


def _heart() -> list[tuple[float, float]]:
    t = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    x, y = 16 * np.sin(t) ** 3, 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
    return [(float(a), float(b)) for a, b in zip(x / 17.5, -(y + 2.5) / 17.5, strict=True)]


def _drop() -> list[tuple[float, float]]:
    t = np.linspace(0.2 * np.pi, 1.8 * np.pi, 40)
    return [(0.0, -0.98), *((float(0.6 * np.sin(a)), float(0.36 - 0.6 * np.cos(a))) for a in t)]


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "arrow": [(0, -0.98), (0.74, -0.14), (0.28, -0.14), (0.28, 0.92), (-0.28, 0.92), (-0.28, -0.14), (-0.74, -0.14)],
    "bolt": [(0.34, -0.98), (-0.62, 0.16), (-0.1, 0.16), (-0.34, 0.98), (0.62, -0.26), (0.1, -0.26)],
    "cross": [
        (-0.3, -0.92), (0.3, -0.92), (0.3, -0.3), (0.92, -0.3), (0.92, 0.3), (0.3, 0.3),
        (0.3, 0.92), (-0.3, 0.92), (-0.3, 0.3), (-0.92, 0.3), (-0.92, -0.3), (-0.3, -0.3),
    ],
    "drop": _drop(),
    "heart": _heart(),
    "square": _corners(0.98, 0.98, 0.98, 0.98),
    "star": _corners(*[0.98, 0.42] * 5),
    "triangle": _corners(0.98, 0.98, 0.98),
}  # fmt: skip
_CURVES: dict[str, Callable[[FloatArray, FloatArray], FloatArray]] = {
    "crescent": lambda x, y: np.maximum(np.hypot(x, y) - 0.97, 0.78 - np.hypot(x - 0.45, y)),
    "disc": lambda x, y: np.hypot(x, y) - np.float32(0.85),
    "flower": lambda x, y: (np.hypot(x, y) - 0.68 - 0.29 * np.cos(5 * np.arctan2(x, -y))) * np.float32(0.6),
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.72) - np.float32(0.24),
}
CLASSES: tuple[str, ...] = tuple(sorted({*_POLYGONS, *_CURVES}))
"""In alphabetical order, which is the order of a trained network's outputs."""


@lru_cache(maxsize=len(CLASSES))
def _outline(name: str) -> FloatArray:
    """Signed distances on a square grid that reaches `_MARGIN` radii from the centre."""
    axis = np.linspace(-_MARGIN, _MARGIN, 521, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    curve = _CURVES.get(name)
    table = _polygon(_POLYGONS[name], x, y) if curve is None else curve(x, y)
    return np.asarray(table, dtype=np.float32)


# Textures: functions of two coordinates with a period of 2 pi and of a random generator -----------------------------

Texture = Callable[[FloatArray, FloatArray, np.random.Generator], FloatArray]


def _bent(function: Callable[[FloatArray, FloatArray], FloatArray]) -> Texture:
    """The same pattern on coordinates that wander at random, so that it keeps its order over a few periods only.

    A lattice of unlimited order would be no local cue: the larger a kernel, the better it would match it.
    """

    def wander(u: FloatArray, v: FloatArray, generator: np.random.Generator) -> FloatArray:
        turns, phases = generator.uniform(0, 2 * np.pi, (2, 3))
        total = np.zeros_like(u)
        for turn, phase in zip(turns, phases, strict=True):
            total += np.cos(np.float32(0.3 * np.cos(turn)) * u + np.float32(0.3 * np.sin(turn)) * v + np.float32(phase))
        return np.asarray(np.float32(0.8) * total, dtype=np.float32)

    def bent(u: FloatArray, v: FloatArray, generator: np.random.Generator) -> FloatArray:
        return function(u + wander(u, v, generator), v + wander(u, v, generator))

    return bent


def _triangle_wave(u: FloatArray) -> FloatArray:
    return np.asarray(np.abs((u / np.float32(np.pi)) % 2 - 1) * 2 - 1, dtype=np.float32)


def _edge(values: FloatArray, sharpness: float = 3.0) -> FloatArray:
    """A soft threshold at 0."""
    return np.asarray(np.tanh(sharpness * values))


def _band(u: FloatArray, generator: np.random.Generator, *, width: float = 0.25, stretch: float = 1.0) -> FloatArray:
    """Noise around the texture's frequency, `stretch` times longer along one axis than across."""
    size = u.shape[0]
    step = max(float(np.hypot(u[0, 1] - u[0, 0], u[1, 0] - u[0, 0])), 1e-6)  # radians a pixel
    turn = np.arctan2(u[1, 0] - u[0, 0], u[0, 1] - u[0, 0])
    fy, fx = np.fft.fftfreq(size)[:, None] * 2 * np.pi / step, np.fft.rfftfreq(size)[None] * 2 * np.pi / step
    across, along = fx * np.cos(turn) + fy * np.sin(turn), fy * np.cos(turn) - fx * np.sin(turn)
    gain = np.exp(-(((np.hypot(across, stretch * along) - 1) / width) ** 2))
    noise = np.fft.rfft2(generator.standard_normal((size, size)))
    return np.fft.irfft2(noise * gain, s=(size, size)).astype(np.float32)


def _cells(u: FloatArray, v: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Coordinates from -pi to pi in the cells of rows that are shifted by half a cell."""
    row = np.floor(v / (2 * np.pi))
    return (u + np.pi * (row % 2)) % (2 * np.pi) - np.pi, v % (2 * np.pi) - np.pi


def _bricks(u: FloatArray, v: FloatArray) -> FloatArray:
    x, y = _cells(u / 2, v)
    return _edge(np.minimum(2 * (np.pi - np.abs(x)), np.pi - np.abs(y)) - 0.7)


def _scales(u: FloatArray, v: FloatArray) -> FloatArray:
    x, y = _cells(u, v)
    return _edge(np.sin(np.hypot(x, y + np.pi) * 1.5), 2.0)


def _weave(u: FloatArray, v: FloatArray) -> FloatArray:
    odd = (np.floor(u / (2 * np.pi)) + np.floor(v / (2 * np.pi))) % 2
    return _edge(np.where(odd > 0, np.sin(1.5 * u), np.sin(1.5 * v)) + 0.1, 2.0)


def _dots(u: FloatArray, v: FloatArray) -> FloatArray:
    x, y = _cells(u, v)
    return -_edge(np.hypot(x, y) - 1.35, 2.0)


def _speckle(u: FloatArray, v: FloatArray, generator: np.random.Generator) -> FloatArray:
    field = _band(u, generator, width=0.45)
    return np.asarray(np.clip(field / (field.std() + 1e-12) - 1.1, 0, 0.6))  # flat tops: none is cut at white


TEXTURES: dict[str, tuple[str, float, Texture]] = {
    "arrow": ("dots", 7.0, _bent(_dots)),
    "bolt": ("bricks", 8.0, _bent(_bricks)),
    "crescent": ("stripes", 5.0, _bent(lambda u, v: _edge(np.sin(u), 2.0))),
    "cross": ("blobs", 14.0, lambda u, v, g: _band(u, g)),
    "disc": ("zigzag", 8.0, _bent(lambda u, v: _edge(np.sin(u + 2.4 * _triangle_wave(v / 2)), 2.0))),
    "drop": ("checks", 10.0, _bent(lambda u, v: _edge(np.sin(u) * np.sin(v), 4.0))),
    "flower": ("grain", 5.0, lambda u, v, g: _band(u, g)),
    "heart": ("rays", 5.5, lambda u, v, g: _band(u, g, width=0.2, stretch=0.15)),
    "ring": ("hatch", 6.5, _bent(lambda u, v: -_edge(np.minimum(np.abs(np.sin(u / 2)), np.abs(np.sin(v / 2))) - 0.35))),
    "square": ("scales", 11.0, _bent(_scales)),
    "star": ("speckle", 6.0, _speckle),
    "triangle": ("weave", 9.0, _bent(_weave)),
}
"""For each class the name of its texture and its period in pixels of an image of 64, some fine and some coarse."""


# Images ---------------------------------------------------------------------------------------------------------------


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
        if self.size < 16:
            raise ValueError(f"size={self.size}: expected at least 16 pixels")
        if self.texture_region not in REGIONS:
            raise ValueError(f"texture_region={self.texture_region!r}: expected one of {', '.join(REGIONS)}")
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
    table = _outline(shape)
    scale = (len(table) - 1) / (2 * _MARGIN * radius)
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


@dataclass(frozen=True, kw_only=True)
class SyntheticImages(Sequence[tuple[NDArray[np.uint8], int]]):
    """A set of generated images with the classes of their cues.

    `images[i]` is (pixels of shape (size, size, 3), number of the class). Classes, and in a conflict all pairs of
    different ones, take turns. The class of a conflict is that of its shape.

    Args:
        kind: "congruent", "conflict", "shape-only" or "texture-only".
        num_images: How many there are.
        seed: Of the set. Sets of one seed show the same scenes.
        balance: Which cue is weakened: from -1 (the texture is absent) over 0 (both are full) to 1 (the shape is
            absent). None draws it for each image, uniformly. Has no effect on sets with a single cue.
        options: Size and the rest.

    Raises:
        ValueError: If a value is out of range.
    """

    kind: Kind = "congruent"
    num_images: int
    seed: int = 0
    balance: float | None = 0.0
    options: SyntheticOptions = field(default_factory=SyntheticOptions)

    classes = CLASSES

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind={self.kind!r}: expected one of {', '.join(KINDS)}")
        if self.num_images < 1:
            raise ValueError(f"num_images={self.num_images}: expected at least 1")
        if self.balance is not None and not -1 <= self.balance <= 1:
            raise ValueError(f"balance={self.balance}: expected a number from -1 to 1")

    def __len__(self) -> int:
        return self.num_images

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        index %= len(self)
        shape, texture = self.cues(index)
        shape_strength, texture_strength = self.strengths(index)
        pixels = draw_image(
            CLASSES[shape],
            CLASSES[texture],
            shape_strength=shape_strength,
            texture_strength=texture_strength,
            seed=self.seed,
            index=index,
            options=self.options,
        )
        return pixels, texture if self.kind == "texture-only" else shape

    def cues(self, index: int) -> tuple[int, int]:
        """Numbers of the classes of shape and texture; equal but in a conflict."""
        count = len(CLASSES)
        shape = index % count
        if self.kind != "conflict":
            return shape, shape
        return shape, (shape + 1 + index // count % (count - 1)) % count

    def strengths(self, index: int) -> tuple[float, float]:
        """Strength of shape and texture, each from 0 to 1; one of them is 1."""
        if self.kind == "shape-only":
            return 1.0, 0.0
        if self.kind == "texture-only":
            return 0.0, 1.0
        balance = self.balance
        if balance is None:
            balance = float(np.random.default_rng((self.seed, index, 1)).uniform(-1, 1))
        return min(1.0, 1.0 - balance), min(1.0, 1.0 + balance)


MAPPING = LabelMapping.from_dict(dict(enumerate(CLASSES)), len(CLASSES))
"""From the outputs of a network that was trained on these images to their classes."""


def stimulus_name(images: SyntheticImages, index: int) -> str:
    """The name of an image as a stimulus, such as "star17-heart17.png"; without a texture "star17.png".

    The number is that of the scene: no two images share a figure or a texture.

    Raises:
        ValueError: If the images have no shape.
    """
    if images.kind == "texture-only":
        raise ValueError("kind='texture-only': a stimulus is named by its shape, and these have none")
    shape, texture = images.cues(index)
    first = f"{CLASSES[shape]}{index + 1}"
    return f"{first}.png" if images.kind == "shape-only" else f"{first}-{CLASSES[texture]}{index + 1}.png"


def stimulus_set(images: SyntheticImages) -> StimulusSet:
    """The images in memory, as `evaluate_shape_bias` takes them (with `MAPPING`).

    Raises:
        ValueError: If the images have no shape.
    """
    order = sorted(range(len(images)), key=lambda index: stimulus_name(images, index))
    arrays = tuple(images[index][0] for index in order)
    cues = [images.cues(index) for index in order]
    textured = images.kind != "shape-only"
    return StimulusSet(
        source=f"generated, {images.kind}, seed {images.seed}, balance {images.balance}",
        names=tuple(stimulus_name(images, index) for index in order),
        shapes=tuple(CLASSES[shape] for shape, _ in cues),
        textures=tuple(CLASSES[texture] if textured else "" for _, texture in cues),
        shape_exemplars=tuple(f"{CLASSES[cue[0]]}{i + 1}" for i, cue in zip(order, cues, strict=True)),
        texture_exemplars=tuple(f"{CLASSES[cue[1]]}{i + 1}" * textured for i, cue in zip(order, cues, strict=True)),
        hashes=tuple(hashlib.sha256(array.tobytes()).hexdigest() for array in arrays),
        arrays=arrays,
    )


def save_stimuli(
    images: SyntheticImages,
    directory: str | PathLike[str],
    *,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the images as PNG files to `directory/<shape>/`, a tree that `load_stimuli` reads.

    Files that are there already are left as they are, so that an interrupted call can be repeated.

    Returns:
        How many were written.

    Raises:
        ValueError: If the images have no shape, or `directory` is a file.
    """
    written = 0
    if Path(directory).exists() and not Path(directory).is_dir():
        raise ValueError(f"directory={str(directory)!r}: exists and is not a folder")
    for index in range(len(images)):
        path = Path(directory) / CLASSES[images.cues(index)[0]] / stimulus_name(images, index)
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".new")
            Image.fromarray(images[index][0]).save(temporary, format="PNG")
            temporary.replace(path)
            written += 1
        if progress is not None:
            progress(index + 1, len(images))
    return written
