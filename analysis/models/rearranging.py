"""Operators that move the entries of a tensor: views, permutations, slices, concatenations."""

import math
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from analysis.models.fields import AxisField, Call, Part, Rule, along


def permuted(call: Call) -> Iterable[Part]:
    ndim = call.args[0].ndim
    order = list(range(ndim))
    if call.name == "permute":
        order = [dim % ndim for dim in call.arg(1)]
    else:
        first, second = (0, 1) if call.name == "t" else (call.arg(position) % ndim for position in (1, 2))
        if ndim > 1:
            order[first], order[second] = second, first
    return (part.moved({dim: place for place, dim in enumerate(order)}) for part in call.parts_of(0))


def viewed(call: Call) -> Iterable[Part]:
    before, after = tuple(call.args[0].shape), tuple(call.output.shape)
    groups = _groups(before, after)
    for part in call.parts_of(0):
        yield part if before == after else _reshaped(part, groups, before, after, call.name)


Groups = list[tuple[list[int], list[int]]]


def _groups(before: tuple[int, ...], after: tuple[int, ...]) -> Groups:
    """The finest groups of neighbouring dimensions that hold the same number of entries before and after."""
    groups: Groups = []
    left, right = 0, 0
    while left < len(before) and right < len(after):
        old, new = [left], [right]
        left, right = left + 1, right + 1
        while (count := math.prod(before[d] for d in old)) != (wanted := math.prod(after[d] for d in new)):
            if count < wanted and left < len(before):
                old, left = [*old, left], left + 1
            elif count > wanted and right < len(after):
                new, right = [*new, right], right + 1
            else:
                return []
        groups.append((old, new))
    groups += [([dim], []) for dim in range(left, len(before))]
    return groups


def _reshaped(part: Part, groups: Groups, before: tuple[int, ...], after: tuple[int, ...], name: str) -> Part:
    if not groups or 0 in before:
        return part.lost(name)
    result = part
    for old, new in groups:
        for axis, dim in enumerate(part.dims):
            if dim in old and before[dim] == 1 and not (len(old) == len(new) == 1):
                result = result.settled(axis, name)
        dims = [dim for dim in old if before[dim] > 1]
        wide = [dim for dim in new if after[dim] > 1]
        axes = [axis for axis, dim in enumerate(part.dims) if dim in dims]
        if len(old) == len(new) == 1:
            result = _placed(result, [axis for axis, dim in enumerate(part.dims) if dim in old], new[0])
        elif axes:
            result = _regrouped(result, part, axes, dims, wide, before, after, name)
    return result


def _placed(result: Part, axes: Iterable[int], dim: int) -> Part:
    for axis in axes:
        result = result.changed(axis, dim=dim)
    return result


