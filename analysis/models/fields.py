"""Theoretical receptive fields: of the units along an axis, and of the entries of a tensor."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class AxisField:
    """Receptive field of the units along one image axis, in input pixels.

    Unit i is centred on pixel `start + i * stride` and reaches from pixel `low + i * stride` to pixel
    `high + i * stride`. What lies outside the image is its padding, and for padding by reflection or replication the
    pixels that are repeated there. The extremes are infinite after a global operation, NaN where they are not known.
    """

    stride: float = 1.0
    start: float = 0.0
    low: float = 0.0
    high: float = 0.0

    @property
    def size(self) -> float:
        """Number of pixels a unit sees; infinite if it sees the whole image, NaN if that is not known."""
        return math.inf if math.isinf(self.low) else self.high - self.low + 1

    def shifted(self, cells: float) -> "AxisField":
        """Numbered from another cell."""
        shift = cells * self.stride
        return replace(self, start=self.start + shift, low=self.low + shift, high=self.high + shift)

    def window(self, kernel: int, stride: int, padding: int, dilation: int) -> "AxisField":
        """After a convolution or pooling window."""
        first, last = -padding * self.stride, (dilation * (kernel - 1) - padding) * self.stride
        return AxisField(self.stride * stride, self.start + (first + last) / 2, self.low + first, self.high + last)

    def resampled(self, sources: Sequence[tuple[int, int]], first: float, step: float) -> "AxisField":
        """After an operation that reads these cells (both ends included) for each cell that it writes.

        Args:
            sources: First and last cell read for each cell written.
            first: Where the first cell written lies among those read.
            step: Distance between cells written, in cells read.
        """
        stride = self.stride * step
        low = min(cell * self.stride - index * stride for index, (cell, _) in enumerate(sources))
        high = max(cell * self.stride - index * stride for index, (_, cell) in enumerate(sources))
        return AxisField(stride, self.start + first * self.stride, self.low + low, self.high + high)

    def everywhere(self) -> "AxisField":
        """After an operation that mixes all positions."""
        return replace(self, low=-math.inf, high=math.inf)

    def unknown(self) -> "AxisField":
        """After an operation that mixes positions in a way that is not followed; nothing finer than all is certain."""
        return self if math.isinf(self.low) else replace(self, low=math.nan, high=math.nan)

    def union(self, other: "AxisField") -> "AxisField":
        """Of a sum or a concatenation; the centre is that of the branch that sees more, or between the two.

        What is seen everywhere or nobody knows where, such as a gate, does not move the centre of what it joins.
        """
        first, second = (field.size if math.isfinite(field.size) else -1 for field in (self, other))
        joined = self if first >= second else other
        if first == second:
            joined = replace(self, start=(self.start + other.start) / 2)
        if math.isinf(self.low) or math.isinf(other.low):
            return joined.everywhere()
        if not math.isclose(self.stride, other.stride, rel_tol=1e-9):
            return joined.unknown()
        # Either may be NaN.
        low, high = np.minimum(self.low, other.low), np.maximum(self.high, other.high)
        return replace(joined, low=float(low), high=float(high))


@dataclass(frozen=True)
class Part:
    """Some pixels on which each entry of a tensor depends.

    Args:
        axes: Fields of the positions along the rows and the columns of the image.
        dims: The dimensions of the tensor on which these positions lie. Both on one are flattened, row by row. None:
            the same for all entries, either everywhere or not known.
        cells: How many positions there are along each axis; 0 for an order that is not followed.
        image: Height and width in pixels.
        offset: Entries before the first of flattened positions: class tokens and the like.
        windows: Whether a position is a window of several, which are then no longer told apart.
        reason: The operation since which the field is not known.
    """

    axes: tuple[AxisField, AxisField]
    dims: tuple[int | None, int | None]
    cells: tuple[int, int]
    image: tuple[int, int]
    offset: int = 0
    windows: bool = False
    reason: str = ""

    @property
    def flattened(self) -> bool:
        return self.dims[0] is not None and self.dims[0] == self.dims[1]

    def on(self, dim: int) -> list[int]:
        """The axes that lie on a dimension."""
        return [axis for axis in (0, 1) if self.dims[axis] == dim]

    def changed(
        self,
        axis: int,
        field: AxisField | None = None,
        dim: int | None = -1,
        cells: int | None = None,
    ) -> "Part":
        """With another field, dimension (-1 for the same) or number of positions along an axis."""
        axes, dims, counts = list(self.axes), list(self.dims), list(self.cells)
        axes[axis] = field or axes[axis]
        dims[axis] = dims[axis] if dim == -1 else dim
        counts[axis] = counts[axis] if cells is None else cells
        return replace(self, axes=(axes[0], axes[1]), dims=(dims[0], dims[1]), cells=(counts[0], counts[1]))

    def everywhere(self, axes: Iterable[int], *, kept: bool = False) -> "Part":
        """All positions along these axes mixed; they may be kept as positions, as a norm does."""
        part = self
        for axis in axes:
            part = part.changed(axis, part.axes[axis].everywhere(), -1 if kept else None)
        return part

    def lost(self, reason: str, axes: Iterable[int] = (0, 1)) -> "Part":
        """Mixed in a way that is not followed."""
        part = self
        for axis in axes:
            part = part.changed(axis, part.axes[axis].unknown(), None)
        unknown = any(math.isnan(field.low) for field in part.axes)
        return replace(part, reason=part.reason or (reason if unknown else ""))

    def settled(self, axis: int, reason: str, index: int = 0) -> "Part":
        """One position alone, from now on for all entries."""
        field = self.axes[axis].shifted(index)
        if field.low <= 0 and field.high >= self.image[axis] - 1:
            return self.everywhere([axis])
        return self.lost(reason, [axis])

    def moved(self, dims: Mapping[int, int]) -> "Part":
        """On other dimensions."""
        first, second = (None if dim is None else dims.get(dim, dim) for dim in self.dims)
        return replace(self, dims=(first, second))


Parts = tuple[Part, ...]


def merged(parts: Iterable[Part]) -> Parts:
    """One part for each place where positions lie."""
    found: dict[tuple[int | None, int | None], Part] = {}
    for part in parts:
        known = found.get(part.dims)
        if known is None:
            found[part.dims] = part
            continue
        same = (known.cells, known.offset) == (part.cells, part.offset) or known.dims == (None, None)
        union = [mine.union(other) for mine, other in zip(known.axes, part.axes, strict=True)]
        if not same:
            union = [axis.unknown() for axis in union]
        unknown = any(math.isnan(field.low) for field in union)
        reason = known.reason or part.reason or ("a sum of positions that differ" if unknown else "")
        windows = known.windows or part.windows
        found[part.dims] = replace(known, axes=(union[0], union[1]), reason=reason, windows=windows)
    return tuple(found.values())


@dataclass(frozen=True)
class Call:
    """One call of an operator.

    Args:
        name: Of the operator.
        args: Its arguments by position.
        kwargs: The others.
        output: What it returns, the first of several.
        inputs: The tensors among its arguments that depend on the image, with their fields.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    output: Tensor
    inputs: Sequence[tuple[Tensor, Parts]]

    def arg(self, position: int, name: str = "", default: Any = None) -> Any:
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def parts_of(self, position: int) -> Parts:
        """Of a tensor among the arguments; none where it does not depend on the image."""
        tensor = self.arg(position)
        return next((parts for found, parts in self.inputs if found is tensor), ())

    def others(self, position: int = 0) -> Parts:
        """Of all but one of the tensors, mixed: weights that depend on the image."""
        tensor = self.arg(position)
        return tuple(part.lost(self.name) for found, parts in self.inputs if found is not tensor for part in parts)


Rule = Callable[[Call], Iterable[Part]]


def along(call: Call, first: int, change: Callable[[AxisField, int], AxisField | None]) -> Iterable[Part]:
    """Of an operator along rows and columns, each on a dimension of its own.

    Args:
        call: The call, of which the first argument is followed.
        first: The dimension from which on positions are changed.
        change: From the field along an axis and its dimension to the new one, None where it stays.
    """
    for part in call.parts_of(0):
        for axis, dim in enumerate(part.dims):
            field = None if dim is None or dim < first else change(part.axes[axis], dim)
            if field is None or dim is None:
                continue
            if part.flattened or not part.cells[axis]:
                part = part.lost(call.name)
                break
            part = part.changed(axis, field, cells=call.output.shape[dim])
        yield part
