"""A folder to which one process writes at a time."""

import errno
import fcntl
import json
import os
import platform
import time
from pathlib import Path
from typing import Self

from analysis.runs.texts import printable

LOCK_FILE = ".replknet.lock"
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""What a disk that keeps no locks says; the folder is then used without one."""


class Lock:
    """Held on a folder by this process, until it is released or the process is dead, however it died.

    The system keeps it, on a file in it, which is of no meaning by itself.
    """

    def __init__(self, folder: Path, descriptor: int) -> None:
        self._path, self._descriptor = folder / LOCK_FILE, descriptor

    @classmethod
    def on(cls, folder: Path, doing: str, *, argument: str = "out") -> Self:
        """Take the lock.

        Args:
            folder: Exists.
            doing: What another process is told, such as the command line.
            argument: Under which the caller knows the folder.

        Raises:
            ValueError: If another process has it; the message says which.
        """
        path = folder / LOCK_FILE
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                if error.errno not in _WITHOUT_LOCKS:
                    holder = _holder(descriptor)
                    os.close(descriptor)
                    if error.errno not in (errno.EACCES, errno.EAGAIN):
                        raise
                    raise ValueError(
                        f"{argument}={str(folder)!r}: is in use by {holder}; wait for its end, or choose another folder"
                    ) from None
            if _is(descriptor, path):
                break
            os.close(descriptor)  # its holder has removed it in between
        lock = cls(folder, descriptor)
        try:
            content = {"process": os.getpid(), "host": platform.node(), "doing": doing, "since": time.strftime("%F %T")}
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(content).encode(), 0)
        except BaseException:
            lock.release()
            raise
        return lock

    def release(self) -> None:
        """Let others in; without effect a second time."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            try:
                self._path.unlink(missing_ok=True)
            finally:
                os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        content = json.loads(os.pread(descriptor, 1 << 16, 0))
        told = f"process {content['process']} on {content['host']} since {content['since']} ({content['doing']})"
        return printable(told)
    except (ValueError, KeyError, TypeError, RecursionError):  # it has not said yet
        return "another process"


def _is(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
