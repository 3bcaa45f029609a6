"""Pickles as inert data: tensors are made, and nothing else that a file names is imported or called.

For `torch.load(pickle_module=unpickling)`, which reads zip files and older ones with it. Torch's own `weights_only`
refuses a whole file for one object that it does not know, and its `safe_globals` hold for all threads of a process.
"""

import pickle
from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor


class Placeholder:
    """Stands for an object of any other class or function, named by `path`; takes what a pickle does to it."""

    path = ""
    dump_patches = False
    """Asked of modules in old files: write no file."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "Placeholder":
        # Functions that make objects, such as numpy's and copyreg's, are given the class first.
        named = args[0] if args and isinstance(args[0], type) and issubclass(args[0], Placeholder) else cls
        return object.__new__(named)

    def __call__(self, *args: Any, **kwargs: Any) -> "Placeholder":
        return self

    def _ignore(self, *args: Any) -> None:
        """Of its state and its items nothing is kept."""

    __setstate__ = __setitem__ = append = extend = add = _ignore


def path_of(value: object) -> str:
    """The class of a value, or what a placeholder stands for."""
    kind = value if isinstance(value, type) else type(value)
    return kind.path if issubclass(kind, Placeholder) else kind.__name__


class Unpickler(pickle.Unpickler):
    """Finds nothing but what tensors and state dicts consist of; torch itself adds the types of storages."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch" and isinstance(vars(torch).get(name), torch.dtype):
            return vars(torch)[name]
        path = f"{module}.{name}"
        if path == "torch.storage.UntypedStorage":
            return SimpleNamespace(dtype=torch.uint8)
        # A file can write attributes of what it is given, so nothing that lasts is given away.
        if path in _MAKERS:
            make = _MAKERS[path]
            return lambda *args: make(*args)
        return type("Unknown", (Placeholder,), {"path": path})


def load(file: Any, **options: Any) -> Any:
    """One pickle of a file."""
    return Unpickler(file, **options).load()


def _tensor(storage: Any, offset: Any, size: Any, stride: Any, grad: Any = 0, hooks: Any = 0, *rest: Any) -> Tensor:
    made: Tensor = torch._utils._rebuild_tensor_v2(  # type: ignore[no-untyped-call]
        storage, offset, size, stride, False, OrderedDict(), *rest
    )
    return made


def _tensor_of_dtype(storage: Any, offset: Any, size: Any, stride: Any, grad: Any, hooks: Any, *rest: Any) -> Tensor:
    made: Tensor = torch._utils._rebuild_tensor_v3(  # type: ignore[no-untyped-call]
        storage, offset, size, stride, False, OrderedDict(), *rest
    )
    return made


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
