"""The folder of a run: what it may write, what it has written, and how it came about."""

import json
import platform
import re
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from analysis.runs.identity import commit, versions
from analysis.runs.processes import by_first, rank
from analysis.runs.writing import plain, remove, replacing, write_json

RUN_FILE = "run.json"
SCHEMA_VERSION = 3
"""Of that file. 2 listed outputs that might be written; 1 named the networks' code otherwise, too."""
_FORM = {"schema_version": int, "settings": dict, "calls": list, "outputs": list}
_LONGEST_NAME = 256
"""Bytes that no system takes for a name."""
_VERSIONS = ("replknet", "torch", "torchvision", "timm", "numpy", "scipy")


class RunFolder:
    """A folder that one command has made its own. `run.json` in it tells the command, its settings, every time that it
    was called (command line, date, versions, commit), and what was written: the name of each file and folder, recorded
    before it appears. Nothing else is ever removed.

    In a process group every process has one, and the first alone writes.
    """

    def __init__(self, path: Path, content: dict[str, Any]) -> None:
        self.path = path
        self._content = content

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
            ValueError: If the folder holds something else, or another run and `overwrite` is false.
        """
        normal = plain(settings)
        return cls(path, by_first(lambda: _claim(path, command, command_line, normal, overwrite, keep)))

    @classmethod
    def existing(cls, path: Path) -> Self | None:
        """The folder of a run that was claimed before; None of another folder."""
        content = _read(path / RUN_FILE) if (path / RUN_FILE).is_file() else {}
        return cls(path, content) if "outputs" in content else None

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

    def close(self) -> None:
        """Forget what is not there any more, such as the state of what is finished."""
        if rank() > 0:
            return
        present = [name for name in self._content["outputs"] if (self.path / name).exists()]
        if present != self._content["outputs"]:
            self._content["outputs"] = present
            write_json(self.path / RUN_FILE, self._content)


def _claim(
    path: Path, command: str, command_line: str, settings: dict[str, Any], overwrite: bool, keep: Collection[str]
) -> dict[str, Any]:
    written: list[str] = []
    calls: list[dict[str, Any]] = []
    if path.exists() and not path.is_dir():
        raise ValueError(f"out={str(path)!r}: exists and is not a folder")
    if (path / RUN_FILE).is_file():
        known = _read(path / RUN_FILE)
        if known.get("command") != command:
            raise ValueError(f"out={str(path)!r}: holds results of something else; choose another folder")
        written, calls = known.get("outputs", []), known.get("calls", [])
        former = known.get("settings", {})
        if former != settings:
            if not overwrite:
                differing = [key for key in {**former, **settings} if former.get(key) != settings.get(key)]
                older = known.get("schema_version", 1) < SCHEMA_VERSION
                why = ", and was made by a former version, which named the networks' code otherwise" if older else ""
                raise ValueError(
                    f"out={str(path)!r}: holds another run, which differs in {', '.join(differing)}{why}; "
                    "choose another folder, or overwrite=True replaces it"
                )
            for name in written:
                if name not in keep:
                    remove(path / name)
            calls = []
    elif path.is_dir() and any(path.iterdir()):
        raise ValueError(f"out={str(path)!r}: holds files of something else; choose another folder")
    path.mkdir(parents=True, exist_ok=True)
    content = {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "settings": settings,
        "calls": [*calls, _describe_call(command_line)],
        "outputs": sorted(name for name in written if (path / name).exists()),
    }
    write_json(path / RUN_FILE, content)
    return content


def _describe_call(command_line: str) -> dict[str, Any]:
    return {
        "command_line": command_line,
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "versions": {"python": platform.python_version(), **versions(_VERSIONS)},
        "commit": commit(),
    }


def _read(path: Path) -> dict[str, Any]:
    """The content of the file; nothing where it is damaged, so that the folder is taken for that of something else."""
    try:
        content = json.loads(path.read_text())
    except (ValueError, RecursionError):
        return {}
    if not isinstance(content, dict) or not all(isinstance(content.get(key, of()), of) for key, of in _FORM.items()):
        return {}
    if "outputs" in content:
        content["outputs"] = list(filter(_is_name, content["outputs"]))
    return content


def _is_name(name: Any) -> bool:
    """Whether something directly in a folder can be called so: what the record of a run lists may be removed."""
    if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
        return False
    return "\0" not in name and len(name.encode(errors="replace")) < _LONGEST_NAME


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
