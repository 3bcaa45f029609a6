"""Features of image files: vectors before the head, maps of stages, outputs of layers."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis.images.files import find_images
from analysis.models.layers import LayerError, evaluation_mode
from analysis.models.loaded import LoadedModel
from analysis.models.loading import as_loaded
from analysis.recognition.batches import batches

POOLED = "pooled"
"""Name of the vector that enters the last linear layer."""


@runtime_checkable
class StagedModel(Protocol):
    """A RepLKNet, or a model in timm's manner, whose stages have numbers."""

    def forward_intermediates(self, x: Tensor, indices: Any, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Features:
    """Features of some images.

    Args:
        model: Its name.
        images: The files, in the order of the first axis of every array.
        arrays: By name: "pooled" of shape (N, C), "stage0" and so on of shape (N, C, h, w), layers by their own names.
        skipped: Files that could not be used, with the reason.
    """

    model: str
    images: tuple[str, ...]
    arrays: Mapping[str, NDArray[Any]]
    skipped: tuple[tuple[str, str], ...] = ()

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write an .npz file that `numpy.load` opens: the arrays by name, and `images` and `model` as text.

        Raises:
            FileExistsError: If `path` exists and `overwrite` is false.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"path={str(path)!r}: expected a name that ends in .npz")
        if path.exists() and not overwrite:
            raise FileExistsError(f"path={str(path)!r}: exists already; overwrite (--overwrite) replaces it")
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".new")
        try:
            with temporary.open("wb") as file:
                np.savez(file, images=np.array(self.images), model=np.array(self.model), **self.arrays)  # type: ignore[arg-type]
            os.replace(temporary, path)  # noqa: PTH105
        finally:
            temporary.unlink(missing_ok=True)


def extract_features(
    model: LoadedModel | nn.Module | str,
    images: str | PathLike[str] | Sequence[str | PathLike[str]],
    stages: Sequence[int | str] = (POOLED,),
    *,
    average: bool = False,
    size: int | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Features:
    """Features of image files, all kept in memory.

    Args:
        model: What `load_model` returns or takes, or a module, fed with ImageNet's mean and standard deviation.
        images: Files, folders and patterns; see `find_images`.
        stages: Numbers of stages (RepLKNets and timm's models; before the transition to the next stage), names of
            layers as in `model.named_modules()`, and "pooled": what enters the last linear layer, or the output of a
            network without one.
        average: Average maps over their positions, to shape (N, C).
        size: Side of the input in pixels, with RepLKNet's resizing; by default the model's own preparation.
        batch_size: Images in one forward pass.
        num_workers: Processes that read images; 0 reads them in this one.
        progress: Called with the number of images done and of all.

    Returns:
        `arrays` by name, of which the first axis follows `images`; `save` writes them.

    Raises:
        FileNotFoundError: If a source does not exist.
        LayerError: If there is no such stage or layer.
        ValueError: If a value is out of range, or no file is a usable image.
    """
    loaded = as_loaded(model)
    wanted = list(dict.fromkeys(stages))
    if not wanted:
        raise ValueError(f"stages={stages!r}: expected at least one stage, layer or {POOLED!r}")
    files = find_images(images)
    parts: dict[str, list[NDArray[Any]]] = {}
    used: list[str] = []
    skipped: list[tuple[str, str]] = []
    module, transform = loaded.module, loaded.preparation(size)
    with evaluation_mode(module), torch.no_grad():
        for batch in batches(module, files, transform, batch_size=batch_size, num_workers=num_workers):
            skipped += [(str(files[index]), reason) for index, reason in batch.skipped]
            used += [str(files[index]) for index in batch.indices]
            if batch.images is not None:
                for name, value in _features(module, batch.images, wanted).items():
                    own = value.mean((2, 3)) if average and value.ndim == 4 else value
                    own = own.float() if own.dtype in (torch.bfloat16, torch.float16) else own
                    parts.setdefault(name, []).append(own.cpu().contiguous().numpy())
            if progress is not None:
                progress(len(used) + len(skipped), len(files))
    if not used:
        raise ValueError(f"images: none of {len(files)} files is a usable image; {skipped[0][0]}: {skipped[0][1]}")
    return Features(
        model=loaded.name,
        images=tuple(used),
        arrays={name: np.concatenate(arrays) for name, arrays in parts.items()},
        skipped=tuple(skipped),
    )


def _features(module: nn.Module, images: Tensor, wanted: Sequence[int | str]) -> dict[str, Tensor]:
    numbers = sorted(stage for stage in wanted if isinstance(stage, int))
    layers = [stage for stage in wanted if isinstance(stage, str)]
    found: dict[str, Tensor] = {}
    if numbers:
        found |= _stage_maps(module, images, numbers)
    if layers:
        found |= _layer_outputs(module, images, layers)
    return {name: found[name] for name in (f"stage{s}" if isinstance(s, int) else s for s in wanted)}


def _stage_maps(module: nn.Module, images: Tensor, numbers: Sequence[int]) -> dict[str, Tensor]:
    if not isinstance(module, StagedModel):
        raise LayerError(f"stages={list(numbers)}: {type(module).__name__} has no numbered stages; name its layers")
    try:
        out = module.forward_intermediates(images, list(numbers))
    except (ValueError, AssertionError) as error:  # timm asserts
        raise LayerError(f"stages={list(numbers)}: {error}") from error
    maps = out[1] if isinstance(out, tuple) else out  # timm returns the last map, too
    return {f"stage{number}": feature for number, feature in zip(numbers, maps, strict=True)}


def _layer_outputs(module: nn.Module, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    modules = dict(module.named_modules())
    for layer in layers:
        if layer != POOLED and (layer not in modules or layer == ""):
            top = ", ".join(name for name in modules if name and name.count(".") < 1)
            raise LayerError(
                f"layer={layer!r}: the model has no such module; expected {POOLED} or a name such as {top}"
            )
    found: dict[str, Any] = {}
    with _watching(modules, layers, found):
        output = module(images)
    if POOLED in layers:
        found.setdefault(POOLED, output)
    for layer in layers:
        if not isinstance(found.get(layer), Tensor):
            what = f"returns {type(found[layer]).__name__}" if layer in found else "is not run"
            raise LayerError(f"layer={layer!r}: it {what}; expected a layer that returns a tensor")
    return {layer: found[layer] for layer in layers}


@contextmanager
def _watching(modules: Mapping[str, nn.Module], layers: Sequence[str], found: dict[str, Any]) -> Iterator[None]:
    """Keep the outputs of layers, and what enters the last linear layer, in `found`."""

    def keep_output(name: str) -> Callable[[nn.Module, Any, Any], None]:
        return lambda _module, _inputs, output: found.__setitem__(name, output)

    def keep_input(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim == 2:
            found[POOLED] = inputs[0]

    handles = [modules[name].register_forward_hook(keep_output(name)) for name in layers if name != POOLED]
    if POOLED in layers:
        linear = [module for module in modules.values() if isinstance(module, nn.Linear)]
        handles += [module.register_forward_pre_hook(keep_input) for module in linear]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
