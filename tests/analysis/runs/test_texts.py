import codecs
import os
from pathlib import Path

import pytest

from analysis.runs.texts import few, printable, read_text

TEXT = "ring/é.png,ring\r\nstar.png,star\n"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_text_in_utf_8_with_or_without_a_mark(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(TEXT.encode(encoding))
    assert read_text(path, "labels") == TEXT


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (TEXT.encode("utf-16"), "not UTF-16$"),
        (codecs.BOM_UTF16_BE + TEXT.encode("utf-16-be"), "not UTF-16$"),
        (TEXT.encode("utf-32"), "not UTF-32$"),
        (TEXT.encode("utf-16-le"), r"not UTF-16 \(without a mark\)"),
        (("a,b\n" + TEXT).encode("latin-1"), r"not Latin-1 or another encoding \(byte 0xe9 in line 2\)"),
    ],
)
def test_another_encoding_is_named_with_the_file(tmp_path: Path, content: bytes, named: str) -> None:
    path = tmp_path / "labels.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=rf"^labels='.*labels\.csv': expected text in UTF-8, {named}"):
        read_text(path, "labels")
    with pytest.raises(FileNotFoundError, match=r"^labels='.*none': no such file"):
        read_text(tmp_path / "none", "labels")


def test_lists_stay_short_and_names_can_be_written() -> None:
    assert few([]) == ""
    assert few(["a", "b", "c"]) == "a, b, c"
    assert few(list(map(str, range(1000)))) == "0, 1, 2, ... (1000 in all)"
    assert printable(Path("fünf") / "[x].png") == "fünf/[x].png"
    assert printable(os.fsdecode(b"caf\xe9.png")) == r"caf\xe9.png"
