"""Settings as users give them: what does not fit is refused by name, before anything is done with it."""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from functools import cache
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np

Range = tuple[float, float, str]
"""The lowest and the highest value, and both in words; a highest one of infinity is a value, too."""
SEEDS: Range = (0, 2**63 - 1, "a whole number from 0 to 2**63 - 1")
SIDES: Range = (1, 16_384, "1 to 16384 pixels")
BATCHES: Range = (1, 65_536, "1 to 65536 images")
WORKERS: Range = (0, 1024, "0 to 1024 processes")
AT_ONCE: Range = (1, 1024, "1 to 1024")
LARGEST_KERNEL = 1023
COUNTS: Range = (1, 10_000_000, "1 to 10000000")


def check_fields(settings: Any, **ranges: Range) -> None:
    """Refuse the values of a dataclass that are of another type than their fields, or out of range.

    Lists become tuples, and NumPy's numbers Python's.

    Args:
        settings: The instance, which may be frozen.
        **ranges: Of a field, or of every number in it. Without one a number must be finite.

    Raises:
        ValueError: Naming the field, the value and what was expected.
    """
    kind: Any = type(settings)
    for name, hint in _hints(kind).items():
        value = getattr(settings, name)
        try:
            fitted = _fitted(value, hint)
        except TypeError as error:
            raise ValueError(f"{name}={value!r}: expected {error}") from None
        if fitted is not value:
            object.__setattr__(settings, name, fitted)
        for number in fitted if isinstance(fitted, tuple) else (fitted,):
            if name in ranges and number is not None:
                check_number(name, number, ranges[name], shown=fitted)
            elif isinstance(number, float) and not math.isfinite(number):
                raise ValueError(f"{name}={fitted}: expected a finite number")


def check_number(name: str, value: Any, allowed: Range, *, shown: Any = None) -> None:
    """Refuse what is no number, or out of range; of a range of whole numbers, what is not whole.

    Args:
        name: Of the argument.
        value: Of it.
        allowed: The range.
        shown: What the message shows, where the number is one of several.

    Raises:
        ValueError: Naming the argument, the value and what was expected.
    """
    low, high, expected = allowed
    kinds: type = Integral if isinstance(low, int) and isinstance(high, int) else Real
    usable = isinstance(value, kinds) and not isinstance(value, bool)
    if not usable or not low <= value <= high:
        shown = value if shown is None else shown
        raise ValueError(f"{name}={repr(shown) if isinstance(shown, str) else shown}: expected {expected}")


def named_path(path: str | PathLike[str], argument: str) -> Path:
    """A path that was given; an empty text, which would stand for the current folder, is refused.

    Raises:
        ValueError: Naming the argument.
    """
    if not str(path).strip():
        raise ValueError(f"{argument}={str(path)!r}: expected a path; '.' is the current folder")
    return Path(path)


@cache
def _hints(kind: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(kind)
    return {item.name: hints[item.name] for item in dataclasses.fields(kind)}


def _fitted(value: Any, hint: Any) -> Any:
    """The value as one of this type; a TypeError tells in words what was expected."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        expected = []
        for part in sorted(parts, key=lambda part: part is type(None)):
            try:
                return _fitted(value, part)
            except TypeError as error:
                expected.append(str(error))
        raise TypeError(" or ".join(expected))
    if origin is Literal:
        if isinstance(value, str) and value in parts:
            return value
        raise TypeError(f"one of {', '.join(parts)}")
    if origin in (tuple, list):
        kinds = parts[:1] if origin is list or parts[-1] is ... else parts
        if isinstance(value, (tuple, list)) and (len(kinds) == 1 or len(value) == len(kinds)):
            return tuple(_fitted_item(item, kinds[index % len(kinds)], hint) for index, item in enumerate(value))
        raise TypeError(_words(hint))
    simple = origin or hint
    if isinstance(value, np.generic):
        value = value.item()
    wanted: Any = {bool: bool, int: Integral, float: Real, Path: (str, PathLike)}.get(simple, simple)
    if not isinstance(value, wanted) or (isinstance(value, bool) and simple in (int, float)):
        raise TypeError(_words(hint))
    return value


def _fitted_item(item: Any, kind: Any, whole: Any) -> Any:
    try:
        return _fitted(item, kind)
    except TypeError:
        raise TypeError(_words(whole)) from None


def _words(hint: Any) -> str:
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (tuple, list):
        count = "" if origin is list or parts[-1] is ... else f"{len(parts)} "
        return count + {int: "whole numbers", float: "numbers", bool: "trues and falses"}.get(parts[0], "texts")
    known = {
        bool: "true or false",
        int: "a whole number",
        float: "a number",
        str: "a text",
        Path: "a path",
        type(None): "none",
    }
    if origin is Mapping:
        return "values by name"
    return known.get(hint) or f"a {getattr(hint, '__name__', hint)}"
