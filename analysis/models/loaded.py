"""A model and how its input is prepared."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor, nn

from analysis.images.imagenet import IMAGENET_MEAN, IMAGENET_STD
from analysis.images.preparing import Transform, evaluation_transform
from analysis.models.layers import kind_of
from analysis.runs.results import Shown

DEFAULT_SIZE = 224
OWN = "own initialisation"
"""How the weights of a network that is not trained were made: by the code of the network."""
RANDOM = " (random weights)"
"""At the end of the name of one that is named by its library or architecture."""
DTYPES = ("float32", "float64", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True, repr=False)
class LoadedModel(Shown):
    """A model and how its input is prepared.

    Args:
        name: For tables and figures.
        module: The network, in evaluation mode.
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, divided by.
        input_size: Side in pixels that the model was trained for; None if any.
        crop: Part of the short side that the central crop of a test image keeps, 1 for the whole image resized to a
            square; by default RepLKNet's rule.
        transform: Its own preparation of an image file for a test; None for resizing and that crop.
        classes: Names of its outputs, where they are known and not those of ImageNet-1K.
        published: Accuracies in percent on ImageNet-1K that its publisher reports, "top1" and "top5"; empty if there
            are none.
        training: How it was trained, as `save_network` was told; empty if it is not known.
        initial: How its weights were initialised, if it is not trained; empty if it is.
        fresh: Makes the module anew with its own initialisation, where that is known.
        source: What it was loaded from, as it was named; empty for a module.
        notes: What was decided while loading, for the user to read.
    """

    name: str
    module: nn.Module
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    input_size: int | None = None
    crop: float | None = None
    transform: Transform | None = None
    published: Mapping[str, float] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    initial: str = ""
    fresh: Callable[[], nn.Module] | None = None
    source: str = ""
    notes: tuple[str, ...] = ()

    @property
    def architecture(self) -> str:
        """The name of the network's class."""
        return kind_of(self.module)

    def headline(self) -> dict[str, Any]:
        """Name, kind and size of the network, and what it takes and gives."""
        return {
            "name": self.name,
            "module": self.architecture,
            "parameters": sum(parameter.numel() for parameter in self.module.parameters()),
            "input_size": self.input_size,
            "classes": len(self.classes) or None,
            "published": dict(self.published),
        }

    def to(self, device: str | torch.device, dtype: str = "float32") -> Self:
        """The model on a device, in float32, float64, bfloat16 or float16; its own module is moved.

        Args:
            device: See `resolve_device`.
            dtype: Of weights and images.

        Raises:
            ValueError: If there is no such device here, it has no such numbers, or the dtype is another.
        """
        if dtype not in DTYPES:
            raise ValueError(f"dtype={dtype}: expected one of {', '.join(DTYPES)}")
        place = resolve_device(device)
        if place.type == "mps" and dtype == "float64":
            raise ValueError("dtype=float64: Apple's GPUs (device mps) have no such numbers; device cpu has")
        return replace(self, module=self.module.to(place, getattr(torch, dtype)))

    def preparation(self, size: int | None = None) -> Transform:
        """From an RGB image to the network's input; `size` in pixels replaces the model's own way by RepLKNet's."""
        if size is None and self.transform is not None:
            return self.transform
        side = (self.input_size or DEFAULT_SIZE) if size is None else size
        return evaluation_transform(side, mean=self.mean, std=self.std, crop=self.crop)


def place_of(module: nn.Module) -> Tensor:
    """A tensor of the device and dtype that the network's input must have."""
    floating = (tensor for tensor in (*module.parameters(), *module.buffers()) if tensor.is_floating_point())
    return next(floating, torch.zeros(()))


def resolve_device(device: str | torch.device) -> torch.device:
    """The device of a name.

    Args:
        device: Of PyTorch, or "auto": CUDA where there is a GPU for it, else MPS, else the CPU. "cuda" is the GPU of
            this process, its own one in a process group.

    Raises:
        ValueError: If it is not there, with PyTorch's reason.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        return torch.empty(1, device=device).device
    except (RuntimeError, AssertionError, ImportError) as error:  # each absent backend has its own
        reason = str(error).strip().partition("\n")[0]
        if "Expected one of" in reason:  # some twenty kinds of PyTorch's
            reason = "no such kind; expected auto, cpu, cuda, mps or another of PyTorch's"
        raise ValueError(f"device={device}: cannot be used here ({reason})") from error
