"""Text from users and for them: files of a known encoding and form, names that can be written, short lists."""

import codecs
import json
import os
import reprlib
import stat
import tomllib
from collections.abc import Callable, Collection, Sequence
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any

_MARKS = ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"))
_DEEPEST = 50
"""Levels of lists and objects in each other."""
_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80


def why_no_file(path: str | PathLike[str]) -> str:
    """What stands in the way of reading a file to its end, in words; empty for a file.

    To open a pipe would wait for whoever writes to it, and a device such as /dev/zero has no end.
    """
    try:
        mode = os.stat(path).st_mode  # noqa: PTH116
    except (FileNotFoundError, ValueError):  # the latter of a name with a zero byte
        return "no such file"
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    if stat.S_ISREG(mode):
        return ""
    return "a folder, not a file" if stat.S_ISDIR(mode) else "a pipe, a socket or a device, not a file"


def check_file(path: str | PathLike[str], argument: str) -> None:
    """Refuse what is no file.

    Raises:
        FileNotFoundError: Beginning with `argument`.
    """
    reason = why_no_file(path)
    if reason:
        raise FileNotFoundError(f"{argument}={str(path)!r}: {reason}")


def read_text(path: str | PathLike[str], argument: str) -> str:
    """A text file in UTF-8, with or without a byte-order mark, its ends of lines as they are.

    Raises:
        FileNotFoundError: If there is no such file; the message begins with `argument`.
        ValueError: If it is in another encoding, which the message names as far as it can be told.
    """
    check_file(path, argument)
    content = Path(path).read_bytes()
    found = next((name for mark, name in _MARKS if content.startswith(mark)), "")
    if not found and 0 in content:
        found = "UTF-16 (without a mark) or a file of another kind"
    if not found:
        try:
            return content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            found = f"Latin-1 or another encoding (byte 0x{content[error.start]:02x} in line {line})"
    raise ValueError(f"{argument}={str(path)!r}: expected text in UTF-8, not {found}")


def parse_json(text: str) -> Any:
    """What JSON holds.

    Raises:
        ValueError: If it is none, nested too deeply, names something twice, or has a text that cannot be encoded.
    """
    content = _parsed(json.loads, text, object_pairs_hook=_without_twins)
    _check_content(content)
    return content


def parse_toml(text: str) -> dict[str, Any]:
    """What TOML holds.

    Raises:
        ValueError: If it is none, or nested too deeply.
    """
    content: dict[str, Any] = _parsed(tomllib.loads, text)
    return content


def _parsed(parse: Callable[..., Any], text: str, **options: Any) -> Any:
    try:
        return parse(text, **options)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _without_twins(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    content: dict[str, Any] = {}
    for name, value in pairs:
        if name in content:
            raise ValueError(f"{short(name)} is there twice")
        content[name] = value
    return content


def _check_content(value: Any, depth: int = 0) -> None:
    """Refuse what would fail later: where it is copied or shown level by level, and where text is written."""
    if depth > _DEEPEST:
        raise ValueError("nested too deeply")
    if isinstance(value, str):
        value.encode("utf-8", "surrogateescape")  # halves of a character, but those that stand for bytes of a name
    elif isinstance(value, (dict, list)):
        for item in value:
            _check_content(item, depth + 1)
        if isinstance(value, dict):
            _check_content(list(value.values()), depth)


def short(value: Any) -> str:
    """A value as Python writes it, cut where it is long."""
    return _SHORT.repr(value)


def printable(name: str | PathLike[str]) -> str:
    r"""A file's name as text that can be written anywhere: bytes that are no UTF-8 become `\xe9` and the like."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def few(names: Collection[str], most: int = 3, *, between: str = ", ") -> str:
    """The first names of a list, and how many there are if these are not all."""
    rest = f"{between}... ({len(names)} in all)" if len(names) > most else ""
    return between.join(islice(names, most)) + rest
