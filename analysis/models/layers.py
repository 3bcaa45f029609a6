"""Catching the feature map of one layer of any module."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

Layout = Literal["nchw", "nhwc", "tokens"]
LAST = "last feature map"
"""Name under which results record that no layer was asked for."""


@runtime_checkable
class FeatureExtractor(Protocol):
    """A model in timm's manner, whose last feature map is its `forward_features`."""

    def forward_features(self, x: Tensor, /) -> Any: ...


class LayerError(ValueError):
    """The requested layer does not exist or has no spatial output."""


def feature_map(model: nn.Module, images: Tensor, layer: str | None = None) -> tuple[str, Tensor]:
    """Run `model` once and return a layer's output.

    Args:
        model: Any module that takes an image batch.
        images: Input, shape (N, C, H, W).
        layer: Name of a submodule, as in `model.named_modules()`. None takes the last feature map: the output of
            `forward_features` where the model has one, else that of the module that is the last to return a map
            larger than 1x1, or tokens that form one.

    Returns:
        The layer's name and its output, still attached to the autograd graph.

    Raises:
        LayerError: If there is no such layer, it is not run, or it does not return a tensor of three or four
            dimensions.
    """
    if layer is not None:
        name, output = layer, _output_of(model, images, layer)
    elif isinstance(model, FeatureExtractor):
        name, output = "forward_features", model.forward_features(images)
    else:
        name, output = _last_spatial_output(model, images)
    if not isinstance(output, Tensor) or output.ndim not in (3, 4):
        what = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise LayerError(f"layer={name!r}: its output ({what}) is no feature map; expected (N, C, H, W) or tokens")
    return name, output


