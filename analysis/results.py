"""Results on disk: a directory of `result.json` and `arrays.npz`, written whole or not at all."""

import json
import os
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SCHEMA_VERSION = 1


class ResultError(ValueError):
    """A directory that does not hold the result that was asked for."""


def save_result(
    directory: str | PathLike[str],
    kind: str,
    fields: Mapping[str, Any],
    arrays: Mapping[str, NDArray[Any]],
    *,
    overwrite: bool = False,
) -> None:
    """Write a result to a temporary directory beside `directory` and rename it into place.

    Raises:
        FileExistsError: If `directory` exists and `overwrite` is false.
    """
    directory = Path(directory)
    if directory.exists() and not overwrite:
        raise FileExistsError(f"directory={str(directory)!r}: exists already; pass overwrite=True to replace it")
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        content = {"schema_version": SCHEMA_VERSION, "kind": kind, **fields}
        write_json(temporary / "result.json", content)
        np.savez(temporary / "arrays.npz", **arrays)  # type: ignore[arg-type]
        temporary.chmod(0o755)
        if directory.exists():
            shutil.rmtree(directory)
        os.replace(temporary, directory)  # noqa: PTH105
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_writable(path: str | PathLike[str]) -> None:
    """Find out before the work whether a file can be written there; its folder is made.

    Raises:
        ValueError: If it cannot.
    """
    path = Path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"path={str(path)!r}: cannot be written ({error})") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Whole or not at all, indented, with numbers that are not finite as Python's own reader takes them (NaN)."""
    temporary = path.with_name(path.name + ".new")
    temporary.write_text(json.dumps(content, indent=2, allow_nan=True) + "\n")
    os.replace(temporary, path)  # noqa: PTH105


def load_result(directory: str | PathLike[str], kind: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    """The fields and arrays of a result directory.

    Raises:
        FileNotFoundError: If it holds no `result.json`.
        ResultError: If it is of another kind or version, or cannot be read.
    """
    directory = Path(directory)
    if not (directory / "result.json").is_file():
        raise FileNotFoundError(f"directory={str(directory)!r}: holds no result.json")
    try:
        fields = json.loads((directory / "result.json").read_text())
        with np.load(directory / "arrays.npz", allow_pickle=False) as file:
            arrays = dict(file)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ResultError(f"directory={str(directory)!r}: unreadable result ({error})") from error
    found = (fields.pop("kind", None), fields.pop("schema_version", None))
    if found != (kind, SCHEMA_VERSION):
        raise ResultError(
            f"directory={str(directory)!r}: expected a result of kind {kind!r}, version {SCHEMA_VERSION}; found {found}"
        )
    return fields, arrays


def store_partial(path: Path, header: Mapping[str, Any], arrays: Mapping[str, Any]) -> None:
    """Write the state of an unfinished run, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    with temporary.open("wb") as file:
        np.savez(file, header=json.dumps(header), **arrays)
    os.replace(temporary, path)  # noqa: PTH105


def load_partial(path: str | PathLike[str], fingerprint: str) -> tuple[dict[str, Any], dict[str, NDArray[Any]]] | None:
    """Header and arrays that `store_partial` wrote; None without a readable file of the run with this fingerprint."""
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        header: dict[str, Any] = json.loads(str(arrays.pop("header")))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    return (header, arrays) if header.get("fingerprint") == fingerprint else None
