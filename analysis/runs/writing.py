"""Files and folders that are written whole or not at all."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """A path beside `path`, with the same ending, to make a file or a folder at.

    Unless something is raised, what was made there takes the place of `path` at the end.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}.new{path.suffix}")
    remove(temporary)  # what a killed process has left
    try:
        yield temporary
        if path.is_dir():
            shutil.rmtree(path)
        os.replace(temporary, path)  # noqa: PTH105
    finally:
        remove(temporary)


def remove(path: Path) -> None:
    """Delete a file or a folder with all that is in it, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def check_writable(path: str | PathLike[str]) -> None:
    """Find out before the work whether a file can be written there; nothing is made.

    Raises:
        ValueError: If it cannot.
    """
    path = Path(path)
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
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
