"""Labelled images for training: folders, tar shards, and the batch of every step."""

import hashlib
import io
import json
import os
import random
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import datasets
from torchvision.transforms import v2

from analysis.distributed import by_first
from analysis.images import IMAGENET_MEAN, IMAGENET_STD, ImageError, read_rgb
from analysis.training_recipe import Recipe

Split = Literal["train", "val"]
Preparation = Callable[[Image.Image], Image.Image]
_SPLITS = {"train": ("train",), "val": ("val", "validation", "test")}
_CACHE_BYTES = 2 * 1024**3
_IMAGE_MEMBERS = (".jpg", ".jpeg", ".png", ".webp", ".ppm")
_SHARDS_IN_A_WINDOW = 16
_COLOR_JITTER = 0.4
"""Where no RandAugment is asked for; the value of the official training script and of timm."""


class TrainingError(ValueError):
    """Training that cannot go on, such as a loss that is not finite."""


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
        if not Path(directory).is_dir():
            raise FileNotFoundError(f"data={str(directory)!r}: no such folder")
        found = [Path(directory) / name for name in _SPLITS[split] if (Path(directory) / name).is_dir()]
        if not found:
            raise FileNotFoundError(f"data={str(directory)!r}: holds no folder {' or '.join(_SPLITS[split])}")
        try:
            self._files = datasets.ImageFolder(found[0])
        except FileNotFoundError as error:
            raise FileNotFoundError(f"data={str(found[0])!r}: {error}") from None
        self.size = size
        self._prepare = prepare

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the sub-folders, in alphabetical order."""
        return tuple(self._files.classes)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        path, label = self._files.samples[index]
        try:
            image = read_rgb(Path(path))
        except ImageError as error:
            raise TrainingError(f"data: {path}: {error}") from None
        if self._prepare is not None:
            image = self._prepare(image)
        elif self.size is not None:
            side = min(image.size)
            left, top = (image.width - side) / 2, (image.height - side) / 2
            image = image.resize((self.size, self.size), box=(left, top, left + side, top + side), resample=3)
        return np.array(image), label

    def fingerprint(self) -> str:
        """SHA-256 of names and sizes of the files, in hexadecimal."""
        listing = [(path, os.stat(path).st_size) for path, _ in self._files.samples]  # noqa: PTH116
        root = self._files.root
        text = "\n".join(f"{os.path.relpath(path, root)} {size}" for path, size in listing)
        return hashlib.sha256(f"{self.size}\n{text}".encode()).hexdigest()


class TarShards:
    """The images of one part of a data set in WebDataset's layout, read at random places.

    A shard is a plain tar file. Members with the same name up to the first dot are one sample: an image (.jpg, .jpeg,
    .png, .webp or .ppm) and its class as a number, in text (.cls) or under "label" in a .json. The shards of a part are
    `<part>/*.tar`, or else all `*<part>*.tar`; names of the classes are in `classes.txt`, a line each, or else their
    numbers.

    The headers of all shards are read once, by the first process of a run.

    Args:
        directory: Holds the shards.
        split: "train" or "val" (or "validation" or "test" in their names).
        prepare: Done to each image.

    Raises:
        FileNotFoundError: If there is no shard, or one is missing from a numbered series.
        TrainingError: If a shard is damaged, or a sample lacks its image or its class.

    References:
        https://github.com/webdataset/webdataset
    """

    def __init__(self, directory: str | PathLike[str], split: Split, *, prepare: Preparation | None = None) -> None:
        self._directory = Path(directory)
        self._prepare = prepare
        self.shards, self._samples, self.classes = by_first(lambda: self._read_headers(split))

    def _read_headers(self, split: Split) -> tuple[tuple[Path, ...], NDArray[np.int64], tuple[str, ...]]:
        """The shards; for each image the number of its shard, its first byte, its length, its class; the names."""
        shards = _find_shards(self._directory, split)
        rows = [(number, *sample) for number, shard in enumerate(shards) for sample in _samples_of(shard)]
        samples = np.array(rows, np.int64)
        names = self._directory / "classes.txt"
        num_classes = int(samples[:, 3].max()) + 1
        classes = tuple(map(str, range(num_classes)))
        if names.is_file():
            classes = tuple(line.strip() for line in names.read_text().splitlines() if line.strip())
        if len(classes) < num_classes or samples[:, 3].min() < 0:
            raise TrainingError(f"data={str(names)!r}: names {len(classes)} classes; the shards have {num_classes}")
        return shards, samples, classes

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], int]:
        shard, start, length, label = map(int, self._samples[index])
        path = self.shards[shard]
        try:
            with path.open("rb") as file:
                file.seek(start)
                image = Image.open(io.BytesIO(file.read(length))).convert("RGB")
        except OSError as error:
            raise TrainingError(f"data: {path}: the image at byte {start} cannot be read ({error})") from None
        return np.array(image if self._prepare is None else self._prepare(image)), label

    def order(self, generator: np.random.Generator) -> NDArray[np.intp]:
        """A random order that stays within a few shards at a time, for discs that dislike jumps."""
        windows = np.array_split(generator.permutation(len(self.shards)), -(-len(self.shards) // _SHARDS_IN_A_WINDOW))
        parts = [generator.permutation(np.flatnonzero(np.isin(self._samples[:, 0], window))) for window in windows]
        return np.concatenate(parts)

    def fingerprint(self) -> str:
        """SHA-256 of the names of the shards and of all places in them, in hexadecimal."""
        names = "\n".join(path.name for path in self.shards)
        return hashlib.sha256(names.encode() + self._samples.tobytes()).hexdigest()


def _find_shards(directory: Path, split: Split) -> tuple[Path, ...]:
    if not directory.is_dir():
        raise FileNotFoundError(f"data={str(directory)!r}: no such folder")
    found: list[Path] = []
    for name in _SPLITS[split]:
        found = found or sorted((directory / name).glob("*.tar")) or sorted(directory.glob(f"*{name}*.tar"))
    if not found:
        raise FileNotFoundError(f"data={str(directory)!r}: holds no shards {split}/*.tar or *{split}*.tar")
    numbers = [re.search(r"(\d+)\.tar$", path.name) for path in found]
    if all(numbers):
        present = [int(match[1]) for match in numbers if match]
        missing = sorted(set(range(min(0, *present), max(present) + 1)) - set(present))
        if missing and min(present) == 1:
            missing = missing[1:]  # a series may begin with 1
        if missing:
            raise FileNotFoundError(
                f"data={str(found[0].parent)!r}: shard {missing[0]} is missing ({len(missing)} of {max(present) + 1}); "
                f"expected an unbroken series such as {found[0].name}"
            )
    return tuple(found)


def _samples_of(shard: Path) -> list[tuple[int, int, int]]:
    """First byte, length and class of every image of a shard."""
    images: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                folder, _, base = member.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                key, kind = f"{folder}/{stem}", f".{suffix.lower()}"
                if not member.isfile():
                    continue
                if kind in _IMAGE_MEMBERS:
                    images[key] = (member.offset_data, member.size)
                elif kind in (".cls", ".json"):
                    content = archive.extractfile(member)
                    assert content is not None
                    text = content.read().decode()
                    labels[key] = int(text if kind == ".cls" else json.loads(text)["label"])
    except (OSError, tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise TrainingError(f"data: {shard}: not a shard that can be read ({error})") from None
    alone = sorted(set(images) ^ set(labels))
    if alone or not images:
        what = f"the sample {alone[0]!r} lacks its image or its class" if alone else "holds no image"
        raise TrainingError(f"data: {shard}: {what}; expected an image and .cls or .json of each")
    return [(*images[key], labels[key]) for key in images]


class InMemory:
    """Keeps the images that were asked for, as long as all together fit into two gigabytes."""

    def __init__(self, images: LabelledImages) -> None:
        self._images = images
        self._kept: dict[int, tuple[NDArray[np.uint8], int]] = {}
        self._fits = len(images) * images[0][0].nbytes <= _CACHE_BYTES

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


def normalize(pixels: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Pixels of shape (N, 3, H, W), uint8, as a network's input: float32, channels last in memory."""
    values = pixels.to(torch.float32, memory_format=torch.channels_last).div_(255)
    shift, scale = (torch.tensor(numbers, device=pixels.device).view(-1, 1, 1) for numbers in (mean, std))
    return values.sub_(shift).div_(scale)


