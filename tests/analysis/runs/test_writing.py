"""Whether a file could be written is known before the work."""

import os
from pathlib import Path

import pytest

from analysis.runs.writing import check_writable


def test_nothing_is_made_and_what_a_killed_process_left_goes(tmp_path: Path) -> None:
    (tmp_path / f".new.{os.getpid()}.a.csv").write_text("half")
    check_writable(tmp_path / "a.csv")
    check_writable(tmp_path / "deep" / "er" / "a.csv")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.csv").write_text("before")
    check_writable(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "before"


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    for name, reason in {"pipe.csv": "a pipe, a socket or a device", "folder.csv": "a folder"}.items():
        with pytest.raises(ValueError, match=rf"{name}'.*is {reason}, not a file"):
            check_writable(tmp_path / name)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        check_writable(tmp_path / "file" / "a.csv")
