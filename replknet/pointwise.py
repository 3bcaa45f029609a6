"""1x1 convolutions on a CPU that multiply by weights packed once, where the weights are not trained.

oneDNN's matrix product works on weights in a blocked layout. `conv2d` brings them there in every call; here they stay
there between calls, in inference and where only the gradient for the input is wanted (an effective receptive field).
Several layers are computed together, some pixels at a time, so that what lies between them need not leave the cache.
The operators are those of PyTorch's own inference compiler; they have no gradients of their own.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function

from replknet.inference import PackedWeight, is_plain_layer
from replknet.layout import owned, with_layout

_ACTIVATIONS = {nn.Identity: ("none", ""), nn.ReLU: ("relu", ""), nn.GELU: ("gelu", "none")}
_PART_BYTES = 16 * 2**20
"""Of the widest map between two layers, for the pixels that are computed together."""


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution; its `state_dict` is that of `nn.Conv2d(in_channels, out_channels, 1)`."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)
        self._packed = PackedWeight()
        self._packed_transposed = PackedWeight()

    def fuses(self, activation: nn.Module) -> bool:
        """Whether `pointwise` can compute this layer and the activation after it, in a plain call."""
        known = type(activation) in _ACTIVATIONS and getattr(activation, "approximate", "none") == "none"
        return known and is_plain_layer(self) and not (torch.is_grad_enabled() and self._is_trained())

    def _is_trained(self) -> bool:
        bias = self.bias
        return self.weight.requires_grad or (bias is not None and bias.requires_grad)

    def multiply(self, rows: Tensor, activation: nn.Module) -> Tensor:
        """The layer and an activation for pixels (number, in_channels); not differentiable."""
        name, algorithm = _ACTIVATIONS[type(activation)]
        weight = self._packed.packed(self.weight, lambda weight: _pack(weight.flatten(1)))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, self.bias, name, [], algorithm)
        return out

    def multiply_transposed(self, rows: Tensor) -> Tensor:
        """The gradient for the layer's input from that for its output, (number, out_channels); not differentiable."""
        weight = self._packed_transposed.packed(self.weight, lambda weight: _pack(weight.flatten(1).t().contiguous()))
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
        return out


Layers = Sequence[tuple[PointwiseConv2d, nn.Module]]
"""1x1 convolutions, each with the activation after it."""


def pointwise(x: Tensor, layers: Layers, residual: Tensor | None = None) -> Tensor:
    """1x1 convolutions and their activations, one after the other; every layer must fuse.

    Args:
        x: Maps, shape (N, C, H, W).
        layers: At least one.
        residual: Is added at the end; it may be `x` itself.

    Returns:
        Shape (N, channels of the last layer, H, W), channels_last.
    """
    if not torch.is_grad_enabled() or not (x.requires_grad or (residual is not None and residual.requires_grad)):
        return _forward(x, layers, residual, None)
    out: Tensor = _Pointwise.apply(x, None if residual is x else residual, layers, residual is x)
    return out


def _forward(x: Tensor, layers: Layers, residual: Tensor | None, kept: list[list[Tensor | None]] | None) -> Tensor:
    """The output; `kept` gets, for each part, what the derivatives of the activations are computed from."""
    rows, added = _rows(x), None if residual is None else _rows(residual)

    def compute(part: slice) -> Tensor:
        value, saved = rows[part], list[Tensor | None]()
        for layer, activation in layers:
            if kept is not None and isinstance(activation, nn.GELU):
                saved.append(layer.multiply(value, _NOTHING))
                value = activation(saved[-1])
            else:
                value = layer.multiply(value, activation)
                saved.append(value if isinstance(activation, nn.ReLU) else None)
        if added is not None:
            # In place, unless it is kept; faster than the operator's own fused sum.
            value = value.add_(added[part]) if kept is None or saved[-1] is None else value + added[part]
        if kept is not None:
            kept.append(saved)
        return value

    return _maps(_in_parts(len(rows), layers, compute), x)


def _backward(grad: Tensor, layers: Layers, kept: Sequence[Sequence[Tensor | None]], *, with_residual: bool) -> Tensor:
    """The gradient for the input of `_forward`."""
    rows, parts_kept = _rows(grad), iter(kept)

    def compute(part: slice) -> Tensor:
        value = rows[part]
        for (layer, activation), of_layer in zip(reversed(layers), reversed(next(parts_kept)), strict=True):
            if isinstance(activation, nn.GELU):
                value = torch.ops.aten.gelu_backward(value, of_layer)
            elif isinstance(activation, nn.ReLU):
                value = torch.ops.aten.threshold_backward(value, of_layer, 0)
            value = layer.multiply_transposed(value)
        if with_residual:
            value += rows[part]
        return value

    return _maps(_in_parts(len(rows), layers, compute), grad)


def _in_parts(num_rows: int, layers: Layers, compute: Callable[[slice], Tensor]) -> Tensor:
    """All rows of a matrix, so many at a time that what lies between the layers fits the cache."""
    step = num_rows if len(layers) == 1 else max(64, _PART_BYTES // (4 * layers[0][0].out_channels))
    if num_rows <= step:
        return compute(slice(None))
    out: Tensor | None = None
    for first in range(0, num_rows, step):
        part = slice(first, min(first + step, num_rows))
        value = compute(part)
        if out is None:
            out = value.new_empty(num_rows, value.shape[1])
        out[part] = value
    assert out is not None
    return out


class _Pointwise(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, residual: Tensor | None, layers: Layers, own_residual: bool) -> Tensor:
        ctx.layers, ctx.own_residual, ctx.kept = layers, own_residual, []
        ctx.save_for_backward(x)
        return owned(_forward(x, layers, x if own_residual else residual, ctx.kept))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (x,) = ctx.saved_tensors
        of_x: Tensor | None = None
        if ctx.needs_input_grad[0] and torch.is_grad_enabled():  # this derivative is differentiated in turn
            with torch.enable_grad():
                out = x
                for layer, activation in ctx.layers:
                    out = activation(torch.conv2d(out, layer.weight, layer.bias))
                out = out + x if ctx.own_residual else out
            of_x = torch.autograd.grad(out, x, grad, create_graph=True)[0]
        elif ctx.needs_input_grad[0]:
            of_x = owned(_backward(grad, ctx.layers, ctx.kept, with_residual=ctx.own_residual))
        return of_x, grad if ctx.needs_input_grad[1] else None, None, None


_NOTHING = nn.Identity()


def _pack(matrix: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(matrix)
    return packed


def _rows(x: Tensor) -> Tensor:
    """Maps (N, C, H, W) as a matrix (N * H * W, C): a view of channels_last maps."""
    return with_layout(x, torch.channels_last).permute(0, 2, 3, 1).flatten(0, 2)


def _maps(rows: Tensor, like: Tensor) -> Tensor:
    """The reverse of `_rows`."""
    return rows.view(like.shape[0], *like.shape[2:], -1).permute(0, 3, 1, 2)
