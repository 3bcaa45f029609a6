"""Feature maps: which axes of a layer's output are the image's, and which pixels each of its units could see."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeVar, runtime_checkable

import torch
from torch import Tensor, nn

from analysis.models.fields import AxisField, Part
from analysis.models.layers import (
    FeatureExtractor,
    ForwardError,
    LayerError,
    StagedModel,
    evaluation_mode,
    layer_calls,
    layer_output,
    own_code,
    run,
)
from analysis.models.loaded import place_of
from analysis.models.tracing import Tracer

_Seen = TypeVar("_Seen")
Layout = Literal["nchw", "nhwc", "tokens"]
LAST = "last feature map"
"""Name under which results record that no layer was asked for."""
_DIMS: dict[Layout, tuple[int, int]] = {"nchw": (2, 3), "nhwc": (1, 2), "tokens": (1, 1)}


@runtime_checkable
class PatchModel(Protocol):
    """A transformer in timm's manner, which says how its tokens lie."""

    num_prefix_tokens: int
    patch_embed: Any


@dataclass(frozen=True, kw_only=True)
class FeatureMap:
    """Where the units of a feature map are.

    Args:
        layer: Name of the module that returns it, empty for the model itself; None for `forward_features`.
        layout: Shape (N, C, h, w), (N, h, w, C), or (N, prefix + h * w, C), which may end with further tokens.
        prefix_tokens: Tokens before those of the patches.
        grid: Number of rows and columns of units, (h, w).
        axes: Theoretical receptive fields along rows and columns, with NaN for extremes that are not known; None where
            not even the centres are.
        reason: Why something of that is not known.
    """

    layer: str | None
    layout: Layout
    prefix_tokens: int
    grid: tuple[int, int]
    axes: tuple[AxisField, AxisField] | None
    reason: str = ""

    def of(self, model: nn.Module, images: Tensor, name: str = "") -> Tensor:
        """Run the model: the feature map of images as (N, C, h, w), still attached to the autograd graph.

        Raises:
            LayerError: If the layer now returns something else.
            ForwardError: If the model's code fails.
        """
        return self.as_nchw(_output(model, images, self.layer, name))

    def as_nchw(self, output: Any) -> Tensor:
        """An output of the layer as (N, C, h, w), a view of it."""
        height, width = self.grid
        first = _DIMS[self.layout][0]
        if isinstance(output, Tensor) and output.ndim == (3 if self.layout == "tokens" else 4):
            if self.layout == "tokens" and output.shape[1] >= self.prefix_tokens + height * width:
                tokens = output[:, self.prefix_tokens : self.prefix_tokens + height * width].transpose(1, 2)
                return tokens.reshape(*tokens.shape[:2], height, width)
            if tuple(output.shape[first : first + 2]) == self.grid:
                return output.permute(0, 3, 1, 2) if self.layout == "nhwc" else output
        raise LayerError(f"layer={self.layer!r}: its output ({_described(output)}) is no map of {height}x{width} units")


def find_feature_map(
    model: nn.Module,
    image_size: tuple[int, int],
    layer: str | None = None,
    *,
    grid: tuple[int, int] | None = None,
    prefix_tokens: int | None = None,
    in_channels: int = 3,
    name: str = "",
) -> FeatureMap:
    """Find the units of a layer by following the image through the forward pass.

    The model is run once on PyTorch's meta device, without data. Where it leaves no trace of rows and columns, tokens
    are recognised by the patch size and the number of prefix tokens that a model in timm's manner names, and anything
    else by `grid` alone. What `forward_features` returns in four dimensions, and any such map where the model cannot be
    run without data, go by the image's aspect ratio.

    Args:
        model: Any module that takes an image batch. It is not changed.
        image_size: Height and width of the input in pixels.
        layer: Name of a submodule, as in `model.named_modules()`. None takes the last feature map: the output of
            `forward_features` where the model has one, else that of the module that is the last to return a map
            larger than 1x1.
        grid: Rows and columns of units of this layer, where they are known better.
        prefix_tokens: Tokens before those of the patches, likewise; the rest of the tokens without it.
        in_channels: Channels of the input.
        name: Of the model, for messages.

    Raises:
        LayerError: If there is no such layer, it is not run, or it returns no feature map.
        ForwardError: If the model's code fails.
    """
    if grid is None and prefix_tokens is not None:
        raise ValueError(f"prefix_tokens={prefix_tokens}: needs the grid of the tokens behind them")

    def look(image: Tensor, tracer: Tracer | None, reason: str) -> FeatureMap:
        return _found(model, image, layer, (grid, prefix_tokens), tracer, name=name, reason=reason)

    return _followed(model, image_size, look, in_channels=in_channels, name=name)


