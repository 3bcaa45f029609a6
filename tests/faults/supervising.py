"""Runs a function in a child process whose writes to some folders are counted, and fails or kills it at one of them.

Every system call that can change a file there is a point: before it is done, the kernel asks this process (seccomp's
user notifications), which lets it pass, answers that the disk is full, or ends the child. No code of the child takes
part, so that writers in C, C++ and Rust are met alike. Linux on x86-64.
"""

import array
import ctypes
import fcntl
import os
import platform
import select
import signal
import socket
import struct
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from errno import ENOSPC
from pathlib import Path
from typing import Literal

Kind = Literal["none", "kill", "term", "full"]
"""What happens at the point: nothing, SIGKILL, SIGTERM; or the disk is full from then on."""

# Number of each call, which of its arguments are paths or descriptors of files, and whether a full disk refuses it.
_AT_PATHS, _PATHS, _DESCRIPTOR = "at", "path", "fd"
_CALLS = {
    1: ("write", _DESCRIPTOR, (0,), True),
    18: ("pwrite64", _DESCRIPTOR, (0,), True),
    20: ("writev", _DESCRIPTOR, (0,), True),
    296: ("pwritev", _DESCRIPTOR, (0,), True),
    40: ("sendfile", _DESCRIPTOR, (0,), True),
    326: ("copy_file_range", _DESCRIPTOR, (2,), True),
    285: ("fallocate", _DESCRIPTOR, (0,), True),
    77: ("ftruncate", _DESCRIPTOR, (0,), False),
    74: ("fsync", _DESCRIPTOR, (0,), False),
    75: ("fdatasync", _DESCRIPTOR, (0,), False),
    2: ("open", _PATHS, (0,), True),
    85: ("creat", _PATHS, (0,), True),
    257: ("openat", _AT_PATHS, (1,), True),
    83: ("mkdir", _PATHS, (0,), True),
    258: ("mkdirat", _AT_PATHS, (1,), True),
    84: ("rmdir", _PATHS, (0,), False),
    87: ("unlink", _PATHS, (0,), False),
    263: ("unlinkat", _AT_PATHS, (1,), False),
    82: ("rename", _PATHS, (0, 1), False),
    264: ("renameat", _AT_PATHS, (1, 3), False),
    316: ("renameat2", _AT_PATHS, (1, 3), False),
    86: ("link", _PATHS, (0, 1), True),
    265: ("linkat", _AT_PATHS, (1, 3), True),
    88: ("symlink", _PATHS, (1,), True),
    266: ("symlinkat", _AT_PATHS, (2,), True),
    76: ("truncate", _PATHS, (0,), False),
    90: ("chmod", _PATHS, (0,), False),
    268: ("fchmodat", _AT_PATHS, (1,), False),
}
_OPENING = {2: 1, 257: 2}
"""Calls that open files, and which argument says how; those that only read are no points."""
_FOR_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC
_NOTIFY, _ALLOW = 0x7FC00000, 0x7FFF0000
_RECEIVE, _SEND = 0xC0502100, 0xC0182101
_CONTINUE = 1
_LONGEST = 600.0
"""Seconds after which a child that hangs is ended."""
_SET_FILTER, _LISTENER, _SECCOMP, _NO_NEW_PRIVILEGES = 1, 8 | 32, 317, 38
"""The flags: a new listener; and no signal but a deadly one disturbs a call that it looks at."""


@dataclass(frozen=True)
class Point:
    """A call that can change a file, and that file."""

    call: str
    path: str


@dataclass(frozen=True)
class Ended:
    """How the child ended.

    Args:
        code: Its exit code; minus the number of the signal that ended it.
        points: All the calls up to its end.
    """

    code: int
    points: tuple[Point, ...]


def unsupported() -> str:
    """Why nothing can be supervised here; empty where it can."""
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        return f"needs Linux on x86-64, not {platform.system()} on {platform.machine()}"
    ended = supervise(lambda: None, (), kind="none", at=0)
    return "" if ended.code == 0 else "the kernel gives no notifications of seccomp"


def supervise(work: Callable[[], None], folders: Sequence[Path], *, kind: Kind, at: int) -> Ended:
    """Run `work` in a child.

    Args:
        work: Ends with SystemExit or returns.
        folders: Calls that name something in them are counted, from 1.
        kind: What happens at the point.
        at: Its number; 0 for nowhere.
    """
    ours, childs = socket.socketpair()
    child = os.fork()
    if child == 0:
        _be_child(work, ours, childs)
    childs.close()
    with ours:
        _, found, *_ = ours.recvmsg(1, socket.CMSG_SPACE(4))
        if not found:
            return Ended(_exit_code(os.waitpid(child, 0)[1]), ())
        (listener,) = array.array("i", found[0][2])
        ours.send(b"go")
    try:
        return _attend(child, listener, [f"{os.path.realpath(folder)}/" for folder in folders], kind, at)
    finally:
        os.close(listener)


