"""What a page asks that is clicked on: the picture that a network gets, its layers, and what one unit sees."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

import replknet
from analysis.images.sets import load_images
from analysis.images.synthetic.drawing import SyntheticOptions
from analysis.images.synthetic.sets import Kind, SyntheticImages
from analysis.models.batches import inputs_for
from analysis.models.layers import LayerError
from analysis.models.layouts import LAST, layer_outputs
from analysis.models.loaded import LoadedModel
from analysis.receptive_field.measuring import effective_receptive_field
from analysis.receptive_field.result import ErfResult
from analysis.receptive_field.theoretical import (
    TheoreticalReceptiveField,
    centred_unit,
    field_of,
    nearest_unit,
    theoretical_receptive_field,
)
from analysis.recognition.prediction import Predictions, predict
from analysis.runs.identity import NetworkIdentity, identify
from analysis.runs.settings import COUNTS, SEEDS, check_number
from analysis.study.posthoc import Variant, apply_variant, kernel_sides

_DOTS = 1
"""In the names of layers that are offered unasked, at most."""


@dataclass(frozen=True, kw_only=True)
class NamedImage:
    """An image to choose: a file, or pixels of shape (H, W, 3)."""

    name: str
    image: Path | NDArray[np.uint8]


def images_to_explore(
    folder: str | PathLike[str] | None, *, num_images: int, size: int, seed: int = 0
) -> tuple[list[NamedImage], tuple[tuple[str, str], ...]]:
    """Images of a folder, drawn as `load_images` draws them, or generated ones: one half congruent, one in conflict.

    Those in conflict are named by shape and texture.

    Args:
        folder: None for generated images.
        num_images: How many, at most.
        size: Side in pixels of generated images.
        seed: Of the draw or the generator.

    Returns:
        The images, and the names of files that could not be used, with the reason.

    Raises:
        FileNotFoundError: If there is no such folder.
        ValueError: If a value is out of range, or no file is a usable image.
    """
    check_number("num_images", num_images, COUNTS)
    check_number("seed", seed, SEEDS)
    if folder is not None:
        chosen = load_images(folder, size=size, num_images=num_images, seed=seed)
        files = zip(chosen.names, chosen.paths, strict=True)
        return [NamedImage(name=name, image=path) for name, path in files], chosen.skipped
    found = []
    kinds: tuple[tuple[Kind, int], ...] = (("congruent", -(-num_images // 2)), ("conflict", num_images // 2))
    for kind, count in kinds:
        made = SyntheticImages(kind=kind, num_images=max(count, 1), seed=seed, options=SyntheticOptions(size=size))
        for index in range(count):
            shape, texture = (made.classes[cue] for cue in made.cues(index))
            name = shape if shape == texture else f"{shape}-{texture}"
            found.append(NamedImage(name=name, image=made[index][0]))
    return found, ()


class Explorer:
    """Networks and images, and what a unit of the one sees in the other.

    A network gets an image as it is prepared for a test, whatever is asked. Networks are never changed: their kernels
    are cropped in copies.

    Args:
        models: The networks, by different names.
        images: To choose from.
        layers: Names of layers that are offered, `LAST` for the last feature map, of all networks or of each by its
            name; by default that and all others that return a map and have at most one dot in their names.
        size: Side of the input in pixels, with RepLKNet's resizing; by default the model's own way.

    Raises:
        LayerError: If a network has no such layer, or none that returns a map.
        ForwardError: If a network cannot take such images.
    """

    def __init__(
        self,
        models: Sequence[LoadedModel],
        images: Sequence[NamedImage],
        *,
        layers: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        size: int | None = None,
    ) -> None:
        self._loaded = {item.name: item for item in models}
        self._images = tuple(images)
        self._size = size
        self._fields: dict[tuple[str, str, tuple[int, int]], TheoreticalReceptiveField] = {}
        self._cropped: dict[str, tuple[int, str, LoadedModel, NetworkIdentity]] = {}
        self._layers = {
            name: self._offered(name, layers.get(name) if isinstance(layers, Mapping) else layers)
            for name in self._loaded
        }

    @property
    def models(self) -> tuple[str, ...]:
        """Names of the networks."""
        return tuple(self._loaded)

    @property
    def images(self) -> tuple[NamedImage, ...]:
        """To choose from."""
        return self._images

    def layers(self, model: str) -> Mapping[str, tuple[int, int]]:
        """The layers of a network that are offered, each with its rows and columns of units."""
        return self._layers[model]

    def kernels(self, model: str) -> range:
        """Sides to which the large kernels of a network can be cropped, the last one the whole; empty for none."""
        module = self._loaded[model].module
        try:
            largest = max(kernel_sides(module)) if isinstance(module, replknet.Network) else 1
        except ValueError:  # a kernel that is no weight of its own
            largest = 1
        return range(1, largest + 1, 2) if largest > 1 else range(0)

    def picture(self, model: str, image: int) -> NDArray[np.uint8]:
        """What a network gets of an image, before it is normalised: shape (H, W, 3)."""
        loaded, inputs = inputs_for(self._loaded[model], [self._images[image].image], self._size)
        values = inputs.load(0).numpy().transpose(1, 2, 0) * np.asarray(loaded.std) + np.asarray(loaded.mean)
        return np.asarray(np.rint(255 * np.clip(values, 0, 1)), dtype=np.uint8)

    def unit(
        self, model: str, layer: str, size: tuple[int, int], pixel: tuple[float, float] | None = None
    ) -> tuple[int, int]:
        """The unit at a pixel: that whose own centre, traced through the network, is nearest to the pixel's.

        Of two units that are equally near, the one further down or right is taken.

        Args:
            model: Name of the network.
            layer: Of `layers`.
            size: Height and width of the picture in pixels.
            pixel: Row and column in the picture, from 0; None for its centre.

        Returns:
            Row and column of the unit.

        Raises:
            ValueError: If the picture has no such pixel.
        """
        field = self._field(model, layer, size)
        if pixel is None:
            return centred_unit(field, size)[0]
        if not all(-0.5 <= at <= side - 0.5 for at, side in zip(pixel, size, strict=True)):
            raise ValueError(f"pixel={pixel}: expected one of a picture of {size[0]}x{size[1]}")
        return nearest_unit(field, size, pixel)[0]

    def field(
        self,
        model: str,
        image: int,
        layer: str = LAST,
        *,
        pixel: tuple[float, float] | None = None,
        kernel: int | None = None,
    ) -> ErfResult:
        """The effective receptive field, by the protocol "standard", of the unit at a pixel on one image.

        Args:
            model: Name of the network.
            image: Number of the image.
            layer: Of `layers`.
            pixel: As of `unit`.
            kernel: Side to which its large kernels are cropped; None leaves them whole.
        """
        loaded, identity = self._variant(model, kernel)
        item = self._images[image].image
        _, inputs = inputs_for(loaded, [item], self._size)
        height, width = inputs.load(0).shape[1:]
        return effective_receptive_field(
            loaded,
            [item],
            layer=None if layer == LAST else layer,
            unit=self.unit(model, layer, (height, width), pixel),
            size=self._size,
            identity=identity,
            batch_size=1,
        )

    def classes(self, model: str, image: int, *, kernel: int | None = None, top: int = 5) -> Predictions:
        """The best classes of one image, as of `predict`; `kernel` as of `field`.

        Raises:
            ValueError: If the network is no classifier.
        """
        loaded, identity = self._variant(model, kernel)
        return predict(loaded, [self._images[image].image], top=top, size=self._size, identity=identity)

    def _variant(self, model: str, kernel: int | None) -> tuple[LoadedModel, NetworkIdentity]:
        """The network, or a copy with cropped kernels; the last copy is kept while the weights stay the same."""
        loaded, sides = self._loaded[model], self.kernels(model)
        identity = identify(loaded.module)
        if kernel is None or (sides and kernel == sides[-1]):
            return loaded, identity
        if kernel not in sides or not isinstance(loaded.module, replknet.Network):
            known = f"an odd number from 1 to {sides[-1]}" if sides else "none: this network has no large kernels"
            raise ValueError(f"kernel={kernel}: expected {known}")
        if self._cropped.get(model, ())[:2] != (kernel, identity.weights):
            module = apply_variant(loaded.module, Variant(kernel=kernel))
            named = replace(loaded, module=module, name=f"{model}, kernels cropped to {kernel}")
            self._cropped[model] = (kernel, identity.weights, named, identify(module))
        return self._cropped[model][2:]

    def _field(self, model: str, layer: str, size: tuple[int, int]) -> TheoreticalReceptiveField:
        """Of the units of a layer; cropped kernels are as large as whole ones, with zeros."""
        key = model, layer, size
        if key not in self._fields:
            name = None if layer == LAST else layer
            self._fields[key] = theoretical_receptive_field(self._loaded[model], size, layer=name)
        return self._fields[key]

    def _offered(self, model: str, layers: Sequence[str] | None) -> dict[str, tuple[int, int]]:
        height, width = self.picture(model, 0).shape[:2]
        size = (height, width)
        if layers is not None:
            return {layer: self._field(model, layer, size).grid for layer in layers}
        loaded = self._loaded[model]
        for output in layer_outputs(loaded.module, size, name=loaded.name):
            if output.kind and output.units is not None and math.prod(output.units.grid) > 1:
                self._fields[model, output.name, size] = field_of(output.units)
        others = [layer for name, layer, _ in self._fields if name == model and layer.count(".") <= _DOTS]
        try:
            self._field(model, LAST, size)
        except LayerError:
            if not others:
                raise
            return {layer: self._fields[model, layer, size].grid for layer in others}
        return {layer: self._fields[model, layer, size].grid for layer in (LAST, *others)}
