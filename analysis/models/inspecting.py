"""What a network is: its layers and stages, what it takes and what it costs."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from analysis.models.complexity import num_macs, num_parameters
from analysis.models.layers import FeatureExtractor, ForwardError, LayerError, evaluation_mode, missing_head, run
from analysis.models.layouts import LayerOutput, find_feature_map, layer_outputs
from analysis.models.loaded import DEFAULT_SIZE, LoadedModel, place_of
from analysis.models.loading import as_loaded
from analysis.runs.results import Shown

_STEP = 32
"""Pixels between sizes that are tried; every usual stride divides it."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ModelDescription(Shown):
    """What a network is.

    Args:
        model: The network, with its preprocessing.
        image_size: Height and width in pixels of what follows.
        layers: What each layer, and each numbered stage, returns for such an image.
        last: Name of the layer of the last feature map, empty for the network itself or its `forward_features`; None if
            none is found.
        taken: Other sides in pixels of square images that were tried, and whether the network takes them.
        num_outputs: Class scores; None if its outputs are none.
        num_parameters: All of them.
        num_macs: Multiply-accumulates for one image; None if they cannot be counted.
    """

    model: LoadedModel
    image_size: tuple[int, int]
    layers: tuple[LayerOutput, ...]
    last: str | None
    taken: Mapping[int, bool]
    num_outputs: int | None
    num_parameters: int
    num_macs: int | None

    def headline(self) -> dict[str, Any]:
        """Name, size, classes and cost."""
        return {
            "name": self.model.name,
            "image_size": self.image_size,
            "layers": len(self.layers),
            "classes": self.num_outputs,
            "parameters": self.num_parameters,
            "macs": self.num_macs,
        }

    @property
    def free_size(self) -> bool:
        """Whether it takes any of the other sizes that were tried."""
        return any(self.taken.values())


def describe_model(model: LoadedModel | nn.Module | str, size: tuple[int, int] | None = None) -> ModelDescription:
    """Layers by name, with the shape of their outputs, stride and theoretical receptive field; sizes, classes, cost.

    Args:
        model: What `load_model` returns or takes, or any module that takes an image batch. It is not changed.
        size: Height and width of the image in pixels; by default the network's own.

    Raises:
        ForwardError: If the model cannot take such images.
    """
    loaded = as_loaded(model)
    own = loaded.input_size or DEFAULT_SIZE
    pixels = size or (own, own)
    layers = layer_outputs(loaded.module, pixels, name=loaded.name)
    last: str | None = ""
    if not isinstance(loaded.module, FeatureExtractor):
        try:
            last = find_feature_map(loaded.module, pixels, name=loaded.name).layer
        except LayerError:
            last = None
    try:
        macs: int | None = num_macs(loaded, pixels)
    except (RuntimeError, ValueError, NotImplementedError):
        macs = None
    side = min(pixels)
    tried = [other for other in (side - _STEP, side + _STEP, 2 * side) if other >= _STEP]
    return ModelDescription(
        model=loaded,
        image_size=pixels,
        layers=tuple(layers),
        last=last,
        taken={other: _takes(loaded, other) for other in tried},
        num_outputs=_num_outputs(loaded, pixels),
        num_parameters=num_parameters(loaded),
        num_macs=macs,
    )


def field_text(layer: LayerOutput) -> str:
    """The theoretical receptive field of a layer in pixels, or why it is not known."""
    units = layer.units
    if units is None:
        return "-"
    if units.axes is None or any(math.isnan(axis.size) for axis in units.axes):
        return units.reason or "not known"
    if any(math.isinf(axis.size) for axis in units.axes):
        return "whole image"
    return "x".join(f"{value:g}" for value in dict.fromkeys(axis.size for axis in units.axes))


def stride_text(layer: LayerOutput) -> str:
    """Distance of the units of a layer in pixels."""
    if layer.units is None or layer.units.axes is None:
        return "-"
    return "x".join(f"{value:g}" for value in dict.fromkeys(axis.stride for axis in layer.units.axes))


def _output(loaded: LoadedModel, size: tuple[int, int]) -> Any:
    place = place_of(loaded.module)
    with evaluation_mode(loaded.module), torch.no_grad():
        return run(loaded.module, torch.zeros(1, 3, *size, device=place.device, dtype=place.dtype), loaded.name)


def _takes(loaded: LoadedModel, side: int) -> bool:
    try:
        _output(loaded, (side, side))
    except ForwardError:
        return False
    return True


def _num_outputs(loaded: LoadedModel, size: tuple[int, int]) -> int | None:
    found = _output(loaded, size)
    if not isinstance(found, Tensor) or found.ndim != 2:
        return None
    count = found.shape[1]
    return None if missing_head(loaded.module, count) and not loaded.classes else count
