"""Following receptive fields through the operations of a forward pass."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from analysis.models.fields import AxisField, Call, Part, Parts, merged
from analysis.models.operators import CONSTANTS, lost, rule_for


class Tracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes on which pixels of an image each tensor of a forward pass depends.

    A tensor that depends on the image by any path is noted: after an operator without a rule as unknown. Writing into a
    tensor makes what shares its memory unknown, which may have been read before; so is a tensor without data that came
    about unseen, in another thread, say.

    Args:
        image: Shape (N, C, H, W), on the meta device.
        constants: Other tensors without data that are known: weights.
    """

    def __init__(self, image: Tensor, constants: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        size = (image.shape[2], image.shape[3])
        self._image = Part((AxisField(), AxisField()), (2, 3), size, size)
        self._alive: list[Any] = []  # an id stays unique only while its tensor lives
        self._clock = 0
        self._known: dict[int, tuple[Parts, int, int]] = {}
        self._written: dict[int, tuple[str, int]] = {}
        self._constants: set[int] = set()
        self._followed: set[int] = set()
        for tensor in constants:
            self._note(tensor, ())
        self._note(image, (self._image,))

    def parts(self, tensor: Tensor) -> Parts:
        """On what a tensor depends; empty for a constant."""
        storage = _storage(tensor)
        name, written = self._written.get(storage, ("", -1))
        parts, time, place = self._known.get(id(tensor), ((), -1, -1))
        if place != storage:  # never seen, or with other data than it was
            unseen = tensor.is_meta and storage not in self._constants
            parts = (*parts, self._image.lost("a tensor made unseen")) if unseen else parts
        return merged((*parts, self._image.lost(name))) if written > time else parts

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        given = list(_tensors((*args, *kwargs.values())))
        if name == "lift_fresh" and id(given[0]) not in self._known:  # Python's numbers become a tensor
            self._note(given[0], ())
        inputs = [] if name in CONSTANTS else [(tensor, own) for tensor in given if (own := self.parts(tensor))]
        targets = list(_written_by(func, args, kwargs))
        shapes = [(target.shape, target.stride()) for target in targets]
        result = func(*args, **kwargs)
        outputs = list(_tensors((result,)))
        if not inputs:
            for output in outputs:  # which may be made of the memory of another
                self._note(output, (self._image.lost(name),) if _storage(output) in self._followed else ())
            return result
        first = (outputs or targets or given)[0]
        call = Call(name, args, kwargs, first, inputs)
        moved = shapes != [(target.shape, target.stride()) for target in targets]  # in place, as `squeeze_`
        parts = merged((lost if moved else rule_for(name, torch.Tag.pointwise in func.tags))(call))
        for target in targets:
            before = self.parts(target)
            added = parts if outputs and target.shape == first.shape else merged(lost(call))
            found = merged(part.lost(name) for part in before) if moved else merged((*before, *added))
            if found != before:
                self._clock += 1
                self._written[_storage(target)] = (name, self._clock)
            self._note(target, found)
        for output in outputs:
            if not any(output is target for target in targets):
                self._note(output, parts if _fits(parts, output, first) else merged(lost(call)))
        return result

    def _note(self, tensor: Tensor, parts: Parts) -> None:
        storage = _storage(tensor)
        self._known[id(tensor)] = (parts, self._clock, storage)
        self._alive.append(tensor)
        if parts:
            self._followed.add(storage)
            self._constants.discard(storage)
        elif self._written.get(storage) is None:
            self._constants.add(storage)


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
    """Which memory a tensor lies in; that of a sparse or quantised one, which has none of this kind, is its own."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except NotImplementedError:
        return -1 - id(tensor)


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (tuple, list)):
            yield from _tensors(value)
