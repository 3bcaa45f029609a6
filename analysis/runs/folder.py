"""The folder of a run: what it may write, what it has written, and how it came about."""

import os
import platform
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Self

from analysis.runs.identity import commit, versions
from analysis.runs.locking import LOCK_FILE, Lock
from analysis.runs.processes import by_first, rank
from analysis.runs.texts import parse_json, read_text
from analysis.runs.writing import clear_leftovers, is_unfinished, plain, remove, replacing, write_json

RUN_FILE = "run.json"
FORMER = ".replknet.former"
"""Folder, in that of a run, of the run that it replaces."""
SCHEMA_VERSION = 3
"""Of that file. 2 listed outputs that might be written; 1 named the networks' code otherwise, too."""
_LONGEST_NAME = 240
"""Bytes; disks take 255, and an unfinished file has a longer name than it will get."""
_VERSIONS = ("replknet", "torch", "torchvision", "timm", "numpy", "scipy")


class RunFolder:
    """A folder that one command has made its own. `run.json` in it tells the command, its settings, every time that it
    was called (command line, date, versions, commit), and what was written: the name of each file and folder, recorded
    before it appears. Nothing else is ever removed, and that of a run that is replaced not before the new one is done:
    it lies in `.replknet.former` until then, and its own command, with `overwrite`, brings it back.

    No other process has it at the same time. In a process group every process has one, and the first alone writes.
    """

    def __init__(self, path: Path, content: dict[str, Any], lock: Lock | None = None) -> None:
        self.path = path
        self._content = content
        self._lock = lock

    @classmethod
    def claim(
        cls,
        path: Path,
        command: str,
        settings: Mapping[str, Any],
        *,
        command_line: str = "",
        overwrite: bool = False,
        keep: Collection[str] = (),
    ) -> Self:
        """Make a folder that of this run: a new one, or one of the same command.

        Args:
            path: The folder.
            command: Runs of one command may replace each other.
            settings: All that decides what is measured; a run with the same goes on.
            command_line: As the user typed it.
            overwrite: Remove what another run of the command has written.
            keep: Names that are not removed then.

        Raises:
            ValueError: If the folder holds something else, or another run and `overwrite` is false, or another process
                has it.
        """
        normal, locks = plain(settings), list[Lock]()

        def work() -> dict[str, Any]:
            is_new = not path.exists()
            try:
                _former(path, command, normal, overwrite)
            except ValueError:
                if (path / LOCK_FILE).is_file():  # that somebody is at work is the better reason
                    Lock.on(path, command_line).release()
                raise
            path.mkdir(parents=True, exist_ok=True)
            try:
                lock = Lock.on(path, command_line)
                try:
                    content = _claim(path, command, command_line, normal, overwrite, keep)
                except BaseException:
                    lock.release()
                    raise
            except OSError:
                if is_new:  # a disk that is full before anything is written
                    with suppress(OSError):
                        path.rmdir()
                raise
            locks.append(lock)
            return content

        return cls(path, by_first(work), locks[0] if locks else None)

    @classmethod
    def existing(cls, path: Path) -> Self | None:
        """The folder of a run that was claimed before; None of another folder.

        Raises:
            ValueError: If its `run.json` is damaged.
        """
        return cls(path, _read(path)) if (path / RUN_FILE).is_file() else None

    def add(self, name: str) -> Path:
        """The path of something that is written by other means; its name is recorded.

        Raises:
            ValueError: If there is something of that name that this run has not written.
        """
        path = self.path / name
        if name not in self._content["outputs"]:
            if path.exists():
                raise ValueError(f"out={str(self.path)!r}: {name} is not of this command; choose another folder")
            self._content["outputs"] = sorted([*self._content["outputs"], name])
            write_json(self.path / RUN_FILE, self._content)
        return path

    @contextmanager
    def replace(self, name: str) -> Iterator[Path]:
        """A path to write a file or folder to that is then called `name`; see `replacing`."""
        with replacing(self.add(name)) as temporary:
            yield temporary

    @property
    def replaced(self) -> Path | None:
        """Where the run lies that this one replaces, until it is done."""
        return self.path / FORMER if (self.path / FORMER).is_dir() else None

    def close(self, *, done: bool = True) -> None:
        """Let others in, and forget what is not there any more, such as the state of what is finished.

        Args:
            done: The run that this one replaces is needed no more.
        """
        if rank() > 0:
            return
        present = [name for name in self._content["outputs"] if (self.path / name).exists()]
        try:
            if present != self._content["outputs"]:
                self._content["outputs"] = present
                write_json(self.path / RUN_FILE, self._content)
            if done:
                remove(self.path / FORMER)
        finally:
            if self._lock is not None:
                self._lock.release()


def _claim(
    path: Path, command: str, command_line: str, settings: dict[str, Any], overwrite: bool, keep: Collection[str]
) -> dict[str, Any]:
    known = _former(path, command, settings, overwrite)
    written, calls = (known["outputs"], known["calls"]) if known else ([], [])
    for name in (RUN_FILE, FORMER, *written):
        clear_leftovers(path, of=name, alone=True)
    if known and known["settings"] != settings:
        _set_aside(path, known, keep)
        calls = []
    written = [*written, *_brought_back(path, settings)]
    content = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "settings": settings,
        "calls": [*calls, describe_call(command_line)],
        "outputs": sorted({name for name in written if (path / name).exists()}),
    }
    write_json(path / RUN_FILE, content)
    return content


