"""The theoretical receptive field: which input pixels could reach a unit at all, and where its centre lies."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from analysis.models.layers import evaluation_mode, feature_map, infer_layout
from analysis.models.loaded import LoadedModel
from analysis.models.loading import as_loaded
from analysis.receptive_field.tracing import AxisField, Tracer


@dataclass(frozen=True)
class TheoreticalReceptiveField:
    """Result of `theoretical_receptive_field`: one `AxisField` for rows and one for columns, or the reason for none."""

    axes: tuple[AxisField, AxisField] | None
    grid: tuple[int, int]
    reason: str = ""

    @property
    def size(self) -> tuple[float, float] | None:
        """Height and width in pixels, infinite where the whole image is seen; None where not determined."""
        return None if self.axes is None else (self.axes[0].size, self.axes[1].size)


def theoretical_receptive_field(
    model: LoadedModel | nn.Module | str,
    image_size: tuple[int, int],
    *,
    layer: str | None = None,
    in_channels: int = 3,
) -> TheoreticalReceptiveField:
    """Trace the receptive field of a layer through the operations that compute it.

    The model is run once on PyTorch's meta device, without data: convolutions, pooling, padding, resizing, layout
    changes and everything pointwise are followed exactly. Anything else (attention, say) ends the trace, and the result
    says what did.

    Args:
        model: What `load_model` returns or takes, or any module that takes an image batch. It is not changed.
        image_size: Height and width of the input in pixels.
        layer: Name of a submodule; None for the last feature map.
        in_channels: Channels of the input.

    Returns:
        Size, stride and centres of the units, in input pixels.

    Raises:
        LayerError: If there is no such layer or it has no spatial output.

    References:
        Araujo, Norris and Sim 2019, "Computing Receptive Fields of Convolutional Neural Networks", Distill.
    """
    model = as_loaded(model).module
    dtype = next((parameter.dtype for parameter in model.parameters()), torch.float32)
    image = torch.zeros(1, in_channels, *image_size, device="meta", dtype=dtype)
    tracer = Tracer(image)
    with evaluation_mode(model), torch.no_grad():
        try:
            with _on_meta(model), tracer:
                _, output = feature_map(model, image, layer)
        except (RuntimeError, TypeError) as error:
            # Without data a forward pass that reads values, or makes tensors on another device, cannot run. A real one
            # still gives the grid of units, and raises again whatever is wrong with the model itself.
            tracer.stopped_at = f"a forward pass without data ({type(error).__name__})"
            device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
            _, output = feature_map(model, torch.zeros_like(image, device=device), layer)
        layout, _, grid = infer_layout(output, image_size, model)
        field = tracer.fields.get(id(output))
    if field is None or field.rows is not None or layout == "tokens":
        return TheoreticalReceptiveField(None, grid, f"not traced through {tracer.stopped_at or 'tokens'}")
    expected = (2, 3) if layout == "nchw" else (1, 2)
    if field.dims != expected:
        return TheoreticalReceptiveField(None, grid, f"image axes on dimensions {field.dims}")
    return TheoreticalReceptiveField(field.axes, grid)


@contextmanager
def _on_meta(model: nn.Module) -> Iterator[None]:
    """Replace every parameter and buffer by its shape; the same objects come back on leaving."""
    stores: list[dict[str, Any]] = [
        store for module in model.modules() for store in (module._parameters, module._buffers)
    ]
    saved = [(store, name, tensor) for store in stores for name, tensor in store.items() if tensor is not None]
    try:
        for store, name, tensor in saved:
            meta = tensor.detach().to("meta")
            store[name] = nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta
        yield
    finally:
        for store, name, tensor in saved:
            store[name] = tensor


def centred_unit(
    field: TheoreticalReceptiveField, image_size: tuple[int, int]
) -> tuple[tuple[int, int], tuple[float, float]]:
    """The unit nearest to the image centre, and the pixel coordinates of its own centre.

    Of two units that are equally near, the one further down or right is taken, as the official script does.
    """
    centers = unit_centers(field, image_size)
    unit, center = [], []
    for axis, size in zip(centers, image_size, strict=True):
        middle = (size - 1) / 2
        nearest = min(range(len(axis)), key=lambda index: (round(abs(axis[index] - middle), 9), -index))
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
