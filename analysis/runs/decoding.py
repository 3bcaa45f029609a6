"""From what JSON holds to dataclasses, every value by the type that its field names."""

import math
import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from typing import Any

import numpy as np

from analysis.runs.texts import short

_INT_RANGE = (-(2**63), 2**64)
"""Of what NumPy and PyTorch take."""
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_PLAIN = {str: "a text", bool: "true or false", types.NoneType: "null"}


def made(cls: Any, content: Mapping[str, Any], name: str = "") -> Any:
    """A dataclass from what JSON holds of it; an absent field that may be None is None.

    Args:
        cls: The dataclass.
        content: Values by the names of its fields.
        name: Of the whole, for messages.

    Raises:
        TypeError: If a field is missing, unknown, or of another type.
        ValueError: Of the dataclass itself, for values that do not go together.
    """
    known = {item.name: item for item in fields(cls) if item.init}
    hints = typing.get_type_hints(cls)
    unknown = sorted(set(content) - set(known))
    if unknown:
        raise TypeError(f"no field {short(unknown[0])}")
    prefix = f"{name}." if name else ""
    values = {field: decoded(value, hints[field], prefix + field) for field, value in content.items()}
    for field, item in known.items():
        if field in values or item.default is not MISSING or item.default_factory is not MISSING:
            continue
        if types.NoneType not in typing.get_args(hints[field]):
            raise TypeError(f"{prefix}{field} is missing")
        values[field] = None
    return cls(**values)


def is_array(hint: Any) -> bool:
    """Whether a field of this type is an array, or None."""
    hint = _meaning(hint)
    return any(typing.get_origin(_meaning(option)) is np.ndarray for option in (hint, *typing.get_args(hint)))


def decoded(value: Any, hint: Any, name: str = "") -> Any:
    """A value of JSON as the type that `hint` names: lists become tuples, objects dataclasses.

    Raises:
        TypeError: If it is of another type; the message begins with `name`.
        ValueError: As `made`.
    """
    hint = _meaning(hint)
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or (type(value) is hint and hint is not int):
        return value
    if origin in (typing.Union, types.UnionType):
        return _one_of(value, options, name)
    if origin is typing.Literal:
        if any(type(value) is type(option) and value == option for option in options):
            return value
        raise _misfit(name, value, f"one of {', '.join(map(repr, options))}")
    if origin is tuple:
        return _tuple(value, options, name)
    if origin is not None and issubclass(origin, Mapping):
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise _misfit(name, value, "an object")
        return {key: decoded(item, options[1], f"{name}.{key}") for key, item in value.items()}
    if origin is np.ndarray:
        return _array(value, options, name)
    if is_dataclass(hint):
        if not isinstance(value, Mapping):
            raise _misfit(name, value, "an object")
        return made(hint, value, name)
    if hint is float:
        return _number(value, name)
    if hint is int:
        if type(value) is not int or not _INT_RANGE[0] <= value < _INT_RANGE[1]:
            raise _misfit(name, value, "a whole number of up to 64 bits")
        return value
    raise _misfit(name, value, _PLAIN.get(hint, f"a {getattr(hint, '__name__', hint)}"))


def _meaning(hint: Any) -> Any:
    """What an alias of Python's `type` statement stands for, such as `NDArray` of NumPy 2.5; else the hint itself."""
    alias = typing.get_origin(hint) or hint
    while hasattr(alias, "__value__"):
        arguments = typing.get_args(hint)
        hint = alias.__value__[arguments] if arguments else alias.__value__
        alias = typing.get_origin(hint) or hint
    return hint


def _misfit(name: str, value: Any, expected: str) -> TypeError:
    return TypeError(f"{name}{'=' * bool(name)}{short(value)}: expected {expected}")


def _one_of(value: Any, options: tuple[Any, ...], name: str) -> Any:
    others = [option for option in options if option is not types.NoneType]
    if value is None and len(others) < len(options):
        return None
    for option in others[:-1]:
        try:
            return decoded(value, option, name)
        except TypeError:
            continue
    return decoded(value, others[-1], name)


def _tuple(value: Any, options: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise _misfit(name, value, "a list")
    hints = [options[0]] * len(value) if options[-1] is Ellipsis else options
    if len(value) != len(hints):
        raise _misfit(name, value, f"a list of {len(hints)}")
    return tuple(decoded(item, hint, f"{name}[{i}]") for i, (item, hint) in enumerate(zip(value, hints, strict=True)))


def _array(value: Any, options: tuple[Any, ...], name: str) -> Any:
    (wanted,) = typing.get_args(options[1])
    if not isinstance(value, np.ndarray):
        raise _misfit(name, value, "an array")
    if value.dtype.kind != np.dtype(wanted).kind:
        raise TypeError(f"{name}: an array of {value.dtype}; expected {np.dtype(wanted)}")
    return value


def _number(value: Any, name: str) -> Any:
    """A number as it is, whole ones too, of which settings may be hashed; those that are not finite are texts."""
    if isinstance(value, str) and value in _NOT_FINITE:
        return _NOT_FINITE[value]
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise _misfit(name, value, "a number")
    if isinstance(value, int) and abs(value) >= _INT_RANGE[1]:
        raise _misfit(name, value, "a number of up to 64 bits")
    return value
