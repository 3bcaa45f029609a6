"""Results on disk: every subclass of `Result`, however many there are, with changed JSON and changed arrays."""

import dataclasses
import functools
import io
import json
import os
import pkgutil
import shutil
import types
import typing
import zipfile
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any, Literal

import numpy as np

import analysis
from analysis import ResultError
from analysis.receptive_field.measures import moments_about, ring_sums
from analysis.runs.results import Result
from tests.fuzz.engine import Case, WrongError, family
from tests.fuzz.mutating import INTERESTING, mutated_bytes, mutated_json, mutated_zip, rewritten_zip

_REFUSALS = (ResultError, FileNotFoundError)
_LENGTH = 3
"""Of every tuple and first axis of an example."""
_MAP, _CENTER = np.arange(1.0, 19.0).reshape(_LENGTH, 6), (1.0, 2.5)
_VALUES: dict[str, Any] = {
    "mean_map": _MAP,
    "center": _CENTER,
    "unit": (0, 0),
    "ring_sums": np.tile(ring_sums(_MAP, _CENTER), (_LENGTH, 1)),
    "moments": np.tile(moments_about(_MAP, _CENTER), (_LENGTH, 1)),
    "labels": np.array([0, 1, 2]),
    "best": np.tile(np.arange(3), (3, 1)),
    "categories": ("bird", "cat", "dog"),
    "stimuli": ("cat1-dog1.png", "cat2-bird1.png", "dog1-bird2.png"),
    "shapes": ("cat", "cat", "dog"),
    "textures": ("dog", "bird", "bird"),
    "responses": ("cat", "bird", "dog"),
    "logits": np.eye(3, dtype=np.float32),
    "mapping": analysis.LabelMapping.from_dict({0: "bird", 1: "cat", 2: "dog"}, 3),
    "balances": (-1.0, 0.0, 1.0),
    "kernel_sizes": (5, 3, 3),
    "settings": {"config": {"channels": [8, 8, 8]}},
    "num_shape": (1, 1, 2),
    "num_texture": (2, 1, 0),
    "num_conflict": 3,
    "accuracy": 0.5,
}
"""What an example needs where its type does not say it, by the name of the field."""


@functools.cache
def kinds() -> tuple[type[Result], ...]:
    """All classes of results that the library has."""
    for module in pkgutil.walk_packages(analysis.__path__, "analysis."):
        import_module(module.name)

    def below(kind: Any) -> Iterator[type[Result]]:
        for own in kind.__subclasses__():
            yield own
            yield from below(own)

    return tuple(sorted({kind for kind in below(Result) if kind.__module__.startswith("analysis.")}, key=str))


