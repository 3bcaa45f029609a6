"""Sets of images of one size: folders, lists of files and generated images, as normalised tensors."""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from analysis.images.dead_leaves import dead_leaves
from analysis.images.files import ImageError, files_in, read_rgb
from analysis.images.imagenet import IMAGENET_MEAN, IMAGENET_STD
from analysis.images.preparing import check_normalization, normalize
from analysis.runs.results import Shown
from analysis.runs.texts import printable

GENERATED = "generated dead leaves"


@dataclass(frozen=True, kw_only=True, repr=False)
class ImageSet(Shown, Sequence[Tensor]):
    """Images of one size, read (or generated) when they are asked for.

    `images[i]` is a float32 tensor of shape (3, H, W), normalised by `mean` and `std`.
    """

    source: str
    names: tuple[str, ...]
    hashes: tuple[str, ...]
    """SHA-256 of each file, in hexadecimal."""
    size: tuple[int, int]
    seed: int
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    skipped: tuple[tuple[str, str], ...] = ()
    """Files that were drawn and could not be used, with the reason."""
    paths: tuple[Path, ...] = ()

    def headline(self) -> dict[str, Any]:
        """Where they are from, how many there are, and their size."""
        size = "x".join(map(str, self.size))
        return {"source": self.source, "images": len(self), "size": size, "skipped": len(self.skipped)}

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:  # type: ignore[override]
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        pixels = self.pixels(index % len(self))
        return normalize(torch.from_numpy(pixels), self.mean, self.std)

    def __iter__(self) -> Iterator[Tensor]:
        return (self[index] for index in range(len(self)))

    def pixels(self, index: int) -> NDArray[np.float32]:
        """One image before normalisation, shape (3, H, W), in [0, 1]."""
        if not self.paths:
            return dead_leaves(self.size, seed=self.seed, index=index)
        image = read_rgb(self.paths[index]).resize((self.size[1], self.size[0]), Image.Resampling.BICUBIC)
        pixels: NDArray[np.float32] = np.multiply(np.asarray(image).transpose(2, 0, 1), 1 / 255, dtype=np.float32)
        return pixels

    def normalized_by(self, mean: Sequence[float], std: Sequence[float]) -> "ImageSet":
        """The same images under another model's mean and standard deviation, on the scale of [0, 1]."""
        return replace(self, mean=tuple(mean), std=tuple(std))


def load_images(
    source: str | PathLike[str] | Sequence[str | PathLike[str]] | None = None,
    *,
    size: int | tuple[int, int],
    num_images: int = 50,
    seed: int = 0,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
) -> ImageSet:
    """Choose images and check that they can be read.

    From a folder, files are drawn at random and spread evenly over its sub-folders (one per class in the usual
    layout, see `files_in`); a file that cannot be used is replaced by another and named in `skipped`. Every image is
    resized to `size` bicubically, without keeping its aspect ratio, after the rotation that its EXIF data asks for;
    grey, CMYK and 16-bit images become 8-bit RGB, transparent ones are laid on white, and floats are not used.

    Args:
        source: A folder, a list of files, or None for generated dead-leaves images.
        size: Height and width in pixels; one number for a square.
        num_images: How many to draw from a folder or to generate; fewer if there are fewer. A list is used whole.
        seed: Of the draw or of the generator.
        mean: Per channel, subtracted from values in [0, 1].
        std: Per channel, divided by.

    Raises:
        FileNotFoundError: If `source` does not exist.
        ValueError: If a value is out of range, or no image can be used.
    """
    size = (size, size) if isinstance(size, int) else size
    if min(size) < 1:
        raise ValueError(f"size={size}: expected positive numbers of pixels")
    if num_images < 1:
        raise ValueError(f"num_images={num_images}: expected at least 1")
    check_normalization(mean, std)
    common = {"size": size, "seed": seed, "mean": tuple(mean), "std": tuple(std)}
    if source is None:
        names = tuple(f"dead-leaves-{seed}-{index:04d}" for index in range(num_images))
        hashes = tuple(hashlib.sha256(f"{name} {size}".encode()).hexdigest() for name in names)
        return ImageSet(source=GENERATED, names=names, hashes=hashes, **common)  # type: ignore[arg-type]
    root: Path | None
    if isinstance(source, (str, PathLike)):
        root = Path(source)
        if not root.exists():
            raise FileNotFoundError(f"images={str(root)!r}: no such folder")
        if not root.is_dir():
            raise ValueError(f"images={str(root)!r}: expected a folder; pass files as a list")
        candidates, wanted = _draw(root, seed), num_images
    else:
        root, candidates = None, [Path(file) for file in source]
        wanted = len(candidates)
    used: list[Path] = []
    hashes_used: list[str] = []
    skipped: list[tuple[str, str]] = []
    for path in candidates:
        if len(used) == wanted:
            break
        name = printable(path.relative_to(root) if root else path)
        try:
            read_rgb(path)
            hashes_used.append(hashlib.sha256(path.read_bytes()).hexdigest())
            used.append(path)
        except ImageError as error:
            skipped.append((name, str(error)))
    if not used:
        detail = f"; {skipped[0][0]}: {skipped[0][1]}" if skipped else ""
        raise ValueError(f"images={str(source)!r}: none of {len(candidates)} files is a usable image{detail}")
    return ImageSet(
        source=printable(source) if isinstance(source, (str, PathLike)) else "list of files",
        names=tuple(printable(path.relative_to(root) if root else path) for path in used),
        hashes=tuple(hashes_used),
        skipped=tuple(skipped),
        paths=tuple(used),
        **common,  # type: ignore[arg-type]
    )


def _draw(root: Path, seed: int) -> list[Path]:
    """All files under `root` in an order that takes one of each sub-folder in turn, both orders random."""
    generator = random.Random(seed)
    folders: dict[Path, list[Path]] = {}
    for path in files_in(root):
        folders.setdefault(path.parent, []).append(path)
    queues = list(folders.values())
    generator.shuffle(queues)
    for queue in queues:
        generator.shuffle(queue)
    rounds = max((len(queue) for queue in queues), default=0)
    return [queue[turn] for turn in range(rounds) for queue in queues if turn < len(queue)]
