"""What each operator of PyTorch does to receptive fields. One that is not here makes its output unknown."""

import math
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from analysis.models.fields import AxisField, Call, Part, Rule, along
from analysis.models.rearranging import (
    joined,
    permuted,
    repeated,
    selected,
    shuffled,
    sliced,
    squeezed,
    unbound,
    unsqueezed,
    untouched,
    viewed,
)


def lost(call: Call) -> Iterable[Part]:
    """Of an operator that is not followed: what depends on the whole image still does, the rest is unknown."""
    return (part.lost(call.name) for _, parts in call.inputs for part in parts)


def _pointwise(call: Call) -> Iterable[Part]:
    """Elementwise in its operands, which may broadcast: a 1x1 gate joins a map."""
    for tensor, parts in call.inputs:
        more = call.output.ndim - tensor.ndim
        for part in parts:
            for axis, dim in enumerate(part.dims):
                if dim is not None and tensor.shape[dim] == 1 and call.output.shape[dim + more] > 1:
                    part = part.settled(axis, call.name)
            yield part.moved({dim: dim + more for dim in range(tensor.ndim)})


def _same(call: Call) -> Iterable[Part]:
    return call.parts_of(0)


def _windowed(call: Call, kernel: Any, stride: Any, padding: Any, dilation: Any, spatial: int = 2) -> Iterable[Part]:
    """A window over the last dimensions, of which a list of one number means all."""
    first = call.args[0].ndim - spatial
    numbers = [_spread(value, spatial) for value in (kernel, stride, padding, dilation)]

    def change(field: AxisField, dim: int) -> AxisField | None:
        window = [values[dim - first] for values in numbers]
        return None if window == [1, 1, 0, 1] else field.window(*window)

    return along(call, first, change)


