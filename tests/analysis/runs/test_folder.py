"""The folder of a run: what it refuses, what it records, what it removes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from analysis.runs.folder import FORMER, RUN_FILE, RunFolder, folder_name, folder_names
from analysis.runs.identity import commit
from analysis.runs.locking import LOCK_FILE
from analysis.runs.writing import write_json


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
    for name in ("linked", "linked.csv"):
        target = tmp_path / f"target of {name}"
        target.mkdir()
        (target / "thesis.tex").write_text("years of work")
        folder.add(name).symlink_to(target)
    folder.close()
    again = RunFolder.claim(out, "erf", {"size": 4}, overwrite=True, keep=["kept.npz"])
    with pytest.raises(ValueError, match=r"notes\.txt is not of this command"):
        again.add("notes.txt")
    again.close()
    assert {path.name for path in out.iterdir()} == {"kept.npz", "notes.txt", RUN_FILE}
    assert len(list(tmp_path.glob("target of */thesis.tex"))) == 2


@pytest.mark.parametrize(
    "name",
    ["..", ".", "", "../thesis.tex", "inner/..", "/", RUN_FILE, LOCK_FILE, "a\0b", "a\\b", "a" * 250, 3, None, ["a"]],
)
def test_a_name_that_no_run_writes_removes_nothing(tmp_path: Path, name: object) -> None:
    out = tmp_path / "out"
    folder = RunFolder.claim(out, "erf", {"size": 3})
    folder.add("a.csv").write_text("a")
    folder.close()
    (tmp_path / "thesis.tex").write_text("years of work")
    write_json(out / RUN_FILE, record(out) | {"outputs": ["a.csv", name]})
    for overwrite in (False, True):
        with pytest.raises(
            ValueError, match=r"run\.json is damaged \('outputs': .* is no name of something in the folder"
        ):
            RunFolder.claim(out, "erf", {"size": 4}, overwrite=overwrite)
    assert {path.name for path in out.iterdir()} == {RUN_FILE, "a.csv"}
    assert (tmp_path / "thesis.tex").is_file()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "null", "{", "[" * 100_000, "\ud800", '{"command": 3}', '{"command": "erf", "calls": {}}', "\0"],
)
def test_a_damaged_record_is_told(tmp_path: Path, content: str) -> None:
    (tmp_path / RUN_FILE).write_bytes(content.encode(errors="surrogatepass"))
    for overwrite in (False, True):
        with pytest.raises(ValueError, match=r"out=.*run\.json is damaged \("):
            RunFolder.claim(tmp_path, "erf", {}, overwrite=overwrite)
    with pytest.raises(ValueError, match="damaged"):
        RunFolder.existing(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [RUN_FILE]


def test_what_a_killed_first_write_left_is_in_nobodys_way(tmp_path: Path) -> None:
    (tmp_path / ".new.1.run.json").write_text("{")
    (tmp_path / LOCK_FILE).write_text("")
    RunFolder.claim(tmp_path, "erf", {}).close()
    assert [path.name for path in tmp_path.iterdir()] == [RUN_FILE]


def test_a_run_is_kept_until_the_one_that_replaces_it_is_done(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def claim(size: int, *, write: str = "", done: bool = True) -> None:
        folder = RunFolder.claim(out, "erf", {"size": size}, overwrite=True)
        if write:
            folder.add(write).write_text(f"{write} of {size}")
        folder.close(done=done)

    def files() -> dict[str, str]:
        return {str(path.relative_to(out)): path.read_text() for path in out.rglob("*.csv")}

    claim(3, write="a.csv")
    claim(4, write="a.csv", done=False)
    assert files() == {"a.csv": "a.csv of 4", f"{FORMER}/a.csv": "a.csv of 3"}
    claim(5, write="b.csv", done=False)  # what was not finished goes, what was finished stays
    assert files() == {"b.csv": "b.csv of 5", f"{FORMER}/a.csv": "a.csv of 3"}
    claim(5, done=False)  # goes on
    assert len(files()) == 2
    claim(3, done=False)  # is back
    assert files() == {"a.csv": "a.csv of 3"}
    assert record(out)["outputs"] == ["a.csv"]
    claim(4, write="b.csv")
    assert files() == {"b.csv": "b.csv of 4"}
    assert {path.name for path in out.iterdir()} == {"b.csv", RUN_FILE}
    # Killed when the first of two was moved.
    claim(4, write="c.csv")
    (out / FORMER).mkdir()
    write_json(out / FORMER / RUN_FILE, record(out))
    (out / "b.csv").rename(out / FORMER / "b.csv")
    claim(4, done=False)
    assert files() == {"b.csv": "b.csv of 4", "c.csv": "c.csv of 4"}
    # A link where the former run is kept is not followed.
    (tmp_path / "thesis").mkdir()
    (out / FORMER).symlink_to(tmp_path / "thesis")
    claim(5)
    assert list((tmp_path / "thesis").iterdir()) == []
    assert [path.name for path in out.iterdir()] == [RUN_FILE]


def test_a_second_process_is_told_who_has_the_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = (
        "import os, sys, time; from pathlib import Path; from analysis.runs.folder import RunFolder\n"
        "RunFolder.claim(Path(sys.argv[1]), 'erf', {}, command_line='replknet erf'); print(os.getpid(), flush=True)\n"
        "child = os.fork()\n"  # as workers that load images, which may live on for a while
        "time.sleep(60)"
    )
    command = [sys.executable, "-c", program, str(out)]
    with subprocess.Popen(command, cwd=Path(__file__).parents[3], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        number = other.stdout.readline().strip()
        settings: dict[str, Any]
        for settings in ({}, {"size": 3}):
            with pytest.raises(ValueError, match=rf"is in use by process {number} on .* \(replknet erf\); wait for"):
                RunFolder.claim(out, "erf", settings)
        other.kill()
        other.wait()
        RunFolder.claim(out, "erf", {}).close()  # the dead have no locks
    assert [path.name for path in out.iterdir()] == [RUN_FILE]


def test_the_lock_of_a_hostile_folder_changes_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    RunFolder.claim(out, "erf", {}).close()
    (tmp_path / "thesis.tex").write_text("years of work")
    (out / LOCK_FILE).symlink_to(tmp_path / "thesis.tex")
    with pytest.raises(OSError, match="symbolic links"):
        RunFolder.claim(out, "erf", {})
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_a_folder_or_file_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for path in (tmp_path, tmp_path / "thesis.tex"):
        with pytest.raises(ValueError, match="out="):
            RunFolder.claim(path, "erf", {}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert RunFolder.existing(tmp_path) is None


def test_names_of_folders() -> None:
    assert folder_name("timm/ResNet 50, layer1") == "timm-ResNet-50-layer1"
    with pytest.raises(ValueError, match="no letter or digit"):
        folder_name("../..")
    with pytest.raises(ValueError, match="two results would be called 'a-b'"):
        folder_names(["a/b", "a b"])
    for reserved in ("run.json", "tables"):
        with pytest.raises(ValueError, match="two results would be called"):
            folder_names([reserved], reserved=["tables"])