def _set_aside(path: Path, known: dict[str, Any], keep: Collection[str]) -> None:
    """Keep what a run wrote until the one that replaces it is done; remove it where it replaced another one itself."""
    aside = path / FORMER
    if aside.is_symlink():
        remove(aside)
    if not (aside / RUN_FILE).is_file():
        aside.mkdir(exist_ok=True)
        write_json(aside / RUN_FILE, known)
    first = _read(aside)["settings"] == known["settings"]
    for name in known["outputs"]:
        if name not in keep:
            _move(path / name, aside / name) if first else remove(path / name)


def _brought_back(path: Path, settings: dict[str, Any]) -> list[str]:
    """The names of what was kept of a run with these settings, which is to go on."""
    aside = path / FORMER
    if aside.is_symlink() or not (aside / RUN_FILE).is_file():
        return []
    kept = _read(aside)
    if kept["settings"] != settings:
        return []
    for name in kept["outputs"]:
        _move(aside / name, path / name)
    remove(aside)
    names: list[str] = kept["outputs"]
    return names


def _move(source: Path, target: Path) -> None:
    if os.path.lexists(source) and not os.path.lexists(target):
        source.rename(target)


def _former(path: Path, command: str, settings: dict[str, Any], overwrite: bool) -> dict[str, Any]:
    """What `run.json` tells of the run that the folder holds; nothing of a folder that is free.

    Raises:
        ValueError: If the folder holds something else, or another run and `overwrite` is false.
    """
    if path.exists() and not path.is_dir():
        raise ValueError(f"out={str(path)!r}: exists and is not a folder")
    if not (path / RUN_FILE).is_file():
        if path.is_dir() and not all(_is_of_a_first_write(item.name) for item in path.iterdir()):
            raise ValueError(f"out={str(path)!r}: holds files of something else; choose another folder")
        return {}
    known = _read(path)
    if known["command"] != command:
        raise ValueError(f"out={str(path)!r}: holds results of something else; choose another folder")
    former = known["settings"]
    if former != settings and not overwrite:
        differing = [key for key in {**former, **settings} if former.get(key) != settings.get(key)]
        older = known.get("schema_version", 1) != SCHEMA_VERSION
        why = ", and was made by a former version, which named the networks' code otherwise" if older else ""
        raise ValueError(
            f"out={str(path)!r}: holds another run, which differs in {', '.join(differing)}{why}; "
            "choose another folder, or overwrite=True replaces it"
        )
    return known


def _is_of_a_first_write(name: str) -> bool:
    """Of a process that was killed before `run.json` had its name."""
    return name == LOCK_FILE or is_unfinished(name, RUN_FILE)


def describe_call(command_line: str) -> dict[str, Any]:
    """The command line, and what answers it now: date, versions, commit."""
    return {
        "command_line": command_line,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"python": platform.python_version(), **versions(_VERSIONS)},
        "commit": commit(),
    }


def _read(folder: Path) -> dict[str, Any]:
    """The content of `run.json`.

    Raises:
        ValueError: If it is not what a run writes.
    """
    try:
        content = parse_json(read_text(folder / RUN_FILE, "out"))
        if isinstance(content, dict):
            content = {"settings": {}, "calls": [], "outputs": []} | content
        wrong = _misfit(content)
    except ValueError as error:
        wrong = str(error)
    if wrong:
        raise ValueError(f"out={str(folder)!r}: {RUN_FILE} is damaged ({wrong}); choose another folder")
    found: dict[str, Any] = content
    return found


def _misfit(content: Any) -> str:
    """What is wrong with the content of a `run.json`; nothing is removed of which it says a name that is not plain."""
    if not isinstance(content, dict):
        return f"expected an object, found {type(content).__name__}"
    for key, kind in (("command", str), ("settings", dict), ("calls", list), ("outputs", list)):
        if not isinstance(content.get(key), kind):
            return f"{key!r}: expected {kind.__name__}, found {type(content.get(key)).__name__}"
    for name in content["outputs"]:
        own = isinstance(name, str) and name not in ("", ".", "..", RUN_FILE, LOCK_FILE, FORMER)
        if not own or re.search(r"[/\\\0]", name) or len(name.encode(errors="replace")) > _LONGEST_NAME:
            return f"'outputs': {name!r} is no name of something in the folder"
    return ""


def folder_name(label: str) -> str:
    """A label as the name of a file or folder.

    Raises:
        ValueError: If nothing is left of it.
    """
    name = re.sub(r"[^\w.-]+", "-", label).strip("-.")
    if not name:
        raise ValueError(f"model: the name {label!r} holds no letter or digit")
    return name


def folder_names(labels: Sequence[str], *, reserved: Collection[str] = ()) -> list[str]:
    """`folder_name` of several labels, none of which may be that of something else in the folder.

    Raises:
        ValueError: If two would share one.
    """
    names = [folder_name(label) for label in labels]
    taken = [*names, *reserved, RUN_FILE]
    twice = sorted({name for name in names if taken.count(name) > 1})
    if twice:
        raise ValueError(f"model: two results would be called {twice[0]!r}; give the models different names")
    return names
