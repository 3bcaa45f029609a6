"""Images with the number of their class, to train and to be tested on."""

import hashlib
import os
from collections.abc import Callable, Sequence
from os import PathLike
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from analysis.images.files import ImageError, folders_in, images_beside, images_in, read_rgb
from analysis.runs.settings import SIDES, check_number, named_path
from analysis.runs.texts import few, printable

Split = Literal["train", "val"]
Preparation = Callable[[Image.Image], Image.Image]
SPLITS = {"train": ("train",), "val": ("val", "validation", "test")}
_CACHE_BYTES = 2 * 1024**3
_IN_ONE_GO = 64
"""Images that a process makes before it hands them over."""


class DataError(ValueError):
    """Labelled images that cannot be used: damaged, incomplete, or of other classes than the model's; the message says
    what was expected.
    """


class LabelledImages(Protocol):
    """Images with the number of their class."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of their numbers."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        """Pixels of shape (H, W, 3) and the class."""
        ...


class FolderImages:
    """The images of one part of a folder in the usual layout, `<part>/<class>/<file>`.

    Those of a class are in its folder and the sub-folders of that; see `files_in`.

    Args:
        directory: Holds `train` and one of `val`, `validation` and `test`.
        split: "train" or "val".
        size: Resize each image bicubically so that its shorter side is `size`, and take its middle square; None for the
            images as they are.
        prepare: Done to each image instead.

    Raises:
        FileNotFoundError: If a folder is missing, or a class has no image.
    """

    def __init__(
        self,
        directory: str | PathLike[str],
        split: Split,
        *,
        size: int | None = None,
        prepare: Preparation | None = None,
    ) -> None:
        if not named_path(directory, "data").is_dir():
            raise FileNotFoundError(f"data={str(directory)!r}: no such folder")
        if size is not None:
            check_number("size", size, SIDES)
        found = [Path(directory) / name for name in SPLITS[split] if (Path(directory) / name).is_dir()]
        if not found:
            above = Path(directory).resolve()
            meant = f"; {str(above.parent)!r} does" if above.name in SPLITS[split] else ""
            raise FileNotFoundError(f"data={str(directory)!r}: holds no folder {' or '.join(SPLITS[split])}{meant}")
        self._root = found[0]
        self._folders = folders_in(self._root)
        self._samples: list[tuple[str, int]] = []  # a Path takes ten times the memory
        self.skipped = images_beside(self._root)
        """Files that are not used, with the reason: in no folder of a class, or no images by their names."""
        for label, folder in enumerate(self._folders):
            images, others = images_in(folder)
            if not images:
                raise FileNotFoundError(f"data={str(folder)!r}: holds no image of the class")
            self._samples += [(str(file), label) for file in images]
            self.skipped += [(printable(file.relative_to(self._root)), "not an image") for file in others]
        if not self._folders:
            raise FileNotFoundError(f"data={str(self._root)!r}: expected a sub-folder for each class")
        self.size = size
        self._prepare = prepare

    @property
    def source(self) -> str:
        """The folder of the part."""
        return printable(self._root)

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the sub-folders, in alphabetical order."""
        return tuple(printable(folder.name) for folder in self._folders)

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        path, label = self._samples[index]
        try:
            image = read_rgb(Path(path))
        except ImageError as error:
            raise DataError(f"data: {path}: {error}") from None
        if self._prepare is not None:
            image = self._prepare(image)
        elif self.size is not None:
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            image = image.resize((self.size, self.size), box=(left, top, left + side, top + side), resample=3)
        return np.array(image), label

    def fingerprint(self) -> str:
        """SHA-256 of names and sizes of the files, in hexadecimal."""
        listing = [(os.path.relpath(path, self._root), os.stat(path).st_size) for path, _ in self._samples]  # noqa: PTH116
        text = "\n".join(f"{printable(path)} {size}" for path, size in listing)
        return hashlib.sha256(f"{self.size}\n{text}".encode()).hexdigest()


class InMemory:
    """Keeps the images that were asked for, as long as all together fit into two gigabytes."""

    def __init__(self, images: LabelledImages) -> None:
        self._images = images
        self._kept: dict[int, tuple[NDArray[np.uint8], int]] = {}
        self._fits = len(images) * images[0][0].nbytes <= _CACHE_BYTES

    @property
    def complete(self) -> bool:
        """Whether all are kept."""
        return len(self._kept) == len(self._images)

    @property
    def classes(self) -> tuple[str, ...]:
        return self._images.classes

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        item = self._kept.get(index)
        if item is None:
            item = self._images[index]
            if self._fits:
                self._kept[index] = item
        return item

    def store(self, path: Path) -> None:
        """Write all, of one size, where `restore` of another process finds them; nothing if not all are kept."""
        if self.complete:
            items = [self._kept[index] for index in range(len(self))]
            np.save(path.with_suffix(".labels.npy"), np.array([label for _, label in items]))
            np.save(path.with_suffix(".npy"), np.stack([pixels for pixels, _ in items]))

    def restore(self, path: Path) -> None:
        """Keep what `store` wrote, in memory that processes share until one of them writes to it."""
        if path.with_suffix(".npy").exists():
            pixels = np.load(path.with_suffix(".npy"), mmap_mode="c")
            labels = np.load(path.with_suffix(".labels.npy")).tolist()
            self._kept = dict(enumerate(zip(pixels, labels, strict=True)))


def keep_all(sets: Sequence[InMemory], num_workers: int) -> None:
    """Make the images of some sets that fit into memory, in so many processes; with 0, each when it is asked for.

    One that cannot be made is left to whoever asks for it.
    """
    missing = [
        (images, index) for images in sets if images._fits for index in range(len(images)) if index not in images._kept
    ]
    if num_workers == 0 or not missing:
        return
    loader = DataLoader(_Attempts(missing), batch_size=_IN_ONE_GO, num_workers=num_workers, collate_fn=list)
    for (images, index), item in zip(missing, (item for items in loader for item in items), strict=True):
        if item is not None:
            images._kept[index] = item


class _Attempts(Dataset[tuple[NDArray[np.uint8], int] | None]):
    def __init__(self, wanted: Sequence[tuple[InMemory, int]]) -> None:
        self._wanted = wanted

    def __len__(self) -> int:
        return len(self._wanted)

    def __getitem__(self, number: int) -> tuple[NDArray[np.uint8], int] | None:
        images, index = self._wanted[number]
        try:
            return images._images[index]
        except (DataError, OSError):
            return None


def different_classes(one: LabelledImages, other: LabelledImages) -> str:
    """How the classes of two sets differ, in words; empty if they do not."""
    if one.classes == other.classes:
        return ""
    alone = sorted(set(one.classes) ^ set(other.classes))
    detail = f"not in both are {few(alone)}" if alone else "in another order"
    return f"{len(one.classes)} and {len(other.classes)} classes, {detail}"