def _regrouped(
    result: Part, part: Part, axes: list[int], dims: list[int], wide: list[int], before: Any, after: Any, name: str
) -> Part:
    """Of one group of dimensions that holds positions."""
    if len(dims) == len(wide) == 1:
        return _placed(result, axes, wide[0])
    if not all(part.cells[axis] for axis in axes) or (part.flattened and part.offset):
        return result.lost(name, axes)
    if len(dims) == 1 and part.flattened:
        split = next((k for k in range(len(wide)) if math.prod(after[d] for d in wide[:k]) == part.cells[0]), 0)
        if not split:
            return result.lost(name, axes)
        for axis, own in ((0, wide[:split]), (1, wide[split:])):
            result = _split(result, axis, own, after)
        return result
    if len(dims) == 1 and len(axes) == 1:
        return _split(result, axes[0], wide, after)
    if len(wide) == 1 and axes == [0, 1] and dims == list(part.dims):
        return _placed(result, axes, wide[0])
    if len(wide) == 1 and len(axes) == 1 and dims[0] == part.dims[axes[0]] and not part.windows:
        (axis,) = axes
        inner = math.prod(before[dim] for dim in dims[1:])
        cells = [(cell // inner, cell // inner) for cell in range(part.cells[axis] * inner)]
        field = part.axes[axis].resampled(cells, (1 / inner - 1) / 2, 1 / inner)
        return result.changed(axis, field, wide[0], len(cells))
    if len(wide) == 1:  # among channels, say, before a linear layer
        for axis in axes:
            result = result.changed(axis, dim=wide[0], cells=0)
        return result
    return result.lost(name, axes)


def _split(result: Part, axis: int, dims: list[int], after: Any) -> Part:
    """Positions in windows: each window counts as one position, which holds all of its own."""
    inner = math.prod(after[dim] for dim in dims[1:])
    field = result.axes[axis].window(inner, inner, 0, 1)
    return replace(result.changed(axis, field, dims[0], after[dims[0]]), windows=result.windows or inner > 1)


def unsqueezed(call: Call) -> Iterable[Part]:
    place = call.arg(1) % call.output.ndim
    return (part.moved({d: d + (d >= place) for d in range(call.args[0].ndim)}) for part in call.parts_of(0))


def squeezed(call: Call) -> Iterable[Part]:
    shape = call.args[0].shape
    named = call.arg(1, "dim", list(range(len(shape))))
    dims = {dim % len(shape) for dim in ([named] if isinstance(named, int) else named)}
    return _dropped(call, {dim for dim in dims if shape[dim] == 1})


def _dropped(call: Call, dims: set[int], index: int = 0) -> Iterable[Part]:
    """One entry along these dimensions, which vanish."""
    for part in call.parts_of(0):
        for dim in dims:
            if part.flattened and part.dims[0] == dim and part.cells[0]:
                if not part.offset <= index < part.offset + part.cells[0] * part.cells[1]:
                    break
                part = part.lost(call.name)
            for axis in part.on(dim):
                part = part.settled(axis, call.name, index) if part.cells[axis] else part.lost(call.name)
        else:
            ndim = call.args[0].ndim
            yield part.moved({d: d - sum(x < d for x in dims) for d in range(ndim) if d not in dims})


def selected(call: Call) -> Iterable[Part]:
    dim = call.arg(1) % call.args[0].ndim
    return _dropped(call, {dim}, call.arg(2) % call.args[0].shape[dim])


def unbound(call: Call) -> Iterable[Part]:
    dim = call.arg(1, "dim", 0) % call.args[0].ndim
    for part in call.parts_of(0):
        one = part.lost(call.name, part.on(dim))
        yield one.moved({d: d - (d > dim) for d in range(call.args[0].ndim)})


def sliced(call: Call) -> Iterable[Part]:
    dim = call.arg(1, default=0) % call.args[0].ndim
    start, stop, step = slice(call.arg(2), call.arg(3), call.arg(4)).indices(call.args[0].shape[dim])
    for part in call.parts_of(0):
        if not part.on(dim) or len(range(start, stop, step)) == call.args[0].shape[dim]:
            yield part
        elif not all(part.cells[axis] for axis in part.on(dim)):
            yield part.lost(call.name)
        elif part.flattened:
            end = part.offset + part.cells[0] * part.cells[1]
            if step == 1 and start <= part.offset and stop >= end:
                yield replace(part, offset=part.offset - start)
            elif stop > part.offset and start < end:
                yield part.lost(call.name)
        else:
            (axis,) = part.on(dim)
            field = part.axes[axis].shifted(start)
            yield part.changed(axis, replace(field, stride=field.stride * step), cells=call.output.shape[dim])


def joined(call: Call) -> Iterable[Part]:
    """A concatenation, along channels or of class tokens with those of patches; or a stack."""
    stacked = call.name == "stack"
    dim = call.arg(1, "dim", 0) % call.output.ndim
    before = 0
    for tensor in call.args[0]:
        for found, parts in call.inputs:
            if found is not tensor:
                continue
            for part in parts:
                if stacked:
                    yield part.moved({d: d + (d >= dim) for d in range(tensor.ndim)})
                elif not part.on(dim):
                    yield part
                elif part.flattened and part.cells[0]:
                    yield replace(part, offset=part.offset + before)
                else:
                    yield part.lost(call.name)
            break
        before += 1 if stacked else tensor.shape[dim] if tensor.ndim else 0


def untouched(position: int | None, default: int | None = None) -> Rule:
    """Along the dimensions that an argument names entries are moved or chosen: all is as it was along the others."""

    def rule(call: Call) -> Iterable[Part]:
        ndim = call.args[0].ndim
        named = default if position is None else call.arg(position, "dim", default)
        dims = range(ndim) if named in (None, []) else [named] if isinstance(named, int) else named
        for part in call.parts_of(0):
            yield part.lost(call.name, [axis for dim in dims for axis in part.on(dim % ndim)])
        yield from call.others()

    return rule


def repeated(call: Call) -> Iterable[Part]:
    more = call.output.ndim - call.args[0].ndim
    for part in call.parts_of(0):
        moved = part.moved({dim: dim + more for dim in range(call.args[0].ndim)})
        copied = [axis for axis, dim in enumerate(moved.dims) if dim is not None and call.arg(1)[dim] > 1]
        yield moved.lost(call.name, copied)


def shuffled(call: Call) -> Iterable[Part]:
    """Between channels and positions: each block of positions is one, or one becomes a block."""
    factor = call.arg(1)

    def change(field: AxisField, dim: int) -> AxisField:
        if call.name == "pixel_unshuffle":
            return field.window(factor, factor, 0, 1)
        cells = [(cell // factor, cell // factor) for cell in range(call.output.shape[dim])]
        return field.resampled(cells, (1 / factor - 1) / 2, 1 / factor)

    channels = call.args[0].ndim - 3
    for part in along(call, channels + 1, change):
        yield part.lost(call.name, part.on(channels))
