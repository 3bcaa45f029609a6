"""Work of a few seconds or more, shared among processes of this machine."""

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

from analysis.runs.signals import DeferredSignals, leave_signals_to_parent
from analysis.training.parallel import TrainingError

T = TypeVar("T")
R = TypeVar("R")
Job = Callable[[T, Callable[[int], None]], R]
"""Does one piece of work, and tells how far it is."""
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_END = 60.0
"""For a process that was asked to end: it may be in the middle of a step, whose state it writes."""


def shared(
    begin: Callable[[], Job[T, R]], items: Sequence[T], number: int, *, report: Callable[[int, int], None]
) -> list[R]:
    """Do a job for each item, by so many processes.

    A signal that asks this process to end is handed on as SIGTERM, and takes effect when all processes have ended.

    Args:
        begin: Called once in each process, so that it must be a function of a module or a partial of one; returns the
            job.
        items: What to do it for, begun in this order.
        number: Of processes.
        report: Called with the number of an item and what its job tells.

    Returns:
        An answer for each item.

    Raises:
        TrainingError: If a process ends by itself, as when the memory does not suffice.
        Exception: What a job raises; all processes are ended then.
    """
    waiting = list(range(len(items)))[::-1]
    answers: dict[int, R] = {}
    crew: dict[Connection, _Process] = {}
    with DeferredSignals(active=True) as signals:
        try:
            for _ in range(min(number, len(items))):
                connection, process = _start(begin)
                crew[connection] = _Process(process)
            while crew:
                ready = set(wait(list(crew), _SECONDS_BETWEEN_LOOKS))
                for connection, own in [(connection, own) for connection, own in crew.items() if connection in ready]:
                    kind, answer = own.says(connection)
                    if kind == "failed":
                        raise answer
                    if kind == "told":
                        report(own.item, answer)
                        continue
                    if kind == "done":
                        answers[own.item] = answer
                    if waiting:
                        own.item = waiting.pop()
                        connection.send(items[own.item])
                    else:
                        del crew[connection]
                        connection.close()
                        own.process.join()
                if signals.number:
                    _end(crew)
                    signals.take_effect(signals.number)
        finally:
            _end(crew)
    return [answers[item] for item in range(len(items))]


@dataclass
class _Process:
    process: BaseProcess
    item: int = -1
    """At work on."""

    def says(self, connection: Connection) -> tuple[str, Any]:
        try:
            said: tuple[str, Any] = connection.recv()
        except (EOFError, ConnectionError):
            self.process.join()
            raise TrainingError(
                f"a process has ended with exit code {self.process.exitcode}; if the memory does not suffice for all "
                "that are at work at the same time, let there be fewer"
            ) from None
        return said


def _start(begin: Callable[[], Job[T, R]]) -> tuple[Connection, BaseProcess]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, begin))
    with _interrupts_held():
        process.start()
    theirs.close()
    return ours, process


@contextmanager
def _interrupts_held() -> Iterator[None]:
    """A process that is started here does not hear of Ctrl-C until it says that it does not care."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def _end(crew: dict[Connection, _Process]) -> None:
    for own in crew.values():
        own.process.terminate()
    for connection, own in crew.items():
        own.process.join(_SECONDS_TO_END)
        own.process.kill()
        own.process.join()
        connection.close()
    crew.clear()


def _serve(connection: Connection, begin: Callable[[], Job[T, R]]) -> None:
    """Do what is asked for until the other side goes away."""
    leave_signals_to_parent(0)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    def send(kind: str, answer: Any) -> None:
        try:
            connection.send((kind, answer))
        except ConnectionError:  # nobody waits for it any more
            raise SystemExit(1) from None

    try:
        job = begin()
        send("ready", None)
        while True:
            try:
                item = connection.recv()
            except EOFError:
                return
            send("done", job(item, lambda done: send("told", done)))
    except Exception as error:
        send("failed", error)
