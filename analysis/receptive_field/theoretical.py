"""The theoretical receptive field: which input pixels could reach a unit at all, and where its centre lies."""

import math
from dataclasses import dataclass

from torch import nn

from analysis.models.fields import AxisField
from analysis.models.layouts import FeatureMap, find_feature_map
from analysis.models.loaded import LoadedModel
from analysis.models.loading import as_loaded


@dataclass(frozen=True)
class TheoreticalReceptiveField:
    """Result of `theoretical_receptive_field`: one `AxisField` for rows and one for columns, or the reason for none.

    Where the units' centres could be followed, but not all that they see, the fields have NaN for their extremes.
    """

    axes: tuple[AxisField, AxisField] | None
    grid: tuple[int, int]
    reason: str = ""

    @property
    def size(self) -> tuple[float, float] | None:
        """Height and width in pixels, infinite where the whole image is seen; None where not determined."""
        if self.axes is None or any(math.isnan(axis.size) for axis in self.axes):
            return None
        return self.axes[0].size, self.axes[1].size


def theoretical_receptive_field(
    model: LoadedModel | nn.Module | str,
    image_size: tuple[int, int],
    *,
    layer: str | None = None,
    grid: tuple[int, int] | None = None,
    prefix_tokens: int | None = None,
    in_channels: int = 3,
) -> TheoreticalReceptiveField:
    """Trace the receptive field of a layer through the operations that compute it.

    The model is run once on PyTorch's meta device, without data. Convolutions, pooling, padding, resizing, layout
    changes and everything pointwise are followed exactly; attention, pooling, norms and Fourier transforms over all
    positions see the whole image. After anything else (deformable or neighbourhood attention, say) the extent is not
    known, and the result says what ended the trace: it is never smaller than the truth.

    Args:
        model: What `load_model` returns or takes, or any module that takes an image batch. It is not changed.
        image_size: Height and width of the input in pixels.
        layer: Name of a submodule; None for the last feature map.
        grid: Rows and columns of units, where the layer's output does not show them.
        prefix_tokens: Tokens before those of the patches, likewise.
        in_channels: Channels of the input.

    Returns:
        Size, stride and centres of the units, in input pixels.

    Raises:
        ValueError: If a size or the number of channels is below 1.
        LayerError: If there is no such layer or it has no spatial output.
        ForwardError: If the model cannot take such images.

    References:
        Araujo, Norris and Sim 2019, "Computing Receptive Fields of Convolutional Neural Networks", Distill.
    """
    if min(image_size) < 1 or in_channels < 1:
        raise ValueError(f"image_size={image_size}, in_channels={in_channels}: expected numbers of at least 1")
    loaded = as_loaded(model)
    return field_of(
        find_feature_map(
            loaded.module,
            image_size,
            layer,
            grid=grid,
            prefix_tokens=prefix_tokens,
            in_channels=in_channels,
            name=loaded.name,
        )
    )


def field_of(found: FeatureMap) -> TheoreticalReceptiveField:
    """Of a feature map that was found already."""
    return TheoreticalReceptiveField(found.axes, found.grid, found.reason)


def centred_unit(
    field: TheoreticalReceptiveField, image_size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[float, float]]:
    """The unit nearest to the image centre, and the pixel coordinates of its own centre, as of `nearest_unit`."""
    return nearest_unit(field, image_size, ((image_size[0] - 1) / 2, (image_size[1] - 1) / 2))


def nearest_unit(
    field: TheoreticalReceptiveField, image_size: tuple[int, int], point: tuple[float, float]
) -> tuple[tuple[int, int], tuple[float, float]]:
    """The unit whose own centre is nearest to a point, row and column in pixels, and the coordinates of that centre.

    Of two units that are equally near, the one further down or right is taken, as the official script does.
    """
    unit, center = [], []
    for axis, at in zip(unit_centers(field, image_size), point, strict=True):
        nearest = min(range(len(axis)), key=lambda index: (round(abs(axis[index] - at), 9), -index))
        unit.append(nearest)
        center.append(axis[nearest])
    return (unit[0], unit[1]), (center[0], center[1])


def unit_centers(field: TheoreticalReceptiveField, image_size: tuple[int, int]) -> tuple[list[float], list[float]]:
    """Pixel coordinates of the centres of all rows and all columns of units.

    Where the receptive field could not be traced, the units are taken to share the image evenly.
    """
    centers = []
    for position, (cells, size) in enumerate(zip(field.grid, image_size, strict=True)):
        if field.axes is None:
            centers.append([(cell + 0.5) * size / cells - 0.5 for cell in range(cells)])
        else:
            axis = field.axes[position]
            centers.append([axis.start + cell * axis.stride for cell in range(cells)])
    return centers[0], centers[1]
