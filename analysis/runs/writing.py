"""Files and folders that are written whole or not at all; see `replknet.checkpoints.writing`."""

import json
import math
import tempfile
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from analysis.runs.texts import why_no_file
from replknet.checkpoints.writing import clear_leftovers, is_unfinished, remove, replacing, scratch_folder

__all__ = [
    "check_writable",
    "clear_leftovers",
    "is_unfinished",
    "plain",
    "remove",
    "replacing",
    "scratch_folder",
    "write_json",
]


def check_writable(path: str | PathLike[str]) -> None:
    """Find out before the work whether a file can be written there; nothing is made.

    What a killed process has left of the file goes.

    Raises:
        ValueError: If it cannot.
    """
    path = Path(path)
    reason = why_no_file(path) if path.exists() else ""
    if reason:
        raise ValueError(f"path={str(path)!r}: is {reason}")
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        clear_leftovers(path.parent, of=path.name)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"path={str(path)!r}: cannot be written ({error})") from error


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Indented; see `plain`."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(plain(content), indent=2, allow_nan=False) + "\n")


def plain(content: Any) -> Any:
    """What a reader of JSON gets back, in which numbers that are not finite are "NaN", "Infinity" and "-Infinity"."""
    if isinstance(content, Mapping):
        return {str(key): plain(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [plain(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return json.dumps(float(content))
    return content
