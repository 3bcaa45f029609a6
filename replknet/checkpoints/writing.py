"""Files and folders that are written whole or not at all."""

import ctypes
import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

_NEW = re.compile(r"\.new\.(\d+)\.(.+)", re.DOTALL)
"""Name of what is not whole yet: with the process that writes it, and the name that it will get."""
_OLD = ".old."
"""Before the name of a folder that makes room for a new one, where the two cannot change places at once."""
_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
_WORKING_FOLDER, _EXCHANGE = -100, 2
"""Arguments of Linux's `renameat2`."""


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """A path beside `path`, with the same ending, to make a file or a folder at.

    Unless something is raised, what was made there is flushed to the disk and takes the place of `path` at the end, at
    once: whenever the process or the machine stops, the old or the new one is there, whole. What a killed process
    leaves goes with `clear_leftovers`.

    Raises:
        OSError: If it cannot be written, also where the writer says so in other words.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _unfinished(path)
    remove(temporary)
    try:
        yield temporary
        _flush(temporary)
        _rename(temporary, path)
        _flush_one(path.parent)
    except Exception as error:
        reason = _first_reason(error)
        if isinstance(reason, OSError):
            reason.filename = reason.filename or str(path)
        if reason in (None, error):
            raise
        raise reason from error
    finally:
        remove(temporary)


@contextmanager
def scratch_folder(path: Path) -> Iterator[Path]:
    """A folder beside `path`, for those who write `path` and leave files beside it; removed at the end."""
    folder = _unfinished(path)
    remove(folder)
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        with suppress(OSError):  # a thread that a signal has cut off may still write; the next run clears that
            remove(folder)


def clear_leftovers(folder: Path, *, of: str | None = None, alone: bool = False) -> None:
    """Remove what killed processes have left of `replacing` and `scratch_folder`.

    Args:
        folder: All of it is looked through.
        of: Only what was to get this name, in the folder itself.
        alone: Nobody else writes there at present; otherwise what a living process of this machine writes is kept.
    """
    for entry in list(os.scandir(folder)) if folder.is_dir() else ():
        path, unfinished = folder / entry.name, _NEW.fullmatch(entry.name)
        if unfinished is not None:
            if (of is None or is_unfinished(entry.name, of)) and (alone or not _is_alive(int(unfinished[1]))):
                remove(path)
        elif entry.name.startswith(_OLD):
            if of in (None, entry.name.removeprefix(_OLD)):
                _put_back(path.with_name(entry.name.removeprefix(_OLD)))
        elif of is None and entry.is_dir(follow_symlinks=False):
            clear_leftovers(path, alone=alone)


def is_unfinished(name: str, of: str) -> bool:
    """Whether a file of this name is one that was to get the name `of`."""
    found = _NEW.fullmatch(name)
    return found is not None and (found[2] == of or is_unfinished(found[2], of))


def remove(path: Path) -> None:
    """Delete a file, a link, or a folder with all that is in it, if it is there; a folder loses its name at once."""
    if path.is_dir() and not path.is_symlink():
        if _NEW.fullmatch(path.name) is None:
            remove(_unfinished(path))
            path = path.rename(_unfinished(path))
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file; every tensor as it lies in memory when its axes are in order.

    Raises:
        OSError: If it cannot be written.
    """
    contiguous = {key: value.detach().cpu().contiguous() for key, value in tensors.items()}
    with scratch_folder(path) as folder:  # a killed writer leaves a file of its own beside its target
        try:
            save_file(contiguous, folder / path.name, dict(metadata or {}))
        except SafetensorError as error:
            raise OSError(str(error)) from error
        (folder / path.name).chmod(0o644)
        (folder / path.name).replace(path)


def write_pickled(path: Path, content: Any) -> None:
    """A file of `torch.save`, by Python's own file, whose errors `replacing` knows."""
    with path.open("wb") as file:
        torch.save(content, file)


def _unfinished(path: Path) -> Path:
    return path.with_name(f".new.{os.getpid()}.{path.name}")


def _rename(temporary: Path, path: Path) -> None:
    if not path.is_dir():
        os.replace(temporary, path)  # noqa: PTH105
    elif not _exchange(temporary, path):
        aside = path.with_name(f"{_OLD}{path.name}")
        _put_back(path)
        path.rename(aside)
        temporary.rename(path)
        remove(aside)


def _exchange(first: Path, second: Path) -> bool:
    """Let two paths change places; false where the system or the disk knows no such thing."""
    rename = getattr(ctypes.CDLL(None), "renameat2", None)
    if rename is None:
        return False
    names = [os.fsencode(path) for path in (first, second)]
    return bool(rename(_WORKING_FOLDER, names[0], _WORKING_FOLDER, names[1], _EXCHANGE) == 0)


def _put_back(path: Path) -> None:
    """What a process that was killed between two renamings has left gets its name again, unless the new one has it."""
    aside = path.with_name(f"{_OLD}{path.name}")
    if path.exists():
        remove(aside)
    elif aside.exists():
        aside.rename(path)


def _flush(path: Path) -> None:
    if path.is_dir():
        for inner in path.rglob("*"):
            _flush_one(inner)
    _flush_one(path)


def _flush_one(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _first_reason(error: BaseException | None) -> BaseException | None:
    """The error of the disk, or the signal, in whose wake another was raised by a writer that tried to end its file."""
    while error is not None:
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            return error
        if isinstance(error, OSError) and error.errno in _OF_THE_DISK:
            return error
        error = None if error.__suppress_context__ else error.__context__
    return None


def _is_alive(process: int) -> bool:
    """And another one than this, which may have the number of one that died."""
    if process == os.getpid():
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # somebody else's, or no number of a process
        pass
    return True
