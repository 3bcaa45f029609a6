"""Pickles as inert data: nothing that a file names is imported or called, and a tensor is a note of where it lies.

Torch's own `weights_only` refuses a whole file for one object that it does not know, its `safe_globals` hold for all
threads of a process, and neither it nor torch's reader compares sizes with the file. The unpickler is Python's slower
one, for it takes memory only for what it has read; that in C makes room for the numbers of a memo first.
"""

import math
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

_MOST_DIMENSIONS = 16


class Placeholder:
    """Stands for any other class or function, or an object made by it; takes what a pickle does to it.

    Args:
        path: Its name.
        is_object: Whether it was made by what is named.
    """

    __slots__ = ("is_object", "path")

    def __init__(self, path: str, *, is_object: bool = True) -> None:
        self.path, self.is_object = path, is_object

    def __call__(self, *args: Any) -> "Placeholder":
        # Functions that make objects, such as numpy's and copyreg's, are given the class first.
        by_class = bool(args) and isinstance(args[0], Placeholder) and not args[0].is_object
        return Placeholder(args[0].path if by_class else self.path)

    def __new__(cls, *args: Any, **kwargs: Any) -> "Placeholder":
        # A pickle makes an object by the method of what it takes for the class.
        return object.__new__(cls) if isinstance(cls, type) else Placeholder(cls.path)

    def _ignore(self, *args: Any) -> None:
        """Of its state and its items nothing is kept."""

    __setstate__ = __setitem__ = append = extend = add = _ignore


class Dictionary(dict[Any, Any]):
    """Stands for a dictionary, ordered or not, without its attributes."""

    __slots__ = ()

    def __setitem__(self, key: Any, value: Any) -> None:
        # The hash of tuples in tuples can take longer than anybody lives.
        plain = isinstance(key, (str, bytes, int, float, type(None)))
        super().__setitem__(key if plain else Placeholder(path_of(key)), value)

    def __setstate__(self, state: Any) -> None:
        """Such as torch's versions of modules."""


class Source(Protocol):
    """Where the bytes of storages are."""

    def read(self, key: str, size: int) -> Tensor:
        """All `size` bytes of one, read once."""


@dataclass(frozen=True)
class Storage:
    """What a pickle says of memory that tensors lie in; `dtype` is None if it is unknown."""

    source: Source
    key: str
    dtype: torch.dtype | None
    length: int


class StoredTensor(Placeholder):
    """What a pickle says of a tensor; `read` makes it."""

    __slots__ = ("_dtype", "_metadata", "_offset", "_size", "_storage", "_stride")

    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: Any, metadata: Any) -> None:
        super().__init__("Tensor")
        self._storage, self._offset, self._size, self._stride = storage, offset, size, stride
        self._dtype, self._metadata = dtype, metadata

    def read(self) -> Tensor:
        """The tensor, on the CPU.

        Raises:
            ValueError: If what the pickle says makes no sense or goes beyond the bytes that are there.
        """
        storage, size, stride, metadata = self._storage, self._size, self._stride, self._metadata
        if not isinstance(storage, Storage) or not isinstance(storage.dtype, torch.dtype):
            raise ValueError("a tensor has no storage of a known type")
        numbers = (self._offset, *size, *stride) if isinstance(size, tuple) and isinstance(stride, tuple) else (None,)
        if not all(is_count(number) for number in numbers) or len(size) != len(stride) or len(size) > _MOST_DIMENSIONS:
            raise ValueError("a tensor's size, strides or offset are no natural numbers that belong together")
        dtype = storage.dtype if self._dtype is None else self._dtype
        length = storage.length * storage.dtype.itemsize // dtype.itemsize
        last = self._offset + sum((steps - 1) * step for steps, step in zip(size, stride, strict=True))
        if 0 not in size and (last >= length or math.prod(size) > length):
            raise ValueError(f"a tensor of the shape {list(size)} does not lie in its {length} numbers")
        if 0 in size:
            return torch.empty(size, dtype=dtype, device="cpu")
        found = storage.source.read(storage.key, storage.length * storage.dtype.itemsize)
        found = found[: length * dtype.itemsize].view(dtype).as_strided(size, stride, self._offset)
        return found.neg() if isinstance(metadata, dict) and metadata.get("neg") else found


def is_count(value: object) -> bool:
    """Whether a value is a natural number or 0 that PyTorch can take."""
    return type(value) is int and 0 <= value < 2**63


