"""Side-by-side timings: every library in a process of its own, taking turns.

A contender is a function that sets something up and returns a call to be timed. `compare` runs the
contenders of one case round by round, one call each, so that a change of the machine's speed meets all of them.
"""

import gc
import importlib.metadata
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, cast

import pandas as pd
import torch

from analysis.runs.identity import processor_name
from analysis.runs.memory import is_freed_memory_kept, return_freed_memory
from analysis.runs.settings import Range, check_number

Call = Callable[[], object]
ROUNDS: Range = (1, 1_000_000, "1 to 1000000 rounds")
THREADS: Range = (1, 4096, "1 to 4096 threads")


@dataclass(frozen=True)
class Contender:
    """One competitor in a case: `setup(**arguments)`, called in the process called `process`, gives what is timed."""

    name: str
    process: str
    setup: Callable[..., Call]
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """What is compared: the labels of the table's rows, and the contenders; ratios are to the first one's time."""

    labels: Mapping[str, Any]
    contenders: Sequence[Contender] = field(repr=False)


def without_gradients(call: Call) -> Call:
    def run() -> object:
        with torch.no_grad():
            return call()

    return run


def seed_and_threads(threads: int) -> None:
    torch.manual_seed(0)
    torch.set_num_threads(threads)


def check_timing(*, repeats: int = 1, seconds: float = 1.0, threads: int = 1) -> None:
    """Refuse what nothing can be timed with.

    Raises:
        ValueError: If a value is out of range.
    """
    check_number("repeats", repeats, ROUNDS)
    check_number("seconds", seconds, (0.0, 1e9, "a number of at least 0, and at most 1e9"))
    check_number("threads", threads, THREADS)


def compare(
    cases: Sequence[Case],
    *,
    repeats: int,
    seconds: float,
    hopeless: float = math.inf,
    progress: Callable[[int, int], None],
) -> pd.DataFrame:
    """Time every contender of every case.

    Args:
        cases: What to compare.
        repeats: Rounds, in each of which every contender is called once (short calls for 20 ms, averaged, after
            as many that are not timed).
        seconds: Time for the rounds of one case after which no new one begins; two are always made.
        hopeless: A contender whose first call takes so many times as long as the fastest one's, and more than a
            twentieth of a second, is not called again: that call is its time, and it has one round.
        progress: Called with the number of cases done and of all.

    Returns:
        One row per contender: the labels of its case, its name, median, minimum and maximum of the rounds in
        milliseconds, the number of rounds, `ratio`, its median over the first contender's, and `peak_mib`, the memory
        that the first call needs beyond what was there before it. A contender whose library is not installed has no
        times.

    Raises:
        ValueError: If a value is out of range.
    """
    check_timing(repeats=repeats, seconds=seconds)
    rows: list[dict[str, Any]] = []
    with _workers({contender.process for case in cases for contender in case.contenders}) as workers:
        for index, case in enumerate(cases):
            progress(index, len(cases))
            rows += _measure(case, workers, repeats, seconds, hopeless)
    progress(len(cases), len(cases))
    return pd.DataFrame(rows)


def slowness(table: pd.DataFrame, other: str) -> pd.DataFrame:
    """How long RepLKNet's convolution takes in its better layout, over another contender in its better one.

    Args:
        table: Of `compare`, for `convolution_cases`.
        other: "conv2d" or "torch-fftconv".

    Returns:
        One row per case that both were timed in, slowest first: its labels, `ours_ms`, `other_ms` and `ratio`.
    """
    labels = list(table.columns[: list(table.columns).index("contender")])
    family = table["contender"].str.removesuffix(", channels_last")
    best = table.assign(family=family).pivot_table("median_ms", labels, "family", aggfunc="min").reset_index()
    found = best[[*labels, "replknet", other]].rename(columns={"replknet": "ours_ms", other: "other_ms"}).dropna()
    found["ratio"] = found["ours_ms"] / found["other_ms"]
    return pd.DataFrame(found.sort_values("ratio", ascending=False, ignore_index=True))


