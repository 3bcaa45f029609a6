"""Tables as CSV: one way to write all of them, and one to read them.

Spreadsheets take text that begins with =, +, -, @ or the like for a formula. Such text is written with an apostrophe
before it, which a spreadsheet does not show, and is read without; numbers stay numbers.
"""

import csv
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TextIO

import pandas as pd

from analysis.runs.texts import read_text

_FORMULA = re.compile(r"'*[=+\-@\t\r\n＝＋－＠]")  # noqa: RUF001
"""Text that gets an apostrophe, and so, to be told apart from it, text that has some before the same.

References:
    OWASP, "CSV Injection".
"""
_QUOTED = re.compile(r'[,"\r\n]')


@dataclass(frozen=True)
class Line:
    """A line of a table.

    Args:
        where: File and number, to begin a message with.
        cells: The text in it, without white space around it.
        is_cut: Whether the file ends in it.
    """

    where: str
    cells: tuple[str, ...]
    is_cut: bool


def read_lines(path: str | PathLike[str], argument: str) -> Iterator[Line]:
    """The lines of a CSV in UTF-8 that are not empty.

    Raises:
        FileNotFoundError: If there is no such file; the message begins with `argument`.
        ValueError: If it is no text in UTF-8, or quotes are not closed, or a field is longer than 128 kB.
    """
    text = read_text(path, argument)
    file = io.StringIO(text, newline="")
    rows = csv.reader(file, strict=True, skipinitialspace=True)
    where = f"{argument}={str(path)!r}"
    while True:
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            raise ValueError(f"{where}, line {rows.line_num}: no CSV ({error})") from None
        cells = tuple(_original(cell.strip()) for cell in row)
        if any(cells):
            is_cut = file.tell() == len(text) and not text.endswith(("\n", "\r"))
            yield Line(f"{where}, line {rows.line_num}", cells, is_cut)


def read_table(
    path: str | PathLike[str], argument: str, columns: Sequence[str]
) -> Iterator[tuple[Line, dict[str, str]]]:
    """The lines of a CSV with a header, and their cells by column.

    Args:
        path: The file.
        argument: That messages begin with.
        columns: That it must have; others may be there, too.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: As `read_lines`; if a column is missing or there twice, or a line has another number of cells.
    """
    lines = read_lines(path, argument)
    header = next(lines, Line("", (), False)).cells
    wrong = [name for name in columns if header.count(name) != 1]
    if wrong:
        what = f"{header.count(wrong[0])} columns" if wrong[0] in header else "no column"
        raise ValueError(f"{argument}={str(path)!r}: {what} {wrong[0]}; expected {','.join(columns)}")
    for line in lines:
        if len(line.cells) != len(header):
            raise ValueError(f"{line.where}: {len(line.cells)} of {len(header)} fields; is the file cut off?")
        yield line, dict(zip(header, line.cells, strict=True))


def write_rows(file: TextIO, rows: Iterable[Sequence[Any]], float_format: str = "") -> None:
    """Lines of a CSV; numbers that are missing are empty cells."""
    for row in rows:
        file.write(",".join(_cell(value, float_format) for value in row) + "\n")


def write_table(
    table: pd.DataFrame, target: str | PathLike[str] | TextIO, *, index: bool = False, float_format: str = ""
) -> None:
    """A table with its header as CSV in UTF-8.

    Args:
        table: What to write.
        target: A path, of which a file is replaced, or an open file.
        index: The labels of the rows are the first column.
        float_format: Of floating-point numbers, such as "%.6g"; by default all their digits.
    """
    whole = table.reset_index() if index else table
    rows = [tuple(whole.columns), *whole.itertuples(index=False, name=None)]
    if isinstance(target, (str, PathLike)):
        with Path(target).open("w", newline="", encoding="utf-8", errors="backslashreplace") as file:
            write_rows(file, rows, float_format)
    else:
        write_rows(target, rows, float_format)


def _cell(value: Any, float_format: str) -> str:
    if not isinstance(value, str):
        if pd.isna(value):
            return ""
        return float_format % value if float_format and isinstance(value, float) else str(value)
    text = f"'{value}" if _FORMULA.match(value) else value
    return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


def _original(text: str) -> str:
    """What `_cell` made the text from."""
    return text[1:] if text.startswith("'") and _FORMULA.match(text) else text
