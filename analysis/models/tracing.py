"""Following receptive fields through the operations of a forward pass."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from analysis.models.fields import AxisField, Call, Part, Parts, merged
from analysis.models.operators import CONSTANTS, lost, rule_for


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes on which pixels of an image each tensor of a forward pass depends.

    A tensor that depends on the image by any path is noted: after an operator without a rule as unknown. Writing into a
    tensor makes what shares its memory unknown, which may have been read before.

    Args:
        image: Shape (N, C, H, W).
    """

    def __init__(self, image: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        size = (image.shape[2], image.shape[3])
        self._image = size
        self._alive: list[Any] = []  # an id stays unique only while its tensor lives
        self._clock = 0
        self._parts: dict[int, tuple[Parts, int]] = {}
        self._written: dict[int, tuple[str, int]] = {}
        self._note(image, (Part((AxisField(), AxisField()), (2, 3), size, size),))

    def parts(self, tensor: Tensor) -> Parts:
        """On what a tensor depends; empty for a constant."""
        parts, time = self._parts.get(id(tensor), ((), -1))
        name, written = self._written.get(_storage(tensor), ("", -1))
        if written <= time:
            return parts
        return merged((*parts, Part((AxisField(), AxisField()), (2, 3), self._image, self._image).lost(name)))

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = list(_tensors((*args, *kwargs.values())))
        inputs = [(tensor, parts) for tensor in given if (parts := self.parts(tensor))]
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if not inputs or name in CONSTANTS:
            return result
        outputs = list(_tensors((result,)))
        if not outputs:
            return result
        call = Call(name, args, kwargs, outputs[0], inputs)
        parts = merged(rule_for(name, torch.Tag.pointwise in func.tags)(call))
        if func._schema.is_mutable:
            for target in _written_by(func, args, kwargs):
                before = self.parts(target)
                found = merged((*before, *(parts if target.shape == outputs[0].shape else merged(lost(call)))))
                if found != before:
                    self._clock += 1
                    self._written[_storage(target)] = (name, self._clock)
                self._note(target, found)
        for output in outputs:
            if not any(output is target for target in _written_by(func, args, kwargs)):
                self._note(output, parts if _fits(parts, output, outputs[0]) else merged(lost(call)))
        return result

    def _note(self, tensor: Tensor, parts: Parts) -> None:
        self._parts[id(tensor)] = (parts, self._clock)
        self._alive.append(tensor)


def _written_by(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Iterator[Tensor]:
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from _tensors((value,))


def _fits(parts: Parts, output: Tensor, first: Tensor) -> bool:
    """Whether what holds of the first output holds of another: their positions are the same."""
    if output.ndim != first.ndim:
        return all(part.dims == (None, None) for part in parts)
    dims = {dim for part in parts for dim in part.dims if dim is not None}
    return all(output.shape[dim] == first.shape[dim] for dim in dims)


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
