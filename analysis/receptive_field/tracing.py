"""Following the theoretical receptive field through the operations of a forward pass."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


@dataclass(frozen=True)
class AxisField:
    """Receptive field of the units along one image axis, in input pixels.

    Unit i is centred on pixel `start + i * stride` and reaches from pixel `low + i * stride` to pixel
    `high + i * stride`, the padding outside the image included; the extremes are infinite after a global operation.
    """

    stride: float = 1.0
    start: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @property
    def size(self) -> float:
        """Number of pixels a unit sees; infinite if it sees the whole image."""
        return self.high - self.low + 1

    def window(self, kernel: int, stride: int, padding: int, dilation: int) -> "AxisField":
        """After a convolution or pooling window."""
        first, last = -padding * self.stride, (dilation * (kernel - 1) - padding) * self.stride
        return AxisField(
            stride=self.stride * stride,
            start=self.start + (first + last) / 2,
            low=self.low + first,
            high=self.high + last,
        )

    def upsampled(self, factor: float, reach: float) -> "AxisField":
        """After a resize by `factor` that mixes units up to `reach` input cells away (0 for nearest)."""
        stride = self.stride / factor
        shift = (stride - self.stride) / 2
        margin = self.stride * (0.5 + reach) - stride / 2
        return AxisField(stride, self.start + shift, self.low + shift - margin, self.high + shift + margin)

    def everywhere(self) -> "AxisField":
        """After an operation that mixes all positions."""
        return replace(self, low=-math.inf, high=math.inf)

    def union(self, other: "AxisField") -> "AxisField":
        """Of a sum or a concatenation; the centre is that of the branch that sees more."""
        wider = self if self.size >= other.size else other
        if math.isinf(wider.size):  # a globally computed gate does not move the centre of what it gates
            wider = other if math.isinf(self.size) else self
        return replace(wider, low=min(self.low, other.low), high=max(self.high, other.high))


@dataclass(frozen=True)
class _Field:
    """Receptive field of a traced tensor: the two image axes and the dimensions they lie on."""

    axes: tuple[AxisField, AxisField]
    dims: tuple[int, int]
    rows: tuple[int, ...] | None = None
    """Leading shape that was flattened into dimension 0, as a linear layer on (N, H, W, C) does."""


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fields: dict[int, _Field] = {id(image): _Field((AxisField(), AxisField()), (2, 3))}
        self.alive: list[Any] = [image]  # an id stays unique only while its tensor lives
        self.stopped_at = ""

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [tensor for tensor in _tensors((*args, *(kwargs or {}).values())) if id(tensor) in self.fields]
        if inputs:
            name = func.overloadpacket.__name__
            rule = _RULES.get(name.removesuffix("_") if name.endswith("_") else name)
            if rule is None and torch.Tag.pointwise in func.tags:
                rule = _pointwise
            outputs = _tensors((result,))
            fields = None
            if rule is not None:
                fields = rule(_Call(args, dict(kwargs or {}), outputs, inputs, self.fields))
            if fields is None:
                self.stopped_at = self.stopped_at or name
            else:
                self.fields.update({id(output): fields for output in outputs})
            self.alive.extend(outputs)
        return result


def _tensors(values: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif isinstance(value, (tuple, list)):
            found.extend(_tensors(value))
    return found


@dataclass(frozen=True)
class _Call:
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    outputs: list[Tensor]
    inputs: list[Tensor]
    fields: dict[int, _Field]

    @property
    def output(self) -> Tensor:
        return self.outputs[0]

    @property
    def input(self) -> _Field:
        return self.fields[id(self.inputs[0])]

    def arg(self, position: int, default: Any = None) -> Any:
        return self.args[position] if position < len(self.args) else default


_Rule = Callable[[_Call], _Field | None]


def _pair(value: Any, default: int = 1) -> tuple[int, int]:
    values = [value] if isinstance(value, int) else list(value or [])
    if not values:
        return default, default
    return int(values[0]), int(values[-1])


def _windowed(
    field: _Field, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int], dilation: tuple[int, int]
) -> _Field:
    axes = [axis.window(*numbers) for axis, *numbers in zip(field.axes, kernel, stride, padding, dilation, strict=True)]
    return replace(field, axes=(axes[0], axes[1]))


def _convolution(call: _Call) -> _Field | None:
    weight, transposed = call.arg(1), call.arg(6)
    if transposed or call.input.dims != (2, 3) or call.args[0] is not call.inputs[0] or weight.ndim != 4:
        return None
    kernel = (weight.shape[2], weight.shape[3])
    return _windowed(call.input, kernel, _pair(call.arg(3)), _pair(call.arg(4)), _pair(call.arg(5)))


def _pooling(call: _Call) -> _Field | None:
    field = call.input
    if field.dims != (call.inputs[0].ndim - 2, call.inputs[0].ndim - 1):
        return None
    kernel = _pair(call.arg(1))
    stride = _pair(call.arg(2)) if call.arg(2) else kernel
    return _windowed(field, kernel, stride, _pair(call.arg(3), 0), (1, 1))


def _max_pooling(call: _Call) -> _Field | None:
    if _pair(call.arg(4)) != (1, 1):
        return None
    return _pooling(call)


def _padding(call: _Call) -> _Field | None:
    field, ndim = call.input, call.inputs[0].ndim
    before = {ndim - 1 - index: amount for index, amount in enumerate(call.arg(1)[::2])}
    axes = []
    for axis, dim in zip(field.axes, field.dims, strict=True):
        shift = -before.get(dim, 0) * axis.stride
        axes.append(replace(axis, start=axis.start + shift, low=axis.low + shift, high=axis.high + shift))
    return replace(field, axes=(axes[0], axes[1]))


def _pointwise(call: _Call) -> _Field | None:
    """Elementwise in its operands, which may broadcast: a 1x1 gate joins a map."""
    joined: _Field | None = None
    ndim = call.output.ndim
    for tensor in sorted(call.inputs, key=lambda tensor: -tensor.numel()):
        field = call.fields[id(tensor)]
        field = replace(field, dims=(field.dims[0] + ndim - tensor.ndim, field.dims[1] + ndim - tensor.ndim))
        if joined is None:
            joined = field
        elif field.dims != joined.dims or field.rows != joined.rows:
            return None
        else:
            axes = [a.union(b) for a, b in zip(joined.axes, field.axes, strict=True)]
            joined = replace(joined, axes=(axes[0], axes[1]))
    return joined


def _same(call: _Call) -> _Field | None:
    return call.input


def _reduction(call: _Call) -> _Field | None:
    ndim = call.inputs[0].ndim
    dims = {dim % ndim for dim in (call.arg(1) or range(ndim))}
    field, kept = call.input, bool(call.arg(2, call.kwargs.get("keepdim", False)))
    if field.rows is not None or (not kept and dims & {*range(max(field.dims) + 1)}):
        return None  # the image axes would move or vanish
    axes = [axis.everywhere() if dim in dims else axis for axis, dim in zip(field.axes, field.dims, strict=True)]
    return replace(field, axes=(axes[0], axes[1]))


def _adaptive_pooling(call: _Call) -> _Field | None:
    field, (before, after) = call.input, (call.inputs[0].shape[-2:], call.output.shape[-2:])
    if before == after:
        return field
    if tuple(after) != (1, 1):
        return None
    return replace(field, axes=(field.axes[0].everywhere(), field.axes[1].everywhere()))


def _layer_norm(call: _Call) -> _Field | None:
    normalised = call.inputs[0].ndim - len(call.arg(1))
    return call.input if call.input.rows is not None or max(call.input.dims) < normalised else None


def _batch_norm(call: _Call) -> _Field | None:
    """Pointwise with running statistics; computed over the map otherwise, as an instance norm does."""
    return _group_norm(call) if any(argument is True for argument in call.args) else call.input


def _group_norm(call: _Call) -> _Field | None:
    field = call.input
    return replace(field, axes=(field.axes[0].everywhere(), field.axes[1].everywhere()))


def _permute(call: _Call) -> _Field | None:
    if call.input.rows is not None:
        return None
    order = [dim % call.inputs[0].ndim for dim in call.arg(1)]
    dims = [order.index(dim) for dim in call.input.dims]
    return replace(call.input, dims=(dims[0], dims[1]))


def _transpose(call: _Call) -> _Field | None:
    if call.input.rows is not None:
        return None
    first, second = (call.arg(position) % call.inputs[0].ndim for position in (1, 2))
    moved = {first: second, second: first}
    dims = [moved.get(dim, dim) for dim in call.input.dims]
    return replace(call.input, dims=(dims[0], dims[1]))


def _view(call: _Call) -> _Field | None:
    field, before, after = call.input, tuple(call.inputs[0].shape), tuple(call.output.shape)
    if field.rows is None and before == after:
        return field
    if field.rows is None and field.dims == (1, 2) and len(after) == 2 and after[1] == before[-1]:
        return replace(field, rows=before[:-1])
    if field.rows is not None and after[:-1] == field.rows:
        return replace(field, rows=None)
    return None


def _linear(call: _Call) -> _Field | None:
    """A matrix product on the last dimension."""
    field = call.input
    if len(call.inputs) != 1 or call.inputs[0].ndim < 2 or max(field.dims) == call.inputs[0].ndim - 1:
        return None
    is_left = call.inputs[0] is next(tensor for tensor in call.args if isinstance(tensor, Tensor) and tensor.ndim > 1)
    return field if is_left and (field.rows is not None or call.inputs[0].ndim == 4) else None


def _resize(bilinear: bool) -> _Rule:
    def rule(call: _Call) -> _Field | None:
        field, before, after = call.input, call.inputs[0].shape[-2:], call.output.shape[-2:]
        shrinks = after[0] < before[0] or after[1] < before[1]
        if shrinks or call.kwargs.get("align_corners", bilinear and call.arg(2)):
            return None
        axes = [
            axis.upsampled(new / old, 1.0 if bilinear else 0.0)
            for axis, old, new in zip(field.axes, before, after, strict=True)
        ]
        return replace(field, axes=(axes[0], axes[1]))

    return rule


def _cat(call: _Call) -> _Field | None:
    dim = call.arg(1, 0) % call.output.ndim
    if len(call.inputs) != len(call.args[0]) or dim in call.input.dims:
        return None
    return _pointwise(call)


def _along_other_dims(position: int, default: int = 0) -> _Rule:
    def rule(call: _Call) -> _Field | None:
        dim = call.arg(position, call.kwargs.get("dim", default)) % call.inputs[0].ndim
        if dim in call.input.dims and call.output.shape != call.inputs[0].shape:
            return None
        return call.input

    return rule


_RULES: dict[str, _Rule] = {
    "convolution": _convolution,
    "max_pool2d_with_indices": _max_pooling,
    "avg_pool2d": _pooling,
    "_adaptive_avg_pool2d": _adaptive_pooling,
    "adaptive_max_pool2d": _adaptive_pooling,
    "mean": _reduction,
    "sum": _reduction,
    "amax": _reduction,
    "constant_pad_nd": _padding,
    "reflection_pad2d": _padding,
    "replication_pad2d": _padding,
    "upsample_nearest2d": _resize(bilinear=False),
    "upsample_bilinear2d": _resize(bilinear=True),
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _pointwise,
    "_native_batch_norm_legit": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    "permute": _permute,
    "transpose": _transpose,
    "view": _view,
    "_unsafe_view": _view,
    "_reshape_alias": _view,
    "mm": _linear,
    "addmm": _linear,
    "cat": _cat,
    "split": _along_other_dims(2),
    "split_with_sizes": _along_other_dims(2),
    "slice": _along_other_dims(1),
    "alias": _same,
    "detach": _same,
    "_to_copy": _same,
    "clone": _same,
}
