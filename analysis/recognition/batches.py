"""Image files through a network, in batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from analysis.images.files import ImageError, read_rgb
from analysis.images.preparing import Transform
from analysis.models.loaded import place_of

_Item = tuple[int, Tensor | None, str]


@dataclass(frozen=True)
class Batch:
    """Some prepared images.

    Args:
        indices: Which files they are.
        images: Shape (N, 3, H, W); None where no file of the batch could be used.
        skipped: Index and reason of each file that could not be used.
    """

    indices: tuple[int, ...]
    images: Tensor | None
    skipped: tuple[tuple[int, str], ...]


class _Files(Dataset[_Item]):
    def __init__(self, files: Sequence[Path], transform: Transform) -> None:
        self._files, self._transform = files, transform

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> _Item:
        try:
            return index, self._transform(read_rgb(self._files[index])), ""
        except ImageError as error:
            return index, None, str(error)


def _collate(items: Sequence[_Item]) -> Batch:
    used = [(index, image) for index, image, _ in items if image is not None]
    shapes = sorted({tuple(image.shape) for _, image in used})
    if len(shapes) > 1:
        raise ValueError(f"images: the model's preprocessing gives images of different shapes {shapes}; pass a size")
    return Batch(
        indices=tuple(index for index, _ in used),
        images=torch.stack([image for _, image in used]) if used else None,
        skipped=tuple((index, reason) for index, image, reason in items if image is None),
    )


def batches(
    module: nn.Module,
    files: Sequence[Path],
    transform: Transform,
    *,
    batch_size: int,
    num_workers: int = 0,
    start: int = 0,
    turn: tuple[int, int] = (0, 1),
) -> Iterator[Batch]:
    """The files from `start` on, in order, each prepared by `transform`; unusable ones are named in their batch.

    With `turn` = (k, n), of all batches only the k-th of each n.

    Images are on the device and in the dtype of `module`.

    Raises:
        ValueError: If `batch_size` or `num_workers` is out of range.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    if num_workers < 0:
        raise ValueError(f"num_workers={num_workers}: expected 0 or more processes")
    own = [
        list(range(first, min(first + batch_size, len(files))))
        for first in range(start + turn[0] * batch_size, len(files), turn[1] * batch_size)
    ]
    place = place_of(module)
    loader = DataLoader(_Files(files, transform), batch_sampler=own, num_workers=num_workers, collate_fn=_collate)
    for batch in loader:
        images = None if batch.images is None else batch.images.to(place.device, place.dtype)
        yield replace(batch, images=images)