def _spread(value: Any, count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


def _convolution(call: Call) -> Iterable[Part]:
    weight, stride, padding, dilation, transposed = (call.arg(position) for position in (1, 3, 4, 5, 6))
    kernel, groups = list(weight.shape[2:]), call.arg(8)
    channels = 1 if call.args[0].ndim == len(kernel) + 2 else 0
    found = _transposed(call, kernel) if transposed else _windowed(call, kernel, stride, padding, dilation, len(kernel))
    for part in (*found, *call.others()):
        mixed = part.on(channels) if groups == 1 else []
        yield part.everywhere(mixed) if groups == 1 or not part.on(channels) else part.lost(call.name)


def _transposed(call: Call, kernel: list[int]) -> Iterable[Part]:
    spatial = len(kernel)
    first = call.args[0].ndim - spatial
    strides, paddings, dilations = (_spread(call.arg(position), spatial) for position in (3, 4, 5))

    def change(field: AxisField, dim: int) -> AxisField:
        stride, padding = strides[dim - first], paddings[dim - first]
        reach, last = dilations[dim - first] * (kernel[dim - first] - 1), call.args[0].shape[dim] - 1
        ends = [
            (-(-(cell + padding - reach) // stride), (cell + padding) // stride)
            for cell in range(call.output.shape[dim])
        ]
        sources = [(min(max(low, 0), last), max(min(high, last), 0)) for low, high in ends]
        return field.resampled(sources, (padding - reach / 2) / stride, 1 / stride)

    return along(call, first, change)


def _average_pooling(call: Call) -> Iterable[Part]:
    kernel = call.arg(1)
    return _windowed(call, kernel, call.arg(2) or kernel, call.arg(3, default=0), 1)


def _max_pooling(call: Call) -> Iterable[Part]:
    kernel = call.arg(1)
    return _windowed(call, kernel, call.arg(2) or kernel, call.arg(3, default=0), call.arg(4, default=1))


def _adaptive_pooling(call: Call) -> Iterable[Part]:
    def sources(before: int, after: int, _: int) -> tuple[list[tuple[int, int]], float, float]:
        step = before / after
        cells = [(cell * before // after, -(-(cell + 1) * before // after) - 1) for cell in range(after)]
        return cells, (step - 1) / 2, step

    for part in _resampled(call, sources):
        whole = [axis for axis, dim in enumerate(part.dims) if dim is not None and call.output.shape[dim] == 1]
        yield part.everywhere(whole)


def _resize(reach: float, *, antialias: bool = False, nearest: bool = False) -> Rule:
    """An interpolation that reads cells up to `reach` away."""

    def rule(call: Call) -> Iterable[Part]:
        corners = not nearest and bool(call.arg(2, "align_corners"))
        scales = [*(value for value in call.args[2 if nearest else 3 :] if not isinstance(value, bool))]
        given = scales[0] if len(scales) == 1 and isinstance(scales[0], (list, tuple)) else scales

        def sources(before: int, after: int, axis: int) -> tuple[list[tuple[int, int]], float, float]:
            scale = given[axis] if len(given) == 2 else None
            step = 1 / scale if scale else before / after
            first = 0.5 * step - 0.5
            if corners:  # which the antialiased kernels take for the step alone
                step = (before - 1) / max(after - 1, 1)
                first = 0.5 * step - 0.5 if antialias else 0.0
            spread = reach * max(step, 1.0) if antialias else reach
            cells = []
            for cell in range(after):
                if nearest:  # in single precision, as PyTorch
                    low = high = int(np.float32(cell) * np.float32(step))
                else:
                    middle = round(first + cell * step, 9)
                    low, high = math.floor(middle - spread) + 1, math.ceil(middle + spread) - 1
                cells.append((min(max(low, 0), before - 1), max(min(high, before - 1), 0)))
            return cells, first, step

        return _resampled(call, sources)

    return rule


def _resampled(
    call: Call, sources: Callable[[int, int, int], tuple[list[tuple[int, int]], float, float]]
) -> Iterable[Part]:
    """The last two dimensions at another number of cells."""
    first = call.args[0].ndim - 2

    def change(field: AxisField, dim: int) -> AxisField | None:
        before, after = call.args[0].shape[dim], call.output.shape[dim]
        cells, start, step = sources(before, after, dim - first)
        same = before == after and all(cell == (index, index) for index, cell in enumerate(cells))
        return None if same else field.resampled(cells, start, step)

    return along(call, first, change)


def _padding(call: Call) -> Iterable[Part]:
    ndim, amounts = call.args[0].ndim, call.arg(1)
    before = {ndim - 1 - index: amount for index, amount in enumerate(amounts[::2])}

    def change(field: AxisField, dim: int) -> AxisField | None:
        same = call.args[0].shape[dim] == call.output.shape[dim] and not before.get(dim)
        return None if same else field.shifted(-before.get(dim, 0))

    return along(call, 0, change)


def _mixes(position: int, *, kept: bool = False) -> Rule:
    """Computed over all entries along the dimensions that an argument names, all where it is absent.

    Reductions and FFTs; with `kept` softmax and the like, after which every position is still there.
    """

    def rule(call: Call) -> Iterable[Part]:
        ndim = call.args[0].ndim
        named = call.arg(position, "dim")
        if isinstance(named, Tensor):  # the larger of two
            yield from _pointwise(call)
            return
        if isinstance(named, bool) or named is None or named == []:
            named = list(range(ndim))
        dims = {dim % max(ndim, 1) for dim in ([named] if isinstance(named, int) else named)}
        gone = (
            {} if call.output.ndim == ndim else {d: d - sum(x < d for x in dims) for d in range(ndim) if d not in dims}
        )
        for part in call.parts_of(0):
            axes = [axis for dim in dims for axis in part.on(dim)]
            yield part.everywhere(axes, kept=kept).moved({} if kept else gone)

    return rule


def _layer_norm(call: Call) -> Iterable[Part]:
    first = call.args[0].ndim - len(call.arg(1))
    for part in call.parts_of(0):
        yield part.everywhere(
            [axis for axis, dim in enumerate(part.dims) if dim is not None and dim >= first], kept=True
        )
    yield from call.others()


def _group_norm(call: Call) -> Iterable[Part]:
    for part in call.parts_of(0):
        yield part.everywhere([axis for axis, dim in enumerate(part.dims) if dim], kept=True)
    yield from call.others()


def _batch_norm(call: Call) -> Iterable[Part]:
    """Pointwise with running statistics; computed over the map otherwise, as an instance norm does."""
    training = any(argument is True for argument in (*call.args, *call.kwargs.values()))
    for part in call.parts_of(0):
        axes = [axis for axis, dim in enumerate(part.dims) if dim is not None and dim != 1]
        yield part.everywhere(axes, kept=True) if training else part
    yield from call.others()


def _expand(call: Call) -> Iterable[Part]:
    return _pointwise(replace(call, inputs=[(call.args[0], call.parts_of(0))]))


def _product(left: int) -> Rule:
    """A matrix product of the arguments `left` and `left + 1`, in batches or not."""

    def rule(call: Call) -> Iterable[Part]:
        for position in (left, left + 1):
            tensor = call.args[position]
            contracted = tensor.ndim - 1 if position == left else max(tensor.ndim - 2, 0)
            shift = call.output.ndim - tensor.ndim
            for part in call.parts_of(position):
                moved = part.everywhere(part.on(contracted))
                if tensor.ndim == 1 or call.args[left].ndim == 1 or call.args[left + 1].ndim == 1:
                    yield moved if moved.dims == (None, None) else moved.lost(call.name)
                else:
                    yield moved.moved({dim: dim + shift for dim in range(tensor.ndim)})
        if left:
            bias = replace(call, inputs=[(call.args[0], call.parts_of(0))])
            yield from _pointwise(bias)

    return rule


def _attention(call: Call) -> Iterable[Part]:
    """Queries keep their positions; keys and values are mixed over theirs."""
    for position in (0, 1, 2):
        ndim = call.args[position].ndim
        for part in call.parts_of(position):
            mixed = part.on(ndim - 2) if position else []
            part = part.everywhere(mixed)
            yield part.lost(call.name) if part.on(ndim - 1) else part
    for tensor, parts in call.inputs:
        if all(tensor is not call.args[position] for position in (0, 1, 2)):
            yield from (part.lost(call.name) for part in parts)


CONSTANTS = frozenset(
    ("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "new_zeros", "new_ones")
) | {"new_full", "new_empty", "new_empty_strided"}
"""Operators that take nothing but the shape of a tensor."""

RULES: dict[str, Rule] = {
    **dict.fromkeys(("convolution", "_convolution"), _convolution),
    "max_pool2d_with_indices": _max_pooling,
    "avg_pool2d": _average_pooling,
    "_adaptive_avg_pool2d": _adaptive_pooling,
    "adaptive_max_pool2d": _adaptive_pooling,
    "constant_pad_nd": _padding,
    **dict.fromkeys(("reflection_pad1d", "reflection_pad2d", "replication_pad1d", "replication_pad2d"), _padding),
    "upsample_nearest2d": _resize(0.0, nearest=True),
    "upsample_bilinear2d": _resize(1.0),
    "upsample_bicubic2d": _resize(2.0),
    "_upsample_bilinear2d_aa": _resize(1.0, antialias=True),
    "_upsample_bicubic2d_aa": _resize(2.0, antialias=True),
    "pixel_shuffle": shuffled,
    "pixel_unshuffle": shuffled,
    **dict.fromkeys(("mean", "sum", "amax", "amin", "var", "std", "var_mean", "std_mean", "prod"), _mixes(1)),
    **dict.fromkeys(("max", "min", "argmax", "argmin", "logsumexp", "any", "all", "nansum"), _mixes(1)),
    "linalg_vector_norm": _mixes(2),
    "norm": _mixes(2),
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax", "cumsum", "cumprod"), _mixes(1, kept=True)),
    **dict.fromkeys(("_fft_r2c", "_fft_c2c", "_fft_c2r"), _mixes(1)),
    "native_batch_norm": _batch_norm,
    "_native_batch_norm_legit_no_training": _batch_norm,
    "_native_batch_norm_legit": _batch_norm,
    "cudnn_batch_norm": _batch_norm,
    "native_layer_norm": _layer_norm,
    "native_group_norm": _group_norm,
    **dict.fromkeys(("permute", "transpose", "t"), permuted),
    **dict.fromkeys(("view", "_unsafe_view", "_reshape_alias", "reshape"), viewed),
    "unsqueeze": unsqueezed,
    "squeeze": squeezed,
    "expand": _expand,
    "slice": sliced,
    "select": selected,
    "unbind": unbound,
    "cat": joined,
    "stack": joined,
    **dict.fromkeys(("split", "split_with_sizes", "unsafe_split", "unsafe_split_with_sizes"), untouched(2, 0)),
    "roll": untouched(2),
    "flip": untouched(1),
    "index_select": untouched(1),
    "glu": untouched(1, -1),
    "repeat": repeated,
    "mm": _product(0),
    "bmm": _product(0),
    "addmm": _product(1),
    "baddbmm": _product(1),
    "_scaled_dot_product_flash_attention_for_cpu": _attention,
    "_scaled_dot_product_flash_attention": _attention,
    "_scaled_dot_product_efficient_attention": _attention,
    **dict.fromkeys(("alias", "detach", "_to_copy", "clone", "contiguous", "lift_fresh"), _same),
    **dict.fromkeys(("channel_shuffle", "native_channel_shuffle"), untouched(None, 1)),
    **dict.fromkeys(("hardswish", "copy", "where", "masked_fill"), _pointwise),
}


def rule_for(name: str, pointwise: bool) -> Rule:
    """The rule of an operator, in place or not."""
    own = RULES.get(name) or RULES.get(name.removesuffix("_"))
    return own or (_pointwise if pointwise else lost)
