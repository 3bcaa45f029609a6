"""Files and folders appear whole, and what was there before stays until then; see also `tests/faults`."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from replknet.checkpoints import writing
from replknet.checkpoints.writing import (
    clear_leftovers,
    remove,
    replacing,
    scratch_folder,
    write_pickled,
    write_safetensors,
)

ROOT = Path(__file__).parents[3]


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def make_folder(path: Path, name: str) -> None:
    path.mkdir()
    (path / name).write_text(name)


@pytest.mark.parametrize("exchanged", [True, False])
def test_the_new_takes_the_place_of_the_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchanged: bool) -> None:
    if not exchanged:  # as on disks that cannot
        monkeypatch.setattr(writing, "_exchange", lambda first, second: False)
    (tmp_path / "a.txt").write_text("before")
    with pytest.raises(RuntimeError), replacing(tmp_path / "a.txt") as path:
        path.write_text("half")
        raise RuntimeError
    assert (tmp_path / "a.txt").read_text() == "before"
    for name in ("one", "two"):  # a folder takes the place of one with other files
        with replacing(tmp_path / "folder") as path:
            make_folder(path, name)
        assert names(tmp_path / "folder") == {name}
    with replacing(tmp_path / "deep" / "er" / "b.txt") as path:
        assert path.suffix == ".txt"
        path.write_text("b")
    assert names(tmp_path) == {"a.txt", "folder", "deep"}


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    make_folder(tmp_path / "thesis", "years of work")
    for name in ("a", "b"):
        (tmp_path / name).symlink_to(tmp_path / "thesis")
    with replacing(tmp_path / "a") as path:
        make_folder(path, "new")
    remove(tmp_path / "b")
    remove(tmp_path / "not there")
    assert names(tmp_path / "a") == {"new"}
    assert names(tmp_path / "thesis") == {"years of work"}
    assert names(tmp_path) == {"a", "thesis"}


def test_what_killed_processes_left_goes_and_no_more(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from replknet.checkpoints.writing import replacing\n"
        "with replacing(Path(sys.argv[1])) as path: path.write_text('half'); os.kill(os.getpid(), 9)"
    )
    (tmp_path / "inner").mkdir()
    for name in ("a.txt", "b.txt", "inner/a.txt"):
        subprocess.run([sys.executable, "-c", program, str(tmp_path / name)], cwd=ROOT, check=False)
    with replacing(tmp_path / "mine.txt") as path, subprocess.Popen(["sleep", "60"]) as other:
        path.write_text("")
        living = tmp_path / f".new.{other.pid}.a.txt"
        living.write_text("written at present")
        (tmp_path / ".new.notes").write_text("of the user")
        (tmp_path / f".new.{os.getpid()}..new.{os.getpid()}.a.txt").mkdir()
        clear_leftovers(tmp_path, of="a.txt")
        assert len(list(tmp_path.glob(".new.*"))) == 4  # mine, b.txt, the living and the user's
        clear_leftovers(tmp_path)
        assert set(tmp_path.rglob(".new.*")) == {living, tmp_path / ".new.notes"}
        clear_leftovers(tmp_path, alone=True)
        assert names(tmp_path) == {"inner", ".new.notes"}
        path.write_text("whole")
        other.kill()
    assert (tmp_path / "mine.txt").read_text() == "whole"
    clear_leftovers(tmp_path / "not there")


def test_a_folder_that_made_room_gets_its_name_back(tmp_path: Path) -> None:
    make_folder(tmp_path / ".old.a", "before")  # killed after the first of two renamings
    make_folder(tmp_path / ".old.b", "before")
    make_folder(tmp_path / "b", "after")  # killed after the second
    clear_leftovers(tmp_path)
    assert names(tmp_path) == {"a", "b"}
    assert names(tmp_path / "a") == {"before"}
    assert names(tmp_path / "b") == {"after"}


def test_a_full_disk_is_told_in_the_words_of_the_system(tmp_path: Path) -> None:
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for explicit in (False, True):
        with pytest.raises(ValueError if explicit else OSError) as raised, replacing(tmp_path / "a") as path:
            try:
                path.write_text("half")
                raise full
            except OSError as error:
                if explicit:
                    raise ValueError("a better word") from error
                raise AttributeError("of a writer that closes its file")  # noqa: B904
        assert explicit or raised.value is full
    assert names(tmp_path) == set()
    with pytest.raises(OSError, match="Not a directory"):
        write_safetensors(Path(__file__) / "a", {"x": torch.ones(1)})


@pytest.mark.parametrize("signal", [KeyboardInterrupt, SystemExit])
def test_a_signal_is_not_lost_in_a_writer(tmp_path: Path, signal: type[BaseException]) -> None:
    with pytest.raises(signal), replacing(tmp_path / "a"):
        try:
            raise signal
        finally:
            raise RuntimeError("of a writer that ends its file")
    assert names(tmp_path) == set()


def test_scratch_is_gone_afterwards(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), scratch_folder(tmp_path / "a") as folder:
        write_pickled(folder / "b", {"x": 1})
        assert torch.load(folder / "b") == {"x": 1}
        raise RuntimeError
    assert names(tmp_path) == set()
