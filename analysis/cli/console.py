"""What the commands share: progress, tables, notes, figures and errors."""

import shlex
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
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
def progress_bar(label: str) -> Iterator[Callable[..., None]]:
    """Yields a function of the amount done, the total and, where it changes, what is at work."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=_console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        try:
            yield lambda done, total, now=label: bar.update(task, completed=done, total=total, description=now)
        except Exception:
            bar.live.transient = True  # the error is the only line
            bar.console.quiet = not bar.console.is_interactive  # where it would print an empty one
            bar.remove_task(task)
            raise


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