def example(hint: Any, name: str = "") -> Any:
    """A value of a type."""
    if name in _VALUES:
        return _VALUES[name]
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return example(next(option for option in options if option is not type(None)))
    if origin is Literal:
        return options[0]
    if origin is tuple:
        parts = options[:1] * _LENGTH if options[-1] is Ellipsis else options
        return tuple(example(part) for part in parts)
    if origin is np.ndarray or hint is np.ndarray:
        return np.arange(1.0, 1 + 6 * _LENGTH).reshape(_LENGTH, 6)
    if origin in (dict, Mapping) or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return {}
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        needed = [
            item
            for item in dataclasses.fields(hint)
            if item.name in _VALUES or item.default == () or item.default is dataclasses.MISSING is item.default_factory
        ]
        return typing.cast(Any, hint)(**{item.name: example(hints[item.name], item.name) for item in needed})
    return {str: "a", int: 1, float: 1.0, bool: True}[hint]


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type, all the way down."""
    origin, options = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in options)
    if origin is Literal:
        return value in options
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        if options[-1] is Ellipsis:
            return all(_fits(item, options[0]) for item in value)
        return len(value) == len(options) and all(map(_fits, value, options))
    if origin is np.ndarray or hint is np.ndarray:
        return isinstance(value, np.ndarray) and value.dtype.kind in "fiu"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            _fits(key, options[0]) and _fits(v, options[1]) for key, v in value.items()
        )
    if dataclasses.is_dataclass(hint):
        return isinstance(value, typing.cast(type, hint)) and _misfit(value) is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    return isinstance(value, hint) and (hint is bool or not isinstance(value, bool))


def _misfit(value: Any) -> str | None:
    """In words, the first field of a dataclass whose value is of another type."""
    hints = typing.get_type_hints(type(value))
    for item in dataclasses.fields(value):
        if not _fits(getattr(value, item.name), hints[item.name]):
            own = getattr(value, item.name)
            inner = _misfit(own) if dataclasses.is_dataclass(own) else None
            return f"{item.name}: {inner}" if inner else f"{item.name}={str(own)[:60]!r} is no {hints[item.name]}"
    return None


def _use(kind: type[Result], directory: Path) -> Result:
    """Load, and do what a user does next."""
    result = kind.load(directory)
    misfit = _misfit(result)
    if misfit:
        raise WrongError(f"loads, although {misfit}")
    repr(result)
    result._repr_html_()
    for method in ("row", "summary", "table", "decisions"):
        if hasattr(result, method):
            getattr(result, method)()
    return result


def change_arrays(random: Random, content: bytes) -> tuple[bytes, str]:
    """An archive of arrays with other ones, other headers or other bytes, and what was done."""
    kind = random.randrange(4)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.namelist()
    if kind == 1 or not members:
        return mutated_bytes(random, content), "bytes"
    if kind == 0:
        return mutated_zip(random, content)
    chosen = random.choice(members)
    if kind == 2:
        array = random.choice(
            (
                np.zeros(0), np.zeros((3, 6), complex), np.array(["a", "b", "c"]), np.full((3, 6), np.nan),
                np.zeros(()), np.zeros((3, 6), bool), np.full((3, 6), 10**6), np.full((3, 6), -7), np.full(3, 99),
                np.full((3, 5), -1), np.zeros((6, 3)), np.zeros((0, 6)), np.zeros((3, 0)), np.zeros((2, 6)),
                np.array(["NaT"], "M8[s]"),
            )
        )  # fmt: skip
        stream = io.BytesIO()
        np.lib.format.write_array(stream, array)
        made, what = stream.getvalue(), f"{array.dtype} {array.shape}"
    else:
        shape = tuple(abs(random.choice(INTERESTING)) for _ in range(random.randrange(3)))
        dtype = random.choice(("<f8", "|O", "<U1000000000", "|V2147483647", "<f4", "|S0", "no", "<m8[s]"))
        header = random.choice(
            (f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}", "{" * 5000, "0", "")
        )
        padded = header.encode().ljust(118) + b"\n"
        made = b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + bytes(64)
        what = f"header {header[:80]}"
    return rewritten_zip(content, lambda name, member: (name, made if name == chosen else member)), f"{chosen}: {what}"


def _change_files(random: Random, directory: Path) -> str:
    file = random.choice([path for path in directory.rglob("*") if path.is_file()])
    file.unlink()
    kind = random.randrange(5)
    if kind == 1:
        file.mkdir()
    elif kind == 2:
        file.symlink_to(file)
    elif kind == 3:
        os.mkfifo(file)
    elif kind == 4:
        shutil.rmtree(file.parent)
        file.parent.write_bytes(b"")
    what = ("missing", "a folder", "a link to itself", "a pipe", "in a file")[kind]
    return f"{file.relative_to(directory)} {what}"


@family()
def result_files(random: Random, folder: Path) -> Case:
    """A result with a changed file says so, or is one of the right types that can be used."""
    kind = random.choice(kinds())
    directory = folder / "result"
    example(kind).save(directory)
    chance = random.random()
    if chance < 0.15:
        what = _change_files(random, directory)
    elif chance < 0.6:
        file = random.choice(sorted(directory.rglob("result.json")))
        content, what = mutated_json(random, file.read_bytes())
        file.write_bytes(content)
    else:
        file = random.choice(sorted(directory.rglob("arrays.npz")))
        content, what = change_arrays(random, file.read_bytes())
        file.write_bytes(content)
    return Case(f"{kind.__name__}, {what}", lambda: _use(kind, directory), _REFUSALS)


@family()
def result_arrays(random: Random, folder: Path) -> Case:
    """No changed byte of the arrays, which have checksums, changes a value."""
    kind = random.choice(kinds())
    directory = folder / "result"
    made = example(kind)
    made.save(directory)
    file = random.choice(sorted(directory.rglob("arrays.npz")))
    file.write_bytes(mutated_bytes(random, file.read_bytes()))

    def same(one: Any, other: Any) -> bool:
        if isinstance(one, np.ndarray):
            return bool(one.dtype == other.dtype and np.array_equal(one, other))
        if dataclasses.is_dataclass(one):
            return all(same(getattr(one, item.name), getattr(other, item.name)) for item in dataclasses.fields(one))
        return json.dumps(one, default=str) == json.dumps(other, default=str)

    def run() -> None:
        if not same(_use(kind, directory), made):
            raise WrongError("other values, although the archive has checksums")

    return Case(f"{kind.__name__}, other bytes of {file.relative_to(directory)}", run, _REFUSALS)
