"""Images as a user gives them: paths, pictures, arrays, tensors."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from analysis.images.addresses import WebImage, is_address
from analysis.images.files import ImageError, as_rgb, find_images, read_rgb
from analysis.images.preparing import Transform
from analysis.images.sets import ImageSet
from analysis.runs.texts import printable

Picture = str | PathLike[str] | WebImage | Image.Image | NDArray[np.uint8] | Tensor
Images = Picture | Sequence[Picture] | ImageSet
"""Files, folders and patterns (`find_images`); addresses of the web (`http://`, `https://`), which are fetched;
pictures of Pillow; pixels as uint8, in arrays of shape (H, W, 3) or (N, H, W, 3) or in tensors of shape (3, H, W) or
(N, 3, H, W); tensors of floating point of shape (C, H, W) or (N, C, H, W), which are normalised already; or an
`ImageSet`, which brings its own normalisation."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """Images that become a network's input one by one.

    Args:
        names: Of the images; of files their paths.
        items: Paths, pictures, pixels, or normalised tensors.
        transform: From a picture to the input; None where the items are normalised already.
    """

    names: tuple[str, ...]
    items: Sequence[Any]
    transform: Transform | None = None

    def __len__(self) -> int:
        return len(self.names)

    def load(self, index: int) -> Tensor:
        """One input, shape (C, H, W).

        Raises:
            ImageError: If a file cannot be used.
        """
        item = self.items[index]
        if self.transform is None:
            tensor: Tensor = item
            return tensor
        if isinstance(item, Path):
            return self.transform(read_rgb(item))
        if isinstance(item, WebImage):
            return self.transform(item.image)
        if isinstance(item, Tensor):
            item = item.permute(1, 2, 0).cpu().numpy()
        return self.transform(as_rgb(item if isinstance(item, Image.Image) else Image.fromarray(item)))

    def first(self) -> Tensor:
        """The first input that can be had.

        Raises:
            ValueError: If there is none.
        """
        reason = ""
        for index in range(len(self)):
            try:
                return self.load(index)
            except ImageError as error:
                reason = reason or f"{self.names[index]}: {error}"
        raise ValueError(f"images: none of {len(self)} files is a usable image; {reason}")

    def hashes(self) -> tuple[str, ...]:
        """SHA-256 of each image, in hexadecimal; of a file of its name, size and time of change."""
        if isinstance(self.items, ImageSet):
            return self.items.hashes
        return tuple(hashlib.sha256(_content(item)).hexdigest() for item in self.items)


def _content(item: Any) -> bytes:
    if isinstance(item, Path):
        state = item.stat() if item.exists() else None
        return f"{printable(item)} {state and (state.st_size, state.st_mtime_ns)}".encode()
    if isinstance(item, Tensor):
        return item.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    if isinstance(item, WebImage):
        return item.image.tobytes()
    return item.tobytes()  # type: ignore[no-any-return]


def as_inputs(images: Images, transform: Transform) -> Inputs:
    """Whatever a user gives, as inputs.

    Raises:
        FileNotFoundError: If a source does not exist or matches no file.
        ValueError: If it is nothing of the kind, there is no image, or one cannot be fetched.
    """
    if isinstance(images, ImageSet):
        return Inputs(images.names, images)
    single = isinstance(images, (str, PathLike, WebImage, Image.Image)) or getattr(images, "ndim", 4) < 4
    if not single and not isinstance(images, (Sequence, np.ndarray, Tensor)):
        raise ValueError(f"images: expected {_EXPECTED}, not {_described(images)}")
    given: list[Any] = [images] if single else list(images)  # type: ignore[arg-type]
    if not given:
        raise ValueError("images: expected at least one")
    if all(isinstance(item, (str, PathLike, WebImage)) for item in given):
        items: dict[Any, Path | WebImage] = {}  # each once, in order
        for from_web, group in groupby(given, lambda item: isinstance(item, WebImage) or is_address(item)):
            if from_web:
                pictures = [item if isinstance(item, WebImage) else WebImage.fetch(item) for item in group]
                items |= {picture.address: picture for picture in pictures}
            else:
                items |= {(file.parent.resolve(), file.name): file for file in find_images(list(group))}
        found = tuple(items.values())
        return Inputs(tuple(i.address if isinstance(i, WebImage) else printable(i) for i in found), found, transform)
    names = tuple(f"image-{index}" for index in range(len(given)))
    if all(isinstance(item, Tensor) and item.is_floating_point() and item.ndim == 3 for item in given):
        return Inputs(names, given)
    for item in given:
        if not isinstance(item, Image.Image) and not _is_pixels(item):
            raise ValueError(f"images: expected {_EXPECTED}, not {_described(item)}")
    return Inputs(names, given, transform)


_EXPECTED = (
    "paths, PIL images, uint8 pixels (arrays of shape (H, W, 3) or tensors of shape (3, H, W)), or normalised tensors "
    "of floating point of shape (C, H, W), all of one kind"
)


def _is_pixels(item: Any) -> bool:
    if isinstance(item, Tensor):
        return item.dtype == torch.uint8 and item.ndim == 3 and len(item) == 3
    return isinstance(item, np.ndarray) and item.dtype == np.uint8 and item.ndim == 3 and item.shape[2] == 3


def _described(item: Any) -> str:
    if isinstance(item, (Tensor, np.ndarray)):
        return f"{item.dtype} of shape {tuple(item.shape)}"
    return type(item).__name__
