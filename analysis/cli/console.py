"""What the commands share: progress, tables, notes, figures and errors."""

import shlex
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from analysis.cli import ARGUMENTS
from analysis.runs.folder import RunFolder
from analysis.runs.settings import SIDES
from analysis.runs.texts import few

_MOST_SKIPPED = 10
_SECONDS_BETWEEN_LINES = 60.0
_SECONDS_BETWEEN_CHANGES = 5.0
"""Where what is at work changes, so that many short things do not make as many lines."""


def command_line() -> str:
    """The whole line, as a shell takes it."""
    return shlex.join(["replknet", *ARGUMENTS.get()])


@contextmanager
def run_folder(out: Path, command: str, settings: dict[str, Any], **options: Any) -> Iterator[RunFolder]:
    """The folder of this run, with errors of the system that name it; see `RunFolder.claim`."""
    with clear_errors_for_files(out):
        folder = RunFolder.claim(out, command, settings, command_line=command_line(), **options)
        try:
            yield folder
        except BaseException:
            folder.close(done=False)
            if folder.replaced is not None:
                print_notes(
                    [f"the former run is kept in {folder.replaced}; its own command with --overwrite brings it back"]
                )
            raise
        folder.close()


@contextmanager
def clear_errors_for_files(out: Path, argument: str = "out") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{argument}={str(out)!r}: cannot write ({error})") from error


@contextmanager
def progress_bar(label: str, *, at_most: bool = False) -> Iterator[Callable[..., None]]:
    """Yields a function of the amount done, the total and, where it changes, what is at work.

    Where the output is no terminal, a line tells of it when that changes, at least every minute, and at the end.

    Args:
        label: What is at work while nothing else is told.
        at_most: The total is a limit before which it may end.
    """
    console = _console(stderr=True)
    up_to = "up to " * at_most
    if not console.is_interactive:
        lines = _Lines(label, up_to)
        yield lines
        lines.end()
        return
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(separator=f" of {up_to}" if at_most else "/"),
        TimeElapsedColumn(),
        TextColumn(f"left{', at most' * at_most}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(label, total=None)
        try:
            yield lambda done, total, now=label: bar.update(task, completed=done, total=total, description=now)
        except Exception:
            bar.live.transient = True  # the error is the only line
            bar.remove_task(task)
            raise


@contextmanager
def told_if_slow(text: str, seconds: float = 5.0) -> Iterator[None]:
    """A line for whatever takes longer and has no progress to tell of."""
    timer = threading.Timer(seconds, print_notes, [[text]])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class _Lines:
    """Tells in lines how far something is."""

    def __init__(self, label: str, up_to: str) -> None:
        self._label = self._now = label
        self._up_to = up_to
        self._began = self._told = time.monotonic()
        self._first: float | None = None
        self._done = self._total = 0.0
        self._last: tuple[float, str, str] | None = None

    def __call__(self, done: float, total: float, now: str = "") -> None:
        changed = bool(now) and now != self._now
        self._done, self._total, self._now = done, total, now or self._label
        self._first = done if self._first is None else self._first
        waited = time.monotonic() - self._told
        if waited > _SECONDS_BETWEEN_LINES or (changed and waited > _SECONDS_BETWEEN_CHANGES):
            self._tell()

    def end(self) -> None:
        if self._first is not None and self._last != (self._done, self._now, ""):
            self._tell(ended=True)

    def _tell(self, *, ended: bool = False) -> None:
        self._told = time.monotonic()
        passed, new = self._told - self._began, self._done - (self._first or 0)
        name = self._label if self._now == self._label else f"{self._label}: {self._now}"
        left = ""
        if new > 0 and self._done < self._total and not ended:
            left = f", {self._up_to or 'about '}{_clock(passed * (self._total - self._done) / new)} left"
        self._last = (self._done, self._now, left)
        share = f"{100 * self._done / self._total:.0f} % " if self._total and not self._up_to else ""
        amount = f"{self._done:g} of {self._up_to}{self._total:g}"
        print_line(f"{name}: {share}({amount}), {_clock(passed)} passed{left}")


def _clock(seconds: float) -> str:
    return str(timedelta(seconds=round(seconds)))


def _console(**options: Any) -> Console:
    """Prints names as they are: nothing in brackets or between colons is a command to it."""
    return Console(markup=False, emoji=False, highlight=False, **options)


def print_table(table: Table) -> None:
    """Wide enough for every column where the output is a file or a pipe."""
    console = _console()
    (console if console.is_terminal else _console(width=200)).print(table)


def print_notes(notes: Iterable[str], kind: str = "note") -> None:
    """Lines on the standard error."""
    for note in notes:
        print_line(f"{kind}: {note}")


def print_line(text: str, *, stderr: bool = True) -> None:
    """A line of text, by default on the standard error."""
    _console(stderr=stderr).print(text, soft_wrap=True)


def skipped_notes(skipped: Iterable[tuple[str, str]]) -> list[str]:
    """What to tell of files that were skipped: each, or of many with one reason the first and their number."""
    names: dict[str, list[str]] = {}
    for name, reason in skipped:
        names.setdefault(reason, []).append(name)
    notes = []
    for reason, own in names.items():
        if len(own) > _MOST_SKIPPED:
            notes.append(f"skipped, {reason}: {few(own)}")
        else:
            notes += [f"skipped {name}: {reason}" for name in own]
    return notes


def parse_size(text: str, option: str = "--size") -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and 0 < int(part) <= SIDES[1] for part in parts):
        what = " in pixels" * (option == "--size")
        raise ValueError(f"{option}={text!r}: expected N or HxW{what}, each from 1 to {SIDES[1]}")
    return int(parts[0]), int(parts[-1])
