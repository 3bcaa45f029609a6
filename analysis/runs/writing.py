"""Files that are written whole or not at all."""

import json
import os
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any


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