@dataclass(frozen=True, kw_only=True)
class LayerOutput:
    """What a layer, or a stage, returns.

    Args:
        name: As in `model.named_modules()`, or "stage 0" and so on.
        kind: The class of the module; empty for a stage.
        shape: Of the tensor that it returns for one image; None for something else.
        units: Where its units are; None where it returns no feature map, or none that is recognised.
    """

    name: str
    kind: str
    shape: tuple[int, ...] | None
    units: FeatureMap | None


def layer_outputs(
    model: nn.Module, image_size: tuple[int, int], *, in_channels: int = 3, name: str = ""
) -> list[LayerOutput]:
    """What every layer that is run returns, in the order in which they end, and then every numbered stage.

    Args:
        model: Any module that takes an image batch. It is not changed.
        image_size: Height and width of the input in pixels.
        in_channels: Channels of the input.
        name: Of the model, for messages.

    Raises:
        ForwardError: If the model's code fails.
    """

    def look(image: Tensor, tracer: Tracer | None, reason: str) -> list[LayerOutput]:
        found: dict[str, LayerOutput] = {}

        def note(layer: str, kind: str, output: Any) -> None:
            units = None
            with suppress(LayerError):
                units = _recognised(model, image, layer, output, (None, None), tracer, reason)
            shape = tuple(output.shape) if isinstance(output, Tensor) else None
            found[layer] = LayerOutput(name=layer, kind=kind, shape=shape, units=units)

        def keep(layer: str, module: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
            found.pop(layer, None)  # the last call counts, as in `layer_output`
            note(layer, type(module).__name__, output)

        with layer_calls(model, keep, lambda layer, _: bool(layer)):
            run(model, image, name)
        if isinstance(model, StagedModel):
            with own_code(model, image, name):
                maps = model.forward_intermediates(image, None)
            for number, stage in enumerate(maps[1] if isinstance(maps, tuple) else maps):
                note(f"stage {number}", "", stage)
        return list(found.values())

    return _followed(model, image_size, look, in_channels=in_channels, name=name)


def _followed(
    model: nn.Module,
    image_size: tuple[int, int],
    look: Callable[[Tensor, Tracer | None, str], _Seen],
    *,
    in_channels: int,
    name: str,
) -> _Seen:
    """What `look` finds with an image that is followed without data, or else without a trace of it."""
    place = place_of(model)
    image = torch.zeros(1, in_channels, *image_size, device="meta", dtype=place.dtype)
    with evaluation_mode(model), torch.no_grad():
        try:
            with own_code(model, image, name), _on_meta(model) as weights, Tracer(image, weights) as tracer:
                return look(image, tracer, "")
        except ForwardError as error:
            # Without data a forward pass that reads values, or makes tensors on another device, cannot run. A real one
            # still gives the grid of units, and raises again whatever is wrong with the model itself.
            reason = f"a forward pass without data ({type(error.__cause__).__name__})"
        return look(torch.zeros_like(image, device=place.device), None, reason)


def _found(
    model: nn.Module,
    image: Tensor,
    layer: str | None,
    asked: tuple[tuple[int, int] | None, int | None],
    tracer: Tracer | None,
    *,
    name: str,
    reason: str = "",
) -> FeatureMap:
    def recognised(layer: str | None, output: Any) -> FeatureMap:
        return _recognised(model, image, layer, output, asked, tracer, reason)

    if layer is not None or isinstance(model, FeatureExtractor):
        return recognised(layer, _output(model, image, layer, name))
    found: list[FeatureMap] = []
    beyond: list[str] = []

    def keep(layer: str, _layer: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        with suppress(LayerError):
            candidate = recognised(layer, output)
            if math.prod(candidate.grid) > 1:
                found[:] = [candidate]
                beyond.clear()
            return
        if tracer is not None and isinstance(output, Tensor) and any(map(_is_lost, tracer.parts(output))):
            beyond.append(layer)

    with layer_calls(model, keep):
        run(model, image, name)
    if not found:
        scripted = any(isinstance(module, torch.jit.ScriptModule) for module in model.modules())
        why = "; TorchScript lets no layer be seen, torch.export (.pt2) does" if scripted else "; name a layer"
        raise LayerError(f"layer=None: no module returns a feature map{why}")
    if beyond:
        raise LayerError(
            f"layer=None: rows and columns of the image are followed to layer {found[0].layer!r}, but not beyond, "
            f"where {beyond[0] or 'the output'!r} may have some; name a layer, and the grid and prefix_tokens if it "
            "needs them"
        )
    return found[0]


def _recognised(
    model: nn.Module,
    image: Tensor,
    layer: str | None,
    output: Any,
    asked: tuple[tuple[int, int] | None, int | None],
    tracer: Tracer | None,
    reason: str,
) -> FeatureMap:
    """The output of a layer as a feature map."""
    where, size = LAST if layer is None else layer, (image.shape[2], image.shape[3])
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        raise LayerError(
            f"layer={where!r}: its output ({_described(output)}) is no feature map; expected (N, C, H, W) or tokens"
        )
    seen = None if tracer is None else _seen(output, tracer.parts(output))
    if asked[0] is not None:
        layout, prefix, grid = _as_asked(output, asked[0], asked[1], seen)
    elif seen is not None:
        layout, prefix, grid = seen
    else:
        layout, prefix, grid = _stated(output, size, model, where, guess=tracer is None or layer is None)
    axes, why = (None, reason) if tracer is None else _joined(tracer.parts(output), layout, prefix, grid, size)
    return FeatureMap(layer=layer, layout=layout, prefix_tokens=prefix, grid=grid, axes=axes, reason=why)


def _is_lost(part: Part) -> bool:
    return part.dims == (None, None) and math.isnan(part.axes[0].low)


def _output(model: nn.Module, images: Tensor, layer: str | None, name: str) -> Any:
    if layer is not None:
        return layer_output(model, images, layer, name)
    with own_code(model, images, name):
        return model.forward_features(images)  # type: ignore[operator]


def _described(output: Any) -> str:
    return f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__


_Placed = tuple[Layout, int, tuple[int, int]]


def _layouts(output: Tensor) -> list[Layout]:
    return ["tokens"] if output.ndim == 3 else ["nchw", "nhwc"]


def _seen(output: Tensor, parts: Sequence[Part]) -> _Placed | None:
    """The layout by the positions that were followed."""
    for layout in _layouts(output):
        for part in parts:
            if part.dims == _DIMS[layout] and all(part.cells):
                return layout, part.offset, part.cells
    return None


def _as_asked(output: Tensor, grid: tuple[int, int], prefix_tokens: int | None, seen: _Placed | None) -> _Placed:
    """As the user says, which must not contradict what was followed."""
    shape = tuple(output.shape)
    units = f"{grid[0]}x{grid[1]}" + ("" if prefix_tokens is None else f" after {prefix_tokens} prefix tokens")
    if seen is not None:
        if seen[2] == grid and prefix_tokens in (None, seen[1]):
            return seen
        raise LayerError(
            f"grid={units}: the image's way through the network shows that the units of this layer are "
            f"{seen[2][0]}x{seen[2][1]} after {seen[1]} prefix tokens"
        )
    for layout in _layouts(output):
        first = _DIMS[layout][0]
        prefix = shape[1] - math.prod(grid) if prefix_tokens is None else prefix_tokens
        if layout == "tokens" and 0 <= prefix <= shape[1] - math.prod(grid):
            return layout, prefix, grid
        if layout != "tokens" and shape[first : first + 2] == grid:
            return layout, 0, grid
    raise LayerError(f"grid={units}: an output of shape {shape} has no such units")


def _stated(output: Tensor, image_size: tuple[int, int], model: nn.Module, layer: str, *, guess: bool) -> _Placed:
    """The layout of tokens by what the model says; with `guess` that of a map by the image's aspect ratio."""
    shape = tuple(output.shape)
    if guess and output.ndim == 4 and shape[0] == 1:
        fitting: list[_Placed] = []
        for layout in _layouts(output):
            first = _DIMS[layout][0]
            grid = (shape[first], shape[first + 1])
            if _same_aspect(grid, image_size):
                fitting.append((layout, 0, grid))
        if fitting:
            return min(fitting, key=lambda found: _aspect_error(found[2], image_size))
    patch = model.patch_embed.patch_size if isinstance(model, PatchModel) else None
    if output.ndim == 3 and isinstance(patch, tuple) and isinstance(model, PatchModel):
        rows, columns = (pixels // side for pixels, side in zip(image_size, patch, strict=True))
        if shape[:2] == (1, model.num_prefix_tokens + rows * columns):
            return "tokens", model.num_prefix_tokens, (rows, columns)
    raise LayerError(
        f"layer={layer!r}: nothing says how its output {shape} lies on a {image_size[0]}x{image_size[1]} image; name "
        "another layer, or its grid and prefix_tokens"
    )


def _same_aspect(grid: tuple[int, int], image_size: tuple[int, int]) -> bool:
    """Whether one stride, rounded up or down at the borders, could take the image to the grid."""
    low = max((size / (cells + 1) for size, cells in zip(image_size, grid, strict=True)))
    high = min((size / max(cells - 1, 0.5) for size, cells in zip(image_size, grid, strict=True)))
    return low < high and all(cells <= size for size, cells in zip(image_size, grid, strict=True))


def _aspect_error(grid: tuple[int, int], image_size: tuple[int, int]) -> float:
    return abs(math.log(grid[0] * image_size[1] / (grid[1] * image_size[0])))


def _joined(
    parts: Sequence[Part], layout: Layout, prefix: int, grid: tuple[int, int], image_size: tuple[int, int]
) -> tuple[tuple[AxisField, AxisField] | None, str]:
    """Fields of the units from all on which they depend, and what is not known of them."""
    if not parts:
        return None, "does not depend on the image"
    own = [part for part in parts if part.dims == _DIMS[layout] and (part.cells, part.offset) == (grid, prefix)]
    axes = [
        own[0].axes[axis] if own else AxisField(size / cells, (size / cells - 1) / 2)
        for axis, (size, cells) in enumerate(zip(image_size, grid, strict=True))
    ]
    reasons = [part.reason for part in parts]
    for part in parts:
        if own and part is own[0]:
            continue
        for axis in (0, 1):
            placed = part.dims[axis] == _DIMS[layout][axis] and part.cells[axis] == grid[axis] and not part.flattened
            aligned = part.dims[axis] is None or placed
            other = part.axes[axis] if aligned else part.axes[axis].unknown()
            known = not math.isnan(other.low)
            axes[axis] = axes[axis].union(other) if known or own else axes[axis].unknown()
            reasons += [] if aligned else ["positions in another order"]
    unknown = any(math.isnan(axis.low) for axis in axes)
    reason = next((reason for reason in reasons if reason), "positions in another order")
    return (axes[0], axes[1]), f"not traced through {reason}" if unknown else ""


@contextmanager
def _on_meta(model: nn.Module) -> Iterator[list[Tensor]]:
    """Replace every parameter and buffer by its shape, which are yielded; the same objects come back on leaving.

    So does all that the forward pass keeps on its modules: anchors, say, and positions of the last image size.
    """
    stores: list[dict[str, Any]] = [
        store for module in model.modules() for store in (module._parameters, module._buffers)
    ]
    saved = [(store, name, tensor) for store in stores for name, tensor in store.items() if tensor is not None]
    kept = [(vars(m), dict(vars(m))) for m in model.modules() if not isinstance(m, torch.jit.ScriptModule)]
    values = [value for _, own in kept for value in own.values()]
    contents = [(value, copy.copy(value)) for value in values if isinstance(value, (list, dict))]
    try:
        for store, name, tensor in saved:
            meta = tensor.detach().to("meta")
            store[name] = nn.Parameter(meta, requires_grad=False) if isinstance(tensor, nn.Parameter) else meta
        yield [*model.parameters(), *model.buffers()]
    finally:
        for own, before in kept:
            own.clear()
            own.update(before)
        for value, content in contents:
            value.clear()
            value.extend(content) if isinstance(value, list) else value.update(content)
        for store, name, tensor in saved:  # those of TorchScript are no dictionaries
            store[name] = tensor
