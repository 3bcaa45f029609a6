"""The batch of every step, with its augmentation."""

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from timm.data.transforms_factory import transforms_imagenet_train
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from analysis.images.labelled import InMemory, LabelledImages
from analysis.images.shards import TarShards
from analysis.training.recipe import Recipe

_CPU = torch.device("cpu")
_COLOR_JITTER = 0.4
"""Where no RandAugment is asked for; the value of the official training script and of timm."""


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

    @property
    def at_hand(self) -> bool:
        """Whether a batch is made in less time than another process would need to hand it over."""
        return _kept(self.images) and self.recipe.augmentation != "imagenet"

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
        with random_state(_CPU) as seed:
            seed(mix(self.seed, step, "augmentation"))
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

    @property
    def at_hand(self) -> bool:
        """See `TrainingBatches`."""
        return _kept(self._images)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        first = number * self._batch_size
        items = [self._images[index] for index in range(first, min(first + self._batch_size, len(self._images)))]
        pixels = torch.from_numpy(np.stack([item[0] for item in items])).permute(0, 3, 1, 2)
        return pixels, torch.tensor([item[1] for item in items])


def _kept(images: LabelledImages) -> bool:
    return isinstance(images, InMemory) and images.complete


def _small_augmentation(name: str, size: int) -> Callable[[Tensor], Tensor] | None:
    if name == "none":
        return None
    if name == "flip":
        return _flipped
    crop = v2.RandomCrop(size, padding=size // 8, padding_mode="reflect")
    return lambda pixels: crop(_flipped(pixels))


def _flipped(pixels: Tensor) -> Tensor:
    """`v2.RandomHorizontalFlip` with the same draw, which takes a tenth of its time."""
    return pixels.flip(-1) if float(torch.rand(1)) < 0.5 else pixels


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
def seeded(seed: int, device: torch.device = _CPU) -> Iterator[None]:
    """Seeds Python's, NumPy's and PyTorch's generators, and puts back their states at the end."""
    states: tuple[Any, Any] = (random.getstate(), np.random.get_state())  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        with random_state(device) as seed_torch:
            seed_torch(seed)
            yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


@contextmanager
def random_state(device: torch.device) -> Iterator[Callable[[int], None]]:
    """Yields what seeds PyTorch's generators of the CPU and of a device; their states are put back at the end.

    `torch.manual_seed` would seed those of all devices, also of one that is not in use yet.
    """
    others: Any = {"cuda": torch.cuda, "mps": torch.mps}.get(device.type)
    with torch.cuda.device(device) if others is torch.cuda else nullcontext():
        states = [torch.get_rng_state(), others and others.get_rng_state()]

        def seed(value: int) -> None:
            torch.default_generator.manual_seed(value)
            if others is not None:
                others.manual_seed(value)

        try:
            yield seed
        finally:
            torch.set_rng_state(states[0])
            if others is not None:
                others.set_rng_state(states[1])


def mix(*parts: object) -> int:
    """A seed that depends on every part."""
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:7])
