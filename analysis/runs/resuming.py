"""The state of an unfinished measurement on disk."""

import json
import os
import zipfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


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
