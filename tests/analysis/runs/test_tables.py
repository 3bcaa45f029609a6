"""Tables as CSV, by files as others write them and by text that a spreadsheet would run."""

import csv
import io
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.runs.tables import read_lines, read_table, write_table

FORMULAS = ["=cmd()", "+1", "-1", "@SUM(A1)", "\tx", "\rx", "\nx", "=", "-foo", "=x"]
PLAIN = ["a", "a-b", "", "1", "'", "'a", "a,b", 'say "no"', "two\nlines", "two\rlines", " é", "1-1"]


def written(table: pd.DataFrame, index: bool = False) -> str:
    file = io.StringIO(newline="")
    write_table(table, file, index=index)
    return file.getvalue()


@pytest.mark.parametrize("name", FORMULAS)
def test_text_that_is_a_formula_gets_an_apostrophe_wherever_it_stands(name: str) -> None:
    table = pd.DataFrame({name: [name, "b"], "number": [-1, -2.5]}, index=pd.Index([name, "c"], name="row"))
    header, first, second = csv.reader(io.StringIO(written(table, index=True), newline=""))
    assert header == ["row", f"'{name}", "number"]
    assert first == [f"'{name}", f"'{name}", "-1.0"]
    assert second == ["c", "b", "-2.5"]


@given(st.one_of(st.sampled_from(FORMULAS + PLAIN), st.text()))
def test_every_name_comes_back(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    name = f"'{name}".replace("\0", "").encode("utf-8", "ignore").decode().strip() or "a"
    for own in (name, name.lstrip("'").strip() or "a"):
        path = tmp_path_factory.mktemp("table") / "a.csv"
        write_table(pd.DataFrame({own: [own], "other": ["x"]}), path)
        lines = [line.cells for line in read_lines(path, "table")]
        assert lines == [(own, "other"), (own, "x")]
        with path.open(newline="", encoding="utf-8") as file:
            cell = next(csv.reader(file))[0]
        assert not cell.startswith(("=", "+", "-", "@", "\t", "\r"))


def test_all_else_is_written_as_pandas_writes_it(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {
            "name": ["a,b", 'say "no"', None],
            "float": [0.1, np.nan, 1e-7],
            "large": [1e300, np.inf, -123456789.123],
            "whole": [1, -2, 3],
            "bool": [True, False, True],
            "mixed": [1, "x", 2.5],
        }
    )
    assert written(table) == table.to_csv(index=False, lineterminator="\n")
    counts = pd.DataFrame(np.eye(2, dtype=int), pd.Index(["a", "b"], name="right"), pd.Index(["c", "d"], name="answer"))
    assert written(counts, index=True) == counts.to_csv(lineterminator="\n")
    numbers = table[["float", "whole"]]
    write_table(numbers, tmp_path / "a.csv", float_format="%.6g")
    assert (tmp_path / "a.csv").read_text() == numbers.to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_table(pd.DataFrame({"a": [os.fsdecode(b"caf\xe9")]}), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "a\ncaf\\udce9\n"


@pytest.mark.parametrize(
    "content",
    ["a,b\n1,2\n", "\ufeffa,b\n1,2", "a,b\r\n\r\n1, 2\r\n", "a,b\r1,2\r", '"a","b"\n"1","2"\n', "c,b,a\n3,2,1\n"],
)
def test_files_as_programs_write_them(content: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content.encode())
    ((_, cells),) = read_table(tmp_path / "a.csv", "labels", ("a", "b"))
    assert (cells["a"], cells["b"]) == ("1", "2")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a,b\n1," + b"x" * 200_000 + b"\n", r"line 2: no CSV \(field larger than field limit"),
        (b'a,b\n1,2\n"3,4\n5,6\n', r"line 4: no CSV \(unexpected end of data\)"),
        (b'a,b\n"1"x,2\n', "line 2: no CSV"),
        (b"a,b\n1,\x002\n", "expected text in UTF-8, not UTF-16"),
        (b"a,b\n1,\xff\n", "line 2"),
        (b"a,b\n1,2\n3\n", "line 3: 1 of 2 fields; is the file cut off"),
        (b"a,b\n1,2,3\n", "line 2: 3 of 2 fields"),
        (b"a;b\n1;2\n", "no column a; expected a,b"),
        (b"a,c\n1,2\n", "no column b"),
        (b"a,b,a\n1,2,3\n", "2 columns a; expected a,b"),
        (b"", "no column a"),
        (b"\n\n", "no column a"),
    ],
)
def test_damage_is_named_with_the_line(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(ValueError, match=rf"^labels='.*a\.csv'.*{message}") as raised:
        list(read_table(tmp_path / "a.csv", "labels", ("a", "b")))
    assert len(str(raised.value)) < 300


def test_only_a_last_line_without_an_end_may_be_cut(tmp_path: Path) -> None:
    for content, expected in (("a\nb", [False, True]), ("a\nb\n", [False, False]), ("a\u2028b\nb", [False, True])):
        (tmp_path / "a.csv").write_text(content, encoding="utf-8")
        assert [line.is_cut for line in read_lines(tmp_path / "a.csv", "labels")] == expected
    with pytest.raises(FileNotFoundError, match="a folder, not a file"):
        list(read_lines(tmp_path, "labels"))
