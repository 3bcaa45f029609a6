"""Text from users and for them: files of a known encoding, names that can be written, lists that stay short."""

import codecs
import os
from collections.abc import Collection
from itertools import islice
from os import PathLike
from pathlib import Path

_MARKS = ((codecs.BOM_UTF32_LE, "UTF-32"), (codecs.BOM_UTF16_LE, "UTF-16"), (codecs.BOM_UTF16_BE, "UTF-16"))


def read_text(path: str | PathLike[str], argument: str) -> str:
    """A text file in UTF-8, with or without a byte-order mark, its ends of lines as they are.

    Raises:
        FileNotFoundError: If there is no such file; the message begins with `argument`.
        ValueError: If it is in another encoding, which the message names as far as it can be told.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{argument}={str(path)!r}: no such file")
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


def printable(name: str | PathLike[str]) -> str:
    r"""A file's name as text that can be written anywhere: bytes that are no UTF-8 become `\xe9` and the like."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def few(names: Collection[str], most: int = 3) -> str:
    """The first names of a list, and how many there are if these are not all."""
    rest = f", ... ({len(names)} in all)" if len(names) > most else ""
    return ", ".join(islice(names, most)) + rest
