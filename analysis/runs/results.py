"""Results: how they are shown, and how they lie on disk.

A result is a frozen dataclass. On disk it is a directory of `result.json` and `arrays.npz`, made from its fields; one
that holds other results has them in folders beside `measures`, which holds the rest.
"""

import abc
import html
import importlib
import math
import typing
from collections.abc import Mapping
from dataclasses import asdict, fields, is_dataclass
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from analysis.runs.arrays import read_arrays
from analysis.runs.decoding import decoded, is_array, made
from analysis.runs.texts import parse_json, read_text, short
from analysis.runs.writing import replacing, write_json

SCHEMA_VERSION = 1
_REST = "measures"


class ResultError(ValueError):
    """A directory that does not hold the result that was asked for."""


class Shown(abc.ABC):
    """Shows what matters of itself in one line and as a small table in a notebook, never arrays or a module."""

    @abc.abstractmethod
    def headline(self) -> Mapping[str, Any]:
        """What matters, by name."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={_short(v)}' for name, v in self.headline().items())})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f'<tr><th style="text-align: left">{html.escape(name)}</th>'
            f'<td style="text-align: left">{html.escape(value if isinstance(value, str) else _short(value))}</td></tr>'
            for name, value in self.headline().items()
        )
        return f"<table><caption>{type(self).__name__}</caption>{rows}</table>"


def _short(value: Any) -> str:
    text = f"{value:.4g}" if isinstance(value, float) else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


class Result(Shown):
    """A dataclass that can be saved, loaded and drawn; `KIND` names it on disk.

    `PLOTS` tells module and function of each figure of it, the usual one first: what draws is imported when it is asked
    for, and results know nothing of it.
    """

    KIND: ClassVar[str]
    PLOTS: ClassVar[Mapping[str, str]] = {}

    def plot(self, kind: str | None = None, *, ax: Any = None, **options: Any) -> Any:
        """Draw a figure of the result.

        Args:
            kind: Which; by default the usual one of such a result.
            ax: Axes of matplotlib to draw into; by default those of a new figure, `.figure` of what is returned.
            options: Of the function in `PLOTS`, such as `cmap`.

        Returns:
            The axes.

        Raises:
            ValueError: If there is no such figure of the result.
        """
        if kind is None:
            kind = next(iter(self.PLOTS), "")
        if kind not in self.PLOTS:
            known = ", ".join(self.PLOTS) or f"none: there is no figure of a {type(self).__name__} alone"
            raise ValueError(f"kind={kind!r}: expected {known}")
        module, _, name = self.PLOTS[kind].partition(":")
        return getattr(importlib.import_module(module), name)(self, ax=ax, **options)

    def save(self, directory: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write `result.json` and `arrays.npz` to `directory`, whole or not at all.

        Of a result that holds others these are written first and `measures`, which marks it as done, last.

        Raises:
            FileExistsError: If it exists and `overwrite` is false.
        """
        directory = Path(directory)
        arrays: dict[str, Any] = {}
        content: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "kind": self.KIND}
        folders = _folders(type(self))
        target = directory / _REST if folders else directory
        if target.exists() and not overwrite:
            raise FileExistsError(f"directory={str(directory)!r}: exists already; overwrite=True replaces it")
        for item in fields(self):  # type: ignore[arg-type]
            value = getattr(self, item.name)
            if item.name in folders:
                if value is not None:
                    value.save(directory / folders[item.name], overwrite=True)
            elif isinstance(value, np.ndarray):
                arrays[item.name] = value
            else:
                content[item.name] = _encoded(value)
        with replacing(target) as temporary:
            temporary.mkdir()
            write_json(temporary / "result.json", content)
            np.savez(temporary / "arrays.npz", **arrays)

    @classmethod
    def load(cls, directory: str | PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no result.
            ResultError: If it is of another kind or version, or damaged.
        """
        directory = Path(directory)
        folders = _folders(cls)
        content = _read(directory / _REST if folders else directory, cls.KIND)
        hints = typing.get_type_hints(cls)
        for name, folder in folders.items():
            if name in content:
                raise ResultError(f"directory={str(directory)!r}: {name} is in result.json, not a folder")
            if (directory / folder).is_dir():
                content[name] = _result_type(hints[name]).load(directory / folder)
        lost = [name for name, hint in hints.items() if name not in content and is_array(hint)]
        if lost:  # where there was no array, null says so
            raise ResultError(f"directory={str(directory)!r}: {lost[0]} is missing")
        try:
            found: Self = made(cls, content)
        except (TypeError, ValueError, ArithmeticError, LookupError) as error:
            raise ResultError(f"directory={str(directory)!r}: fields do not fit ({error})") from error
        return found


def _read(directory: Path, kind: str) -> dict[str, Any]:
    """The fields and arrays of a directory."""
    content: dict[str, Any]
    if not (directory / "result.json").is_file():
        raise FileNotFoundError(f"directory={str(directory)!r}: holds no result.json")
    where = f"directory={str(directory)!r}"
    try:
        content = decoded(parse_json(read_text(directory / "result.json", "path")), dict[str, Any])
        arrays = read_arrays(directory / "arrays.npz", "path")
    except (TypeError, ValueError, OSError) as error:
        raise ResultError(f"{where}: unreadable result ({error})") from error
    found = (content.pop("kind", None), content.pop("schema_version", None))
    if found != (kind, SCHEMA_VERSION):
        raise ResultError(
            f"{where}: expected a result of kind {kind!r}, version {SCHEMA_VERSION}; found {short(found)}"
        )
    twice = sorted(set(content).intersection(arrays))
    if twice:
        raise ResultError(f"{where}: {twice[0]} is in both of its files")
    return content | arrays


def check_shares(result: Result, *names: str) -> None:
    """Refuse fields that are no parts of a whole; NaN is none that was measured.

    Raises:
        ResultError: Naming the field.
    """
    for name in names:
        value = getattr(result, name)
        if not (math.isnan(value) or 0 <= value <= 1):
            raise ResultError(f"{name}={value}: expected a part from 0 to 1, or NaN")


def _folders(cls: type) -> dict[str, str]:
    """Fields that are results, and the folder of each."""
    hints = typing.get_type_hints(cls)
    return {
        item.name: item.metadata.get("folder", item.name)
        for item in fields(cls)
        if _result_type(hints[item.name]) is not None
    }


def _result_type(hint: Any) -> Any:
    options = [*typing.get_args(hint), hint]
    return next((kind for kind in options if isinstance(kind, type) and issubclass(kind, Result)), None)


def _encoded(value: Any) -> Any:
    """A value as JSON takes it."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    if isinstance(value, tuple):
        return [_encoded(item) for item in value]
    return dict(value) if isinstance(value, Mapping) else value