def _measure(
    case: Case, workers: Mapping[str, Connection], repeats: int, seconds: float, hopeless: float
) -> list[dict[str, Any]]:
    ready = []
    rows = []
    for position, contender in enumerate(case.contenders):
        answer = _ask(workers[contender.process], ("set up", position, contender.setup, dict(contender.arguments)))
        row: dict[str, Any] = {**case.labels, "contender": contender.name}
        if isinstance(answer, str):
            row["note"] = answer
        else:
            row["peak_mib"], first = answer
            ready.append((position, contender, row, cast("list[float]", [first])))
        rows.append(row)
    longest = max(50.0, hopeless * min((times[0] for *_, times in ready), default=0.0))
    repeated = [entry for entry in ready if entry[3][0] <= longest]
    for _, _, _, times in repeated:
        times.clear()
    begin = time.monotonic()
    for done in range(repeats):
        if done >= 2 and time.monotonic() - begin > seconds:
            break
        for position, contender, _, times in repeated:
            times.append(_ask(workers[contender.process], ("run", position)))
    for _, contender, row, times in ready:
        row |= {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times), "rounds": len(times)}
        row["ratio"] = row["median_ms"] / ready[0][2]["median_ms"]
        _ask(workers[contender.process], ("clear",))
    return rows


def _ask(connection: Connection, message: tuple[Any, ...]) -> Any:
    try:
        connection.send(message)
        return connection.recv()
    except (EOFError, ConnectionError) as error:
        raise ChildProcessError(
            "a benchmark's process has ended; the memory may not suffice for all contenders"
        ) from error


@contextmanager
def _workers(names: set[str]) -> Iterator[dict[str, Connection]]:
    context = multiprocessing.get_context("spawn")
    processes = []
    connections = {}
    for name in sorted(names):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        processes.append(process)
        connections[name] = ours
    try:
        yield connections
    finally:
        for connection in connections.values():
            connection.close()
        for process in processes:
            process.join(10)
            process.terminate()


def _serve(connection: Connection) -> None:
    """Answer requests until the other side goes away."""
    calls: dict[int, tuple[Call, int, bool]] = {}
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if message[0] == "set up":
            try:
                call = message[2](**message[3])
                return_freed_memory()
                before = _reset_peak()
                duration = first = _seconds(call, 1)
                peak = None if before is None else (_memory("VmHWM") - before) / 1024
                if first < 1:
                    duration = _seconds(call, 1)
                return_freed_memory()
                # Another process had the caches just now, and its waiting threads keep a core for some 10 ms more: as
                # many short calls are made before those that are timed; so is one that finds its memory again, which
                # is returned in between for the others to have.
                calls[message[1]] = (call, max(1, int(0.02 / duration)), duration < 1 or is_freed_memory_kept())
                connection.send((peak, 1e3 * first))
            except ImportError as error:
                connection.send(f"not installed: {error.name}")
        elif message[0] == "run":
            call, number, warm_up = calls[message[1]]
            if warm_up:
                _seconds(call, number)
            seconds = _seconds(call, number)
            if is_freed_memory_kept():
                return_freed_memory()
            connection.send(1e3 * seconds)
        else:
            calls.clear()
            gc.collect()
            connection.send(None)


def _seconds(call: Call, number: int) -> float:
    begin = time.perf_counter()
    for _ in range(number):
        call()
    return (time.perf_counter() - begin) / number


def _reset_peak() -> int | None:
    """Forget the peak of this process's memory; what it holds now in KiB, None where the system does not tell."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
        return _memory("VmRSS")
    except OSError:
        return None


def _memory(key: str) -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{key}:")[1].split()[0])


def environment(threads: int) -> dict[str, Any]:
    """Processor, threads and versions, for the record."""
    versions = {}
    for package in ("torch", "numpy", "torch-fftconv", "fft-conv-pytorch", "onnxruntime", "openvino"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": processor_name(),
        "instruction_set": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": threads,
        "python": platform.python_version(),
        **versions,
    }
