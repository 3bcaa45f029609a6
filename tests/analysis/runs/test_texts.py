import codecs
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from analysis.runs.texts import few, parse_json, parse_toml, printable, read_text, short, why_no_file

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


def test_what_is_no_file_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a socket's name must be short
    (tmp_path / "file").touch()
    os.mkfifo("pipe")
    Path("circle").symlink_to("circle")
    Path("nowhere").symlink_to("nothing")
    Path("to-pipe").symlink_to("pipe")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket")
        other = "a pipe, a socket or a device, not a file"
        expected = {
            "file": "",
            "pipe": other,
            "to-pipe": other,
            "socket": other,
            "/dev/zero": other,
            "/dev/null": other,
        }
        expected |= {
            ".": "a folder, not a file",
            "nowhere": "no such file",
            "none": "no such file",
            "a\0b": "no such file",
        }
        assert {name: why_no_file(name) for name in expected} == expected
    for name, reason in (("circle", "symbolic links"), ("file/below", "directory"), ("x" * 999, "too long")):
        assert why_no_file(name).startswith("cannot be read (")
        assert reason in why_no_file(name)
    with pytest.raises(FileNotFoundError, match=r"^recipe='pipe': a pipe"):
        read_text("pipe", "recipe")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "nested too deeply"),
        ("[" * 100 + "]" * 100, "nested too deeply"),
        ('{"a":' * 60 + "1" + "}" * 60, "nested too deeply"),
        ('{"a": 1, "b": {"c": 1, "c": 2}}', "'c' is there twice"),
        (r'["\ud800"]', "surrogates not allowed"),
        (r'{"\ud800": 1}', "surrogates not allowed"),
        ("9" * 5000, "digits"),
        ("{'a': 1}", "double quotes"),
        ("", "Expecting value"),
    ],
)
def test_json_that_is_none_is_a_value_error(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        parse_json(text)


def test_json_and_toml_that_are_some() -> None:
    content: Any = {"a": [1, 2.5, None, {"b": "é😀"}], "name of a file": "caf\udce9", "far": float("inf")}
    assert (
        parse_json(r'{"a": [1, 2.5, null, {"b": "é\ud83d\ude00"}], "name of a file": "caf\udce9", "far": 1e400}')
        == content
    )
    assert parse_toml("a = [1]") == {"a": [1]}
    for wrong in ("a = " + "[" * 100_000, "a = 1\na = 2", "a = " + "9" * 5000, "a"):
        with pytest.raises(ValueError, match=r"nested too deeply|overwrite|digits|Expected|after a key"):
            parse_toml(wrong)


def test_values_are_shown_short() -> None:
    assert short("a") == "'a'"
    for value in ("x" * 10**6, list(range(10**5)), {"a": ["b" * 10**5]}, 10**4000):
        assert len(short(value)) < 200