# Batches --------------------------------------------------------------------------------------------------------------


class TrainingBatches(Dataset[tuple[Tensor, Tensor]]):
    """The batch of every step: item k follows from the seed and k alone.

    Args:
        images: To draw from; an epoch is a permutation of all, and a batch may reach into the next one.
        recipe: Batch size and augmentation.
        seed: Of order and augmentation.
        part: This process's number and the number of all: the batch is cut into as many equal parts.
    """

    def __init__(self, images: LabelledImages, recipe: Recipe, seed: int, part: tuple[int, int] = (0, 1)) -> None:
        self.images = images
        self.recipe = recipe
        self.seed = seed
        self.part = part

    def __len__(self) -> int:
        return self.recipe.steps

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        count, size = len(self.images), self.recipe.batch_size
        share = size // self.part[1]
        positions = range(step * size, (step + 1) * size)
        own = positions[self.part[0] * share : (self.part[0] + 1) * share]
        orders = {epoch: self._order(epoch, count) for epoch in {position // count for position in own}}
        items = [self.images[int(orders[position // count][position % count])] for position in own]
        if self.recipe.augmentation == "imagenet":
            pixels = [
                _photograph(item[0], self.recipe, mix(self.seed, position, "augmentation"))
                for item, position in zip(items, own, strict=True)
            ]
        else:
            pixels = self._moved([torch.from_numpy(item[0]).permute(2, 0, 1) for item in items], own, positions, step)
        return torch.stack(pixels), torch.tensor([item[1] for item in items])

    def _moved(self, pixels: list[Tensor], own: range, positions: range, step: int) -> list[Tensor]:
        """Flipped and moved by one series of draws for the whole batch, of which other processes have their part."""
        transform = _small_augmentation(self.recipe.augmentation, pixels[0].shape[-1])
        if transform is None:
            return pixels
        placeholder = torch.empty_like(pixels[0])
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(mix(self.seed, step, "augmentation"))
            moved = [
                transform(pixels[position - own.start] if position in own else placeholder)
                for position in positions[: own.stop - positions.start]
            ]
        return moved[-len(own) :]

    def _order(self, epoch: int, count: int) -> NDArray[np.intp]:
        generator = np.random.default_rng((self.seed, epoch))
        if isinstance(self.images, TarShards):
            return self.images.order(generator)
        return generator.permutation(count)


class OrderedBatches(Dataset[tuple[Tensor, Tensor]]):
    """All images in order: item k is the k-th batch."""

    def __init__(self, images: LabelledImages, batch_size: int) -> None:
        self._images, self._batch_size = images, batch_size

    def __len__(self) -> int:
        return -(-len(self._images) // self._batch_size)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        first = number * self._batch_size
        items = [self._images[index] for index in range(first, min(first + self._batch_size, len(self._images)))]
        pixels = torch.from_numpy(np.stack([item[0] for item in items])).permute(0, 3, 1, 2)
        return pixels, torch.tensor([item[1] for item in items])


def _small_augmentation(name: str, size: int) -> Callable[[Tensor], Tensor] | None:
    if name == "none":
        return None
    steps: list[nn.Module] = [v2.RandomHorizontalFlip()]
    if name == "flip-crop":
        steps.append(v2.RandomCrop(size, padding=size // 8, padding_mode="reflect"))
    transform: Callable[[Tensor], Tensor] = v2.Compose(steps)
    return transform


def _photograph(pixels: NDArray[np.uint8], recipe: Recipe, seed: int) -> Tensor:
    """One photograph, augmented, in training size: uint8, shape (3, H, W)."""
    transform = _photographic_augmentation(recipe.image_size, recipe.rand_augment)
    with seeded(seed):
        return transform(Image.fromarray(pixels))


@lru_cache
def _photographic_augmentation(size: int, rand_augment: str) -> Callable[[Image.Image], Tensor]:
    transform: Callable[[Image.Image], Tensor] = transforms_imagenet_train(
        size,
        color_jitter=_COLOR_JITTER,
        auto_augment=rand_augment or None,
        interpolation="bicubic",
        normalize=False,
    )
    for step in transform.transforms:  # type: ignore[attr-defined]
        for operation in getattr(step, "ops", ()):
            if operation.name.startswith("Posterize"):
                operation.aug_fn = _posterize
    return transform


def _posterize(image: Image.Image, bits: int, **_: object) -> Image.Image:
    """As timm does it; at the strongest level, 0 bits, which Pillow refuses from version 13 on, the image is black."""
    return ImageOps.posterize(image, bits) if bits > 0 else Image.new(image.mode, image.size)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds Python's, NumPy's and PyTorch's generators, and puts back their states at the end."""
    states: tuple[Any, Any, Tensor] = (random.getstate(), np.random.get_state(), torch.get_rng_state())  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.manual_seed(seed)
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002
        torch.set_rng_state(states[2])


def mix(*parts: object) -> int:
    """A seed that depends on every part."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7])