def _output_of(model: nn.Module, images: Tensor, layer: str) -> Any:
    outputs: list[Any] = []

    def keep(name: str, _layer: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        outputs.append(output)

    require_layers(model, [layer])
    with layer_calls(model, keep, lambda name, _: name == layer):
        model(images)
    if not outputs:
        raise LayerError(f"layer={layer!r}: the forward pass does not run this module")
    return outputs[-1]


def _last_spatial_output(model: nn.Module, images: Tensor) -> tuple[str, Tensor]:
    found: list[tuple[str, Tensor]] = []

    def keep(name: str, _layer: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(output, Tensor) and output.ndim in (3, 4):
            with suppress(LayerError):
                _, _, grid = infer_layout(output, (images.shape[2], images.shape[3]), model)
                if grid[0] * grid[1] > 1:
                    found[:] = [(name or "output", output)]

    with layer_calls(model, keep):
        model(images)
    if not found:
        raise LayerError("layer=None: no module returns a feature map; name a layer")
    return found[0]


@contextmanager
def layer_calls(
    model: nn.Module,
    keep: Callable[[str, nn.Module, tuple[Any, ...], Any], None],
    chosen: Callable[[str, nn.Module], bool] = lambda name, module: True,
) -> Iterator[None]:
    """Call `keep` with name, module, inputs and output of every chosen module of a model when it is run.

    Inside TorchScript nothing is seen, which calls no hooks and refuses them.
    """

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
        return lambda module, inputs, output: keep(name, module, inputs, output)

    handles = [
        module.register_forward_hook(hook(name))
        for name, module in model.named_modules()
        if chosen(name, module) and not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


_HEADS = {"classifier", "fc", "head", "heads", "last_linear"}
"""Names under which networks keep the layer that gives class scores."""


def missing_head(model: nn.Module, num_outputs: int) -> str:
    """Why the outputs of a network are no class scores, in words, as far as it says so itself; else empty.

    It says so by `num_classes`, in timm's manner, by an Identity in the place of its head, or, a sequence of layers, by
    a norm of maps as the last one that has weights.
    """
    stated = getattr(model, "num_classes", None)
    if isinstance(stated, int):
        return "" if stated == num_outputs else f"its num_classes is {stated}"
    for name, module in model.named_modules():
        parts = list(module.children()) if _kind(module) == "Sequential" else []
        if name.rpartition(".")[2] in _HEADS and _kind((parts or [module])[-1]) == "Identity":
            return f"its {name} is an Identity"
    weighted = [module for module in model.modules() if list(module.parameters(recurse=False))]
    if isinstance(model, nn.Sequential) and weighted and isinstance(weighted[-1], nn.BatchNorm2d | nn.GroupNorm):
        return f"it ends in a {_kind(weighted[-1])}"
    return ""


def _kind(module: nn.Module) -> str:
    """The name of its class, also in TorchScript."""
    return str(getattr(module, "original_name", type(module).__name__))


def require_layers(model: nn.Module, layers: Sequence[str], also: str = "") -> None:
    """Refuse names that are not those of modules; the message mentions `also` beside some that are.

    Raises:
        LayerError: Naming the first of them.
    """
    names = dict(model.named_modules())
    for layer in layers:
        if layer not in names or layer == "":
            top = ", ".join(name for name in names if name and name.count(".") < 2)
            shown = top if len(top) < 300 else top[:300] + " ..."
            other = f"{also} or " if also else ""
            raise LayerError(f"layer={layer!r}: the model has no such module; expected {other}a name such as {shown}")


@runtime_checkable
class PrefixedTokens(Protocol):
    """A timm transformer, which says how many tokens come before those of the patches."""

    num_prefix_tokens: int


def infer_layout(
    output: Tensor, image_size: tuple[int, int], model: nn.Module | None = None
) -> tuple[Layout, int, tuple[int, int]]:
    """How a feature map is laid out.

    Args:
        output: Shape (N, C, h, w), (N, h, w, C) or (N, prefix + h * w, C).
        image_size: Height and width of the input; a grid of features has the same aspect ratio.
        model: Asked for its number of prefix tokens.

    Returns:
        Layout, number of prefix tokens, and grid (h, w).

    Raises:
        LayerError: If no layout fits.
    """
    if output.ndim == 4:
        shape = tuple(output.shape)
        candidates: list[tuple[Layout, tuple[int, int]]] = [
            ("nchw", (shape[2], shape[3])),
            ("nhwc", (shape[1], shape[2])),
        ]
        fitting = [candidate for candidate in candidates if _same_aspect(candidate[1], image_size)]
        if fitting:
            layout, grid = min(fitting, key=lambda candidate: _aspect_error(candidate[1], image_size))
            return layout, 0, grid
        raise LayerError(f"layout: neither axes 2, 3 nor 1, 2 of {shape} have the aspect ratio of a {image_size} image")
    num_tokens = output.shape[1]
    known = model.num_prefix_tokens if isinstance(model, PrefixedTokens) else None
    for prefix in [known] if isinstance(known, int) else range(min(num_tokens, 9)):
        height = round(((num_tokens - prefix) * image_size[0] / image_size[1]) ** 0.5)
        if height > 0 and (num_tokens - prefix) % height == 0:
            grid = (height, (num_tokens - prefix) // height)
            if _same_aspect(grid, image_size):
                return "tokens", prefix, grid
    raise LayerError(f"layout: {num_tokens} tokens form no grid with the aspect ratio of a {image_size} image")


def _same_aspect(grid: tuple[int, ...], image_size: tuple[int, int]) -> bool:
    """Whether one stride, rounded up or down at the borders, could take the image to the grid."""
    low = max((size / (cells + 1) for size, cells in zip(image_size, grid, strict=True)))
    high = min((size / max(cells - 1, 0.5) for size, cells in zip(image_size, grid, strict=True)))
    return low < high and all(cells <= size for size, cells in zip(image_size, grid, strict=True))


def _aspect_error(grid: tuple[int, int], image_size: tuple[int, int]) -> float:
    return abs(math.log(grid[0] * image_size[1] / (grid[1] * image_size[0])))


def as_nchw(output: Tensor, layout: Layout, prefix_tokens: int, grid: tuple[int, int]) -> Tensor:
    """The feature map as (N, C, h, w), a view of `output`."""
    if layout == "nchw":
        return output
    if layout == "nhwc":
        return output.permute(0, 3, 1, 2)
    tokens = output[:, prefix_tokens:].transpose(1, 2)  # (N, C, h * w)
    return tokens.reshape(*tokens.shape[:2], *grid)


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with every parameter's gradient off; both are restored module by module on leaving."""
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        # Callers may sit inside no_grad or inference_mode, where an input gradient could not be taken.
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
