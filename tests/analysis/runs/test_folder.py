"""The folder of a run: what it refuses, what it records, what it removes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.runs.folder import RUN_FILE, RunFolder, folder_name, folder_names
from analysis.runs.identity import commit
from analysis.runs.writing import replacing, write_json


def record(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / RUN_FILE).read_text())
    return content


def test_what_is_written_is_recorded_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = RunFolder.claim(out, "erf", {"size": (3, 4)}, command_line="replknet erf --size '3 4'")
    assert record(out)["outputs"] == []
    with folder.replace("table.csv") as path:
        assert record(out)["outputs"] == ["table.csv"]  # before it appears
        path.write_text("a,b\n")
    folder.add("state.npz").write_text("unfinished")
    assert record(out)["outputs"] == ["state.npz", "table.csv"]
    (out / "state.npz").unlink()
    folder.close()
    content = record(out)
    assert content["outputs"] == ["table.csv"]
    assert content["settings"] == {"size": [3, 4]}
    (call,) = content["calls"]
    assert call["command_line"] == "replknet erf --size '3 4'"
    assert {"python", "torch", "replknet"} <= set(call["versions"])
    assert call["commit"] == commit()
    assert call["date"][:2] == "20"


def test_the_same_run_goes_on_and_another_one_asks(tmp_path: Path) -> None:
    out = tmp_path / "out"
    RunFolder.claim(out, "erf", {"size": 3}).add("a.csv").write_text("a")
    RunFolder.claim(out, "erf", {"size": 3})
    assert (out / "a.csv").is_file()
    assert len(record(out)["calls"]) == 2
    with pytest.raises(ValueError, match=r"out=.*holds another run, which differs in size; choose another folder"):
        RunFolder.claim(out, "erf", {"size": 4})
    with pytest.raises(ValueError, match="holds results of something else"):
        RunFolder.claim(out, "shape-bias", {"size": 3}, overwrite=True)
    old = record(out) | {"schema_version": 2}
    write_json(out / RUN_FILE, old)
    with pytest.raises(ValueError, match="differs in size, and was made by a former version, which named"):
        RunFolder.claim(out, "erf", {"size": 4})
    RunFolder.claim(out, "erf", {"size": 3})  # one of a former version goes on
    assert record(out)["schema_version"] == 3


def test_overwriting_removes_what_was_written_and_no_more(tmp_path: Path) -> None:
    out = tmp_path / "out"
    folder = RunFolder.claim(out, "erf", {"size": 3})
    for name in ("a.csv", "kept.npz"):
        folder.add(name).write_text(name)
    (folder.add("result") / "inner").mkdir(parents=True)
    (out / "notes.txt").write_text("mine")
    outside = tmp_path / "thesis.tex"
    outside.write_text("years of work")
    write_json(out / RUN_FILE, record(out) | {"outputs": [*record(out)["outputs"], "../thesis.tex"]})
    RunFolder.claim(out, "erf", {"size": 4}, overwrite=True, keep=["kept.npz"])
    assert {path.name for path in out.iterdir()} == {"kept.npz", "notes.txt", RUN_FILE}
    assert outside.read_text() == "years of work"
    again = RunFolder.claim(out, "erf", {"size": 4})
    with pytest.raises(ValueError, match=r"notes\.txt is not of this command"):
        again.add("notes.txt")


def test_a_folder_or_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ValueError, match="out="):
            RunFolder.claim(path, "erf", {}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert RunFolder.existing(tmp_path) is None


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../beside.txt", "inner/../..", "inner/a.txt", "x" * 300, "\0", 3, None]
)
def test_nothing_is_removed_that_no_run_can_have_written(tmp_path: Path, name: Any) -> None:
    out = tmp_path / "out"
    with RunFolder.claim(out, "erf", {"size": 64}).replace("table.csv") as path:
        path.write_text("1")
    (out / "inner").mkdir()
    for file in (tmp_path / "beside.txt", out / "mine.txt", out / "inner" / "a.txt"):
        file.write_text("kept")
    (out / RUN_FILE).write_text(json.dumps(record(out) | {"outputs": [name, "table.csv"]}))
    RunFolder.claim(out, "erf", {"size": 32}, overwrite=True).close()
    assert record(out)["outputs"] == []
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["a.txt", "beside.txt", "mine.txt", "run.json"]


@pytest.mark.parametrize(
    "change", [{"outputs": "a"}, {"settings": "none"}, {"schema_version": "3"}, {"calls": {}}, None]
)
def test_a_damaged_record_is_no_record(tmp_path: Path, change: dict[str, Any] | None) -> None:
    out = tmp_path / "out"
    RunFolder.claim(out, "erf", {"size": 64})
    (out / RUN_FILE).write_text("[" * 100_000 if change is None else json.dumps(record(out) | change))
    for size in (64, 32):
        with pytest.raises(ValueError, match="holds results of something else"):
            RunFolder.claim(out, "erf", {"size": size}, overwrite=True)
    assert RunFolder.existing(out) is None


def test_names_of_folders() -> None:
    assert folder_name("timm/ResNet 50, layer1") == "timm-ResNet-50-layer1"
    with pytest.raises(ValueError, match="no letter or digit"):
        folder_name("../..")
    with pytest.raises(ValueError, match="two results would be called 'a-b'"):
        folder_names(["a/b", "a b"])
    for reserved in ("run.json", "tables"):
        with pytest.raises(ValueError, match="two results would be called"):
            folder_names([reserved], reserved=["tables"])


def test_a_failure_leaves_the_file_and_the_folder_as_they_were(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("before")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.txt") as path:
        path.write_text("half")
        raise RuntimeError
    with replacing(tmp_path / "folder") as path:
        path.mkdir()
        (path / "one").write_text("1")
    with replacing(tmp_path / "folder") as path:  # a folder takes the place of one with other files
        path.mkdir()
        (path / "two").write_text("2")
    assert (tmp_path / "a.txt").read_text() == "before"
    assert [file.name for file in (tmp_path / "folder").iterdir()] == ["two"]
    assert {file.name for file in tmp_path.iterdir()} == {"a.txt", "folder"}


def test_what_a_killed_process_left_is_in_nobodys_way(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from analysis.runs.writing import replacing\n"
        "with replacing(Path(sys.argv[1])) as path: path.write_text('half'); os.kill(os.getpid(), 9)"
    )
    root = str(Path(__file__).parents[3])
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "a.txt")], cwd=root, check=False)
    assert len(list(tmp_path.iterdir())) == 1
    with replacing(tmp_path / "a.txt") as path:
        path.write_text("whole")
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a.txt", "whole")]
