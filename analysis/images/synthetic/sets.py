"""Sets of generated images, and these as stimuli."""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from analysis.images.labelled import LabelledImages
from analysis.images.stimuli import StimulusSet
from analysis.images.synthetic.drawing import SyntheticOptions, draw_image
from analysis.images.synthetic.outlines import CLASSES
from analysis.runs.settings import COUNTS, SEEDS, check_fields, named_path
from analysis.runs.writing import clear_leftovers, replacing

Kind = Literal["congruent", "conflict", "shape-only", "texture-only"]
KINDS: tuple[Kind, ...] = ("congruent", "conflict", "shape-only", "texture-only")


@dataclass(frozen=True, kw_only=True)
class SyntheticImages(Sequence[tuple[NDArray[np.uint8], int]]):
    """A set of generated images with the classes of their cues.

    `images[i]` is (pixels of shape (size, size, 3), number of the class). Classes, and in a conflict all pairs of
    different ones, take turns. The class of a conflict is that of its shape.

    Args:
        kind: Which cues they show: both of one class, of two classes in conflict, or one alone.
        num_images: How many there are.
        seed: Seed of the set. Sets of one seed show the same scenes.
        balance: Which cue is weakened: from -1 (the texture is absent) over 0 (both are full) to 1 (the shape is
            absent). None draws it for each image, uniformly. Sets with a single cue have none but 0.
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
        check_fields(self, num_images=COUNTS, seed=SEEDS, balance=(-1.0, 1.0, "a number from -1 to 1"))
        if self.kind.endswith("-only") and self.balance != 0:
            raise ValueError(f"balance={self.balance}: goes with two cues; these images have one, kind={self.kind!r}")

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


def stimulus_set(images: SyntheticImages, made: LabelledImages | None = None) -> StimulusSet:
    """The images in memory, as `evaluate_shape_bias` takes them (with `MAPPING`).

    Args:
        images: What they show.
        made: The same images, where they are made already.

    Raises:
        ValueError: If the images have no shape.
    """
    order = sorted(range(len(images)), key=lambda index: stimulus_name(images, index))
    arrays = tuple((made or images)[index][0] for index in order)
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
    directory = named_path(directory, "directory")
    if directory.exists() and not directory.is_dir():
        raise ValueError(f"directory={str(directory)!r}: exists and is not a folder")
    for name in CLASSES:
        clear_leftovers(directory / name)
    for index in range(len(images)):
        path = directory / CLASSES[images.cues(index)[0]] / stimulus_name(images, index)
        if not path.exists():
            with replacing(path) as temporary:
                Image.fromarray(images[index][0]).save(temporary)
            written += 1
        if progress is not None:
            progress(index + 1, len(images))
    return written