def _be_child(work: Callable[[], None], ours: socket.socket, childs: socket.socket) -> None:
    code = 1
    try:
        ours.close()
        listener = _listen()
        with childs:
            childs.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener]))])
            os.close(listener)
            childs.recv(2)
        work()
        code = 0
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _listen() -> int:
    """Install the filter in this process; returns the descriptor on which its calls are told."""
    program = [(0x20, 0, 0, 4), (0x15, 1, 0, 0xC000003E), (0x06, 0, 0, _ALLOW), (0x20, 0, 0, 0)]
    for number, argument in _OPENING.items():
        # Not this call: over the next four; else let pass what only reads.
        program += [
            (0x15, 0, 4, number),
            (0x20, 0, 0, 16 + 8 * argument),
            (0x45, 0, 1, _FOR_WRITING),
            (0x06, 0, 0, _NOTIFY),
            (0x06, 0, 0, _ALLOW),
        ]
    for number in set(_CALLS) - set(_OPENING):
        program += [(0x15, 0, 1, number), (0x06, 0, 0, _NOTIFY)]
    program.append((0x06, 0, 0, _ALLOW))
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(packed, len(packed))
    header = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    listener: int = libc.syscall(_SECCOMP, _SET_FILTER, _LISTENER, ctypes.c_char_p(header))
    if listener < 0:
        raise OSError(ctypes.get_errno(), "seccomp")
    return listener


def _attend(child: int, listener: int, folders: Sequence[str], kind: Kind, at: int) -> Ended:
    points: list[Point] = []
    began = time.monotonic()
    waiting = select.poll()
    waiting.register(listener, select.POLLIN)
    while True:
        if not waiting.poll(20):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return Ended(_exit_code(status), tuple(points))
            if time.monotonic() - began > _LONGEST:
                os.kill(child, signal.SIGABRT)
            continue
        notice = bytearray(80)
        try:
            fcntl.ioctl(listener, _RECEIVE, notice)
        except OSError:  # the child is dead, or was interrupted
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return Ended(_exit_code(status), tuple(points))
            continue
        cookie, process, _, number = struct.unpack_from("=QIIi", notice)
        arguments = struct.unpack_from("=6Q", notice, 32)
        name, places, indices, refused_when_full = _CALLS[number]
        named = _paths(process, places, indices, arguments)
        path = next((own for own in named if f"{own}/".startswith(tuple(folders))), "")
        error = 0
        if path:
            points.append(Point(name, path))
            if at and len(points) == at and kind in ("kill", "term"):
                os.kill(child, signal.SIGKILL if kind == "kill" else signal.SIGTERM)
            if at and len(points) >= at and kind == "full" and refused_when_full:
                is_there = number in _OPENING and os.path.lexists(path)
                error = 0 if is_there else -ENOSPC
        try:
            fcntl.ioctl(listener, _SEND, struct.pack("=QqiI", cookie, 0, error, 0 if error else _CONTINUE))
        except OSError:  # it is dead
            continue


def _paths(process: int, places: str, indices: Sequence[int], arguments: Sequence[int]) -> list[str]:
    """The files that a call names."""
    found = []
    own = Path("/proc", str(process))
    for index in indices:
        try:
            if places == _DESCRIPTOR:
                found.append(str((own / f"fd/{arguments[index]}").readlink()))
                continue
            path = Path(os.fsdecode(_text_at(own / "mem", arguments[index])))
            if not path.is_absolute():
                folder = ctypes.c_int32(arguments[index - 1] & 0xFFFFFFFF).value if places == _AT_PATHS else -1
                path = (own / ("cwd" if folder < 0 else f"fd/{folder}")).readlink() / path
            found.append(str(path.parent.resolve() / path.name))
        except OSError:  # closed meanwhile
            continue
    return found


def _text_at(memory: Path, address: int) -> bytes:
    text = b""
    with memory.open("rb", buffering=0) as file:
        file.seek(address)
        while b"\0" not in text:
            page = file.read(min(256, 4096 - (address + len(text)) % 4096))
            if not page:
                break
            text += page
    return text.partition(b"\0")[0]


def _exit_code(status: int) -> int:
    return -os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
