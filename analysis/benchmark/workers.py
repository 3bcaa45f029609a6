"""Processes that set contenders up and time them when they are asked to, one at a time."""

import gc
import multiprocessing
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any, Self

import torch

from analysis.benchmark.devices import Call, Meter, meter_of

FAILED = "failed: "
"""How the answer begins of a process that may be of no use any more."""


class Workers:
    """A process for each name, with a device of its own choice.

    Args:
        names: Of those that are started at once; others are when they are asked.
        device: On which they time.
        limit: Seconds after which an answer is not waited for; the process is ended then.
    """

    def __init__(self, names: Iterable[str], *, device: str = "cpu", limit: float | None = None) -> None:
        self._device, self._limit = device, limit
        self._context = multiprocessing.get_context("spawn")
        self._started: dict[str, tuple[BaseProcess, Connection]] = {}
        for name in sorted(names):
            self._start(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *reason: object) -> None:
        for _, connection in self._started.values():
            connection.close()
        for name in tuple(self._started):
            self.end(name, patience=10)

    def ask(self, name: str, *message: Any) -> Any:
        """Its answer; a text says why there is none.

        Raises:
            ChildProcessError: If the process ends by itself.
        """
        if name not in self._started:
            self._start(name)
        connection = self._started[name][1]
        try:
            connection.send(message)
            if connection.poll(self._limit):
                return connection.recv()
        except (EOFError, ConnectionError) as error:
            self.end(name)
            raise ChildProcessError(
                "a benchmark's process has ended; the memory may not suffice for all contenders"
            ) from error
        self.end(name)
        return f"{FAILED}no answer within {self._limit:g} s"

    def end(self, name: str, *, patience: float = 0.0) -> None:
        """End a process; the next question starts another one."""
        if name in self._started:
            process, connection = self._started.pop(name)
            connection.close()
            process.join(patience)
            process.terminate()
            process.join(10)

    def _start(self, name: str) -> None:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=_serve, args=(theirs, self._device), daemon=True)
        process.start()
        theirs.close()
        self._started[name] = (process, ours)


def _serve(connection: Connection, device: str) -> None:
    """Answer requests until the other side goes away."""
    meter = meter_of(device)
    calls: dict[int, tuple[Call, int, bool]] = {}
    while True:
        try:
            action, *arguments = connection.recv()
        except EOFError:
            return
        try:
            if action == "set up":
                answer: Any = _set_up(meter, calls, *arguments)
            elif action == "run":
                answer = _run(meter, *calls[arguments[0]]) if arguments[0] in calls else f"{FAILED}its process ended"
            else:
                calls.clear()
                gc.collect()
                meter.after_round()
                answer = None
        except ImportError as error:
            answer = f"not installed: {error.name}"
        except torch.OutOfMemoryError:
            answer = "out of memory"
        except Exception as error:  # whatever another library raises is a note in the table
            answer = f"{FAILED}{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if isinstance(answer, str):
            gc.collect()
            meter.after_round()
        connection.send(answer)


def _set_up(
    meter: Meter,
    calls: dict[int, tuple[Call, int, bool]],
    position: int,
    setup: Any,
    arguments: Mapping[str, Any],
    trials: Sequence[tuple[Mapping[str, Any], float]],
    longest: float,
) -> str | tuple[float, dict[str, Any]]:
    """Milliseconds of the first call and more of it, or why there is none."""
    reason = _tried(meter, setup, arguments, trials, longest)
    if reason:
        return reason
    call = setup(**arguments)
    first, peak = meter.first(call)
    call, duration, known = meter.ready(call, first)
    meter.settle()
    # Another process had the caches just now, and its waiting threads keep a core for some 10 ms more: as many short
    # calls are made before those that are timed; so is one that finds its memory again, which is returned in between
    # for the others to have.
    calls[position] = (call, max(1, int(0.02 / duration)), duration < 1 or meter.keeps_memory())
    return 1e3 * first, {"peak_mib": peak, **known}


def _tried(
    meter: Meter,
    setup: Any,
    arguments: Mapping[str, Any],
    trials: Sequence[tuple[Mapping[str, Any], float]],
    longest: float,
) -> str:
    """Why a contender is not called, if parts of its work, from the smallest on, say that it would take too long."""
    for (changes, share), (_, following) in pairwise([*trials, ({}, 1.0)]):
        call = setup(**{**arguments, **changes})
        call()
        seconds = meter.seconds(call, 1)
        if seconds * following / share > longest:
            return (
                f"skipped: about {seconds / share:.2g} s a call ({1e3 * seconds:.3g} ms for {share:.2g} of the work); "
                f"the limit is {longest:g} s"
            )
    return ""


def _run(meter: Meter, call: Call, number: int, warm_up: bool) -> float:
    if warm_up:
        meter.seconds(call, number)
    seconds = meter.seconds(call, number)
    meter.after_round()
    return 1e3 * seconds
