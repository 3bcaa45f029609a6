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

from analysis.runs.writing import write_json

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