def path_of(value: object) -> str:
    """The class of a value, or what a placeholder stands for."""
    if isinstance(value, Placeholder):
        return value.path
    return "dict" if isinstance(value, Dictionary) else type(value).__name__


class Unpickler(pickle._Unpickler):
    """Finds nothing but what tensors and state dicts consist of.

    Args:
        file: With `read` and `readline`, of which neither makes room for more than there is.
        source: Where the storages are that the pickle names.
    """

    def __init__(self, file: Any, source: Source) -> None:
        super().__init__(file, encoding="utf-8")
        self._source = source
        self.storages: dict[str, Storage] = {}
        """By key."""

    def find_class(self, module: str, name: str) -> Any:
        path = f"{module}.{name}"
        if path == "collections.OrderedDict":
            return lambda: Dictionary()
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        # A file can write attributes of what it is given, so nothing that lasts is given away.
        if path in _MAKERS:
            make = _MAKERS[path]
            return lambda *args: make(*args)
        return Placeholder(path if path.isprintable() else repr(path), is_object=False)

    def persistent_load(self, pid: Any) -> Any:
        """A storage, or a whole module of which the older format says more than its name."""
        if not isinstance(pid, tuple) or len(pid) < 2:
            raise pickle.UnpicklingError("it refers to something that is not in it")
        if pid[0] == "module":
            return pid[1]
        _, kind, key, _, length, *view = pid
        if pid[0] != "storage" or not isinstance(key, str) or not is_count(length) or any(view):
            raise pickle.UnpicklingError("it refers to a storage in an unknown way")
        name = path_of(kind).rpartition(".")[2]
        return self.storages.setdefault(key, Storage(self._source, key, _STORAGES.get(name), length))

    def load_dictionary(self) -> None:
        items = self.pop_mark()  # type: ignore[attr-defined]
        made = Dictionary()
        for key, value in zip(items[::2], items[1::2], strict=True):
            made[key] = value
        self.append(made)  # type: ignore[attr-defined]

    def load_empty_dictionary(self) -> None:
        self.append(Dictionary())  # type: ignore[attr-defined]

    def load_empty_set(self) -> None:
        self.append(Placeholder("set"))  # type: ignore[attr-defined]

    def load_frozenset(self) -> None:
        self.pop_mark()  # type: ignore[attr-defined]
        self.append(Placeholder("frozenset"))  # type: ignore[attr-defined]

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch) | {
        pickle.DICT[0]: load_dictionary,
        pickle.EMPTY_DICT[0]: load_empty_dictionary,
        pickle.EMPTY_SET[0]: load_empty_set,
        pickle.FROZENSET[0]: load_frozenset,
    }
    # These make room for what may not be there, and no weight file has them.
    for _code in (pickle.BYTEARRAY8, pickle.NEXT_BUFFER, pickle.READONLY_BUFFER):
        del dispatch[_code[0]]


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, grad: Any = 0, hooks: Any = 0, *rest: Any) -> Any:
    return StoredTensor(storage, offset, size, stride, None, rest[0] if rest else None)


def _tensor_of_dtype(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, *rest: Any) -> Any:
    if not rest or not isinstance(rest[0], torch.dtype):
        raise pickle.UnpicklingError("a tensor has no dtype")
    return StoredTensor(storage, offset, size, stride, rest[0], rest[1] if len(rest) > 1 else None)


def _data(data: Any, *rest: Any) -> Any:
    """Of a parameter."""
    return data


def _without_attributes(make: Callable[..., Any], kind: Any, args: Any, state: Any) -> Any:
    """Of a tensor that somebody gave attributes."""
    return make(*args)


_MAKERS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor_of_dtype,
    "torch._utils._rebuild_parameter": _data,
    "torch._utils._rebuild_parameter_with_state": _data,
    "torch._tensor._rebuild_from_type_v2": _without_attributes,
}
_STORAGES = {
    "UntypedStorage": torch.uint8,
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexDoubleStorage": torch.complex128,
    "ComplexFloatStorage": torch.complex64,
    "QInt8Storage": torch.qint8,
    "QUInt8Storage": torch.quint8,
    "QInt32Storage": torch.qint32,
    "QUInt4x2Storage": torch.quint4x2,
    "QUInt2x4Storage": torch.quint2x4,
}
