"""From an image file to the tensor that a network expects."""

from collections.abc import Callable, Sequence

import torch
from PIL import Image
from torch import Tensor

from analysis.images.imagenet import IMAGENET_MEAN, IMAGENET_STD
from analysis.runs.settings import SIDES, Range, check_number

MEANS: Range = (-1e6, 1e6, "three numbers from -1e6 to 1e6")
STANDARD_DEVIATIONS: Range = (1e-12, 1e6, "three numbers from 1e-12 to 1e6")
Transform = Callable[[Image.Image], Tensor]
"""An upright RGB image to a normalised tensor, shape (3, H, W)."""


def evaluation_transform(
    size: int | None,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    crop: float | None = None,
    interpolation: str = "bicubic",
) -> Transform:
    """Resize, centre crop and normalise, as networks are tested.

    Args:
        size: Side of the result in pixels; None for the image's own.
        mean: Per channel, subtracted from values in [0, 1].
        std: Per channel, divided by.
        crop: Part of the short side that the crop keeps: the short side becomes int(size / crop). 1 resizes to a
            square without a crop, whatever the aspect ratio. By default 0.875 below 384 pixels and 1 from there on,
            as RepLKNet is tested.
        interpolation: "bicubic", "bilinear" or another of torchvision's modes.

    Raises:
        ValueError: If a value is out of range.

    References:
        Ding et al. 2022, the official repository's test transform.
    """
    from torchvision import transforms  # not needed by who measures receptive fields

    check_normalization(mean, std)
    resize = [] if size is None else [evaluation_crop(size, crop=crop, interpolation=interpolation)]
    steps = [*resize, transforms.ToTensor()]
    return transforms.Compose([*steps, transforms.Normalize(tuple(mean), tuple(std))])  # type: ignore[no-any-return]


def evaluation_crop(
    size: int, *, crop: float | None = None, interpolation: str = "bicubic"
) -> Callable[[Image.Image], Image.Image]:
    """What `evaluation_transform` does to the image itself.

    Raises:
        ValueError: If a value is out of range.
    """
    from torchvision import transforms

    check_number("size", size, SIDES)
    kept = (0.875 if size < 384 else 1.0) if crop is None else crop
    check_number("crop", kept, (1e-3, 1.0, "a number from 0.001 to 1"))
    known = [mode.value for mode in transforms.InterpolationMode]
    if interpolation not in known:
        raise ValueError(f"interpolation={interpolation!r}: expected one of {', '.join(known)}")
    mode = transforms.InterpolationMode(interpolation)
    resize = [transforms.Resize((size, size), mode)]
    if kept < 1:
        resize = [transforms.Resize(int(size / kept), mode), transforms.CenterCrop(size)]
    return transforms.Compose(resize)  # type: ignore[no-any-return]


def check_normalization(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse what no image can be normalised by.

    Raises:
        ValueError: If the numbers are not three finite ones each, or a standard deviation is not positive.
    """
    for name, numbers, allowed in (("mean", mean, MEANS), ("std", std, STANDARD_DEVIATIONS)):
        if len(numbers) != 3:
            raise ValueError(f"{name}={tuple(numbers)}: expected {allowed[2]}")
        for number in numbers:
            check_number(name, number, allowed, shown=tuple(numbers))


def normalize(pixels: Tensor, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_STD) -> Tensor:
    """Pixels of shape (..., 3, H, W) as a network's input, float32; batches are channels last in memory.

    Args:
        pixels: From 0 to 255 as uint8, or from 0 to 1 in floating point.
        mean: Per channel, subtracted from values in [0, 1].
        std: Per channel, divided by.
    """
    layout = torch.channels_last if pixels.ndim == 4 else torch.preserve_format
    values = pixels.to(torch.float32, memory_format=layout, copy=True)
    if pixels.dtype == torch.uint8:
        values.div_(255)
    return values.sub_(_by_channel(mean, values)).div_(_by_channel(std, values))


def _by_channel(numbers: Sequence[float], values: Tensor) -> Tensor:
    """Filled on the device: to copy them there would make the program wait for a GPU."""
    return torch.stack([values.new_full((1, 1), number) for number in numbers])
