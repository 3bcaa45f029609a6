"""Families of hostile cases: what each case should come to, and a process of its own that it may hang or crash.

A case is made from a seed, the name of its family and its number alone, so `python -m tests.fuzz FAMILY --seed S
--case N` makes it again.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any, Self

SECONDS_OF_WORK = 10.0
"""Of the processor, for one case."""
SECONDS_ON_THE_CLOCK = 20.0
"""For one case, before its process is killed."""
SECONDS_TO_START = 180.0
MEMORY = 1 << 30
"""Bytes that one case may add to those of its process, where it does not say otherwise."""
_STATUS = Path("/proc/self/status")


class WrongError(Exception):
    """What a case came to is wrong; the message says how."""


@dataclass(frozen=True)
class Case:
    """Something hostile that is tried.

    Args:
        about: What it is.
        run: Tries it; returns where the outcome is right, raises `WrongError` where it is not.
        refusals: What it may raise instead.
        memory: Bytes that it may add to those of its process.
    """

    about: str
    run: Callable[[], object]
    refusals: tuple[type[Exception], ...] = (ValueError, FileNotFoundError)
    memory: int = MEMORY


Family = Callable[[Random, Path], Case]
"""Makes a case from random numbers and an empty folder."""
FAMILIES: dict[str, Family] = {}


_SHARES: dict[str, float] = {}


def family(*, share: float = 1.0) -> Callable[[Family], Family]:
    """Registers a family under the name of its function; one with costly cases gets several shares of the time."""

    def register(make: Family) -> Family:
        FAMILIES[make.__name__], _SHARES[make.__name__] = make, share
        return make

    return register


def seconds_for(name: str, names: Iterable[str], seconds: float) -> float:
    """Of the time for several families, that of one."""
    return seconds * _SHARES[name] / sum(_SHARES[own] for own in names)


@dataclass
class Tally:
    """What the cases of a family came to, and the wrong ones by number."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: dict[int, str] = field(default_factory=dict)

    def add(self, number: int, about: str, outcome: str, detail: str) -> None:
        self.counts[outcome] += 1
        if outcome == "wrong":
            self.wrong[number] = f"{about} -> {detail}"

    def row(self, name: str) -> str:
        """Of the table under `HEADER`."""
        numbers = [self.counts.total(), *(self.counts[key] for key in ("right", "refused", "wrong"))]
        return f"{name:<16}" + "".join(f"{number:>10}" for number in numbers)


HEADER = f"{'family':<16}" + "".join(f"{name:>10}" for name in ("tried", "right", "refused", "wrong"))


def repeat_command(name: str, seed: int, number: int) -> str:
    return f"python -m tests.fuzz {name} --seed {seed} --case {number}"


class Arena:
    """A process in which cases are tried, and another one after each that hangs or crashes."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._worker: _Worker | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *details: object) -> None:
        if self._worker is not None:
            self._worker.end()

    def run(self, name: str, *, seconds: float, numbers: Iterable[int], most_wrong: int = 20) -> Tally:
        """Try cases of a family one after the other until the time is up, or so many were wrong."""
        tally, began = Tally(), time.monotonic()
        for number in numbers:
            if time.monotonic() - began > seconds or len(tally.wrong) >= most_wrong:
                break
            if self._worker is None or not self._worker.process.is_alive():
                start = time.monotonic()
                self._worker = _Worker(self._seed)
                began += time.monotonic() - start
            with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
                tally.add(number, *self._worker.judge(name, number, folder))
        return tally


class _Worker:
    """A process that tries cases."""

    def __init__(self, seed: int) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, seed), daemon=False)
        self.process.start()
        other.close()
        self._receive(SECONDS_TO_START)

    def judge(self, name: str, number: int, folder: str) -> tuple[str, str, str]:
        """What the case is, its outcome, and details."""
        about = "a case that was not made in time"
        try:
            self._connection.send((name, number, folder))
            about = str(self._receive(SECONDS_ON_THE_CLOCK))
            outcome, detail = self._receive(SECONDS_ON_THE_CLOCK)
        except TimeoutError:
            self.end()
            return about, "wrong", f"hangs: not done after {SECONDS_ON_THE_CLOCK:g} s"
        except (EOFError, OSError):
            self.end()
            return about, "wrong", f"crashes: its process ended with {self.process.exitcode}"
        return about, outcome, detail

    def _receive(self, seconds: float) -> Any:
        if not self._connection.poll(seconds):
            raise TimeoutError
        return self._connection.recv()

    def end(self) -> None:
        """With all that it has started."""
        if self.process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        self._connection.close()


def _serve(connection: Connection, seed: int) -> None:
    os.setsid()
    os.environ["HF_HUB_OFFLINE"] = "1"
    nowhere = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nowhere, stream)  # what native code writes
    import torch

    from tests.fuzz import families

    torch.set_num_threads(1)
    families.load()
    if _STATUS.exists():
        limit = _bytes("VmData") + 4 * MEMORY
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    connection.send("ready")
    while True:
        try:
            name, number, folder = connection.recv()
        except EOFError:
            return
        warnings.resetwarnings()
        try:
            case = FAMILIES[name](Random(f"{seed} {name} {number}"), Path(folder))
        except Exception as error:
            case = _unmade(error)
        connection.send(case.about)
        connection.send(_judged(case))


def _unmade(error: Exception) -> Case:
    """A fault of the family itself."""

    def run() -> None:
        raise error

    return Case("a case that could not be made", run, ())


def _judged(case: Case) -> tuple[str, str]:
    before = _bytes("VmRSS", reset=True)
    start = time.process_time()
    outcome, detail = "right", ""
    try:
        case.run()
    except WrongError as wrong:
        outcome, detail = "wrong", str(wrong)
    except case.refusals as refusal:
        outcome, detail = "refused", str(refusal)
        if not detail.strip():
            outcome, detail = "wrong", f"{type(refusal).__name__} without a message"
    except BaseException as error:
        places = [f"{Path(at.filename).name}:{at.lineno}" for at in traceback.extract_tb(error.__traceback__)[-3:]]
        first = (str(error).strip() or "without a message").partition("\n")[0]
        outcome, detail = "wrong", f"{type(error).__name__}: {first[:300]} (at {' > '.join(places)})"
    spent, taken = time.process_time() - start, _bytes("VmHWM") - before
    if outcome != "wrong" and spent > SECONDS_OF_WORK:
        outcome, detail = "wrong", f"takes {spent:.0f} s of the processor, then is {outcome}: {detail}"
    if outcome != "wrong" and taken > case.memory:
        outcome, detail = "wrong", f"takes {taken >> 20} MB of memory, then is {outcome}: {detail}"
    return outcome, detail


def _bytes(name: str, *, reset: bool = False) -> int:
    """A figure of this process, where the system tells it; the highest one (VmHWM) can be set back."""
    if reset:
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    try:
        lines = _STATUS.read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))
