"""Features of images: vectors before the head, maps of stages, outputs of layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from analysis.images.inputs import Images
from analysis.models.batches import inputs_for, measure_images, split
from analysis.models.layers import LayerError, StagedModel, layer_calls, own_code, require_layers, run
from analysis.models.layouts import FeatureMap, find_feature_map
from analysis.models.loaded import LoadedModel
from analysis.runs.identity import NetworkIdentity
from analysis.runs.results import Shown
from analysis.runs.resuming import Progress, Row
from analysis.runs.writing import replacing

POOLED = "pooled"
"""Name of the vector that enters the last linear layer."""
LAST = "last"
"""Name of the last feature map, of which the receptive field is measured; a layer that is called so comes first."""
_TAKEN = ("images", "model", "file")
"""Names that arrays in an .npz file cannot have: those of the texts in it, and of an argument of `numpy.savez`."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Features(Shown):
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

    def headline(self) -> dict[str, Any]:
        """Model, images, and the shapes of the arrays."""
        shapes = {name: array.shape for name, array in self.arrays.items()}
        return {"model": self.model, "images": len(self.images), "skipped": len(self.skipped), "arrays": shapes}

    def save(self, path: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write an .npz file that `numpy.load` opens: the arrays by name, and `images` and `model` as text.

        Raises:
            FileExistsError: If `path` exists and `overwrite` is false.
        """
        path = Path(path)
        if path.suffix != ".npz":
            raise ValueError(f"path={str(path)!r}: expected a name that ends in .npz")
        if path.exists() and not overwrite:
            raise FileExistsError(f"path={str(path)!r}: exists already; overwrite=True replaces it")
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, images=np.array(self.images), model=np.array(self.model), **self.arrays)  # type: ignore[arg-type]


def extract_features(
    model: LoadedModel | nn.Module | str,
    images: Images,
    stages: Sequence[int | str] = (POOLED,),
    *,
    average: bool = False,
    size: int | None = None,
    batch_size: int = 8,
    num_workers: int = 0,
    identity: NetworkIdentity | None = None,
    partial: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Features:
    """Features of images, all kept in memory.

    Args:
        model: What `load_model` returns or takes, or a module, fed with ImageNet's mean and standard deviation.
        images: Files, folders, patterns, pictures, pixels or normalised tensors; see `analysis.images.inputs.Images`.
        stages: Numbers of stages (networks of `replknet` and timm's models; before the transition to the next stage),
            names of layers as in `model.named_modules()`, "pooled": what enters the last linear layer, or the
            output of a network without one, and "last": the last feature map, of shape (N, C, h, w).
        average: Average maps over their positions, to shape (N, C): over rows and columns, or the tokens of patches.
        size: Side of the input in pixels, with RepLKNet's resizing; by default the model's own preparation.
        batch_size: Images in one forward pass.
        num_workers: Processes that read images; 0 reads them in this one.
        identity: What `identify` says of the module, where that is known already.
        partial: A file that keeps the state of an unfinished run; the same call goes on from there.
        progress: Called with the number of images done and of all, at the start and after each batch.

    Returns:
        `arrays` by name, of which the first axis follows `images`; `save` writes them.

    Raises:
        FileNotFoundError: If a source does not exist.
        LayerError: If there is no such stage or layer, or one to be averaged shows no rows and columns.
        ForwardError: If the model cannot take such images.
        ValueError: If a value is out of range, or no file is a usable image.
    """
    wanted = list(stages)
    if not wanted or len(set(wanted)) < len(wanted) or "" in wanted:
        raise ValueError(f"stages={wanted!r}: expected one or more different stages, layers or {POOLED!r}")
    for name in _TAKEN:
        if name in wanted:
            raise ValueError(
                f"stages={name!r}: no array can have this name, which the .npz file has for something else; expected "
                "other layers, such as one inside that one"
            )
    loaded, inputs = inputs_for(model, images, size)

    maps: dict[tuple[Any, ...], FeatureMap] = {}
    last = LAST in wanted and LAST not in dict(loaded.module.named_modules())

    def units(layer: str | None, batch: Tensor) -> FeatureMap:
        channels, *size = batch.shape[1:]
        key = (layer, *size)
        if key not in maps:
            maps[key] = find_feature_map(
                loaded.module, (size[0], size[1]), layer, in_channels=channels, name=loaded.name
            )
        return maps[key]

    def rows(batch: Tensor) -> list[Row | str]:
        found = _features(loaded, batch, [stage for stage in wanted if stage != LAST or not last])
        if last:
            found[LAST] = units(None, batch).of(loaded.module, batch, loaded.name)
            found = {name: found[name] for name in map(_array_name, wanted)}
        if average and all(value.ndim == 2 for value in found.values()):
            raise ValueError(f"average=True: {', '.join(found)} gives vectors, which have no positions")
        if average:
            for name, value in found.items():
                if value.ndim > 2 and name in wanted and name != POOLED and not (last and name == LAST):
                    value = units(name, batch).as_nchw(value)
                found[name] = value.mean((2, 3)) if value.ndim == 4 else value
        return [
            row if all(np.isfinite(values).all() for values in row.values()) else "the features are not finite"
            for row in split(**found)
        ]

    measured = measure_images(
        loaded,
        inputs,
        rows,
        [wanted, average],
        batch_size=batch_size,
        num_workers=num_workers,
        identity=identity,
        partial=partial,
        progress=progress,
    )
    return Features(
        model=loaded.name,
        images=measured.of_used(inputs.names),
        arrays={name: measured.stacked(name) for name in measured.rows},
        skipped=tuple(measured.skipped),
    )


def _features(loaded: LoadedModel, images: Tensor, wanted: Sequence[int | str]) -> dict[str, Tensor]:
    numbers = sorted(stage for stage in wanted if isinstance(stage, int))
    layers = [stage for stage in wanted if isinstance(stage, str)]
    found: dict[str, Tensor] = {}
    if numbers:
        found |= _stage_maps(loaded, images, numbers)
    if layers:
        found |= _layer_outputs(loaded, images, layers)
    return {name: found[name] for name in map(_array_name, wanted)}


def _array_name(stage: int | str) -> str:
    return f"stage{stage}" if isinstance(stage, int) else stage


def _stage_maps(loaded: LoadedModel, images: Tensor, numbers: Sequence[int]) -> dict[str, Tensor]:
    module = loaded.module
    if not isinstance(module, StagedModel):
        raise LayerError(f"stages={list(numbers)}: {type(module).__name__} has no numbered stages; name its layers")
    with own_code(module, images, loaded.name):
        try:
            out = module.forward_intermediates(images, list(numbers))
        except (ValueError, AssertionError) as error:  # timm asserts
            raise LayerError(f"stages={list(numbers)}: the model refuses them ({error})") from error
    maps = out[1] if isinstance(out, tuple) else out  # timm returns the last map, too
    return {f"stage{number}": feature for number, feature in zip(numbers, maps, strict=True)}


def _layer_outputs(loaded: LoadedModel, images: Tensor, layers: Sequence[str]) -> dict[str, Tensor]:
    """Outputs of layers, and what enters the last linear layer; without one, what the network returns."""
    named, pooled = [layer for layer in layers if layer != POOLED], POOLED in layers
    module = loaded.module
    found: dict[str, Any] = {}

    def keep(name: str, layer: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if name in named:
            found[name] = output
        if pooled and isinstance(layer, nn.Linear) and inputs and isinstance(inputs[0], Tensor) and inputs[0].ndim == 2:
            found[POOLED] = inputs[0]

    require_layers(module, named, also=POOLED)
    with layer_calls(module, keep, lambda name, layer: name in named or (pooled and isinstance(layer, nn.Linear))):
        output = run(module, images, loaded.name)
    if pooled and POOLED not in found:
        if not isinstance(output, Tensor):
            raise LayerError(
                f"model: {loaded.name} has no last linear layer that gets vectors, and returns "
                f"{type(output).__name__}; name stages or layers in place of {POOLED!r}"
            )
        found[POOLED] = output
    for layer in layers:
        if not isinstance(found.get(layer), Tensor):
            what = f"returns {type(found[layer]).__name__}" if layer in found else "is not run"
            raise LayerError(f"layer={layer!r}: it {what}; expected a layer that returns a tensor")
    return {layer: found[layer] for layer in layers}
