"""Side-by-side timings: every library in a process of its own, taking turns.

A contender is a function that sets something up and returns a call to be timed. `compare` runs the
contenders of one case round by round, one call each, so that a change of the machine's speed meets all of them.
"""

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import pandas as pd
import torch

from analysis.benchmark.devices import Call as Call
from analysis.benchmark.workers import FAILED, Workers
from analysis.runs.settings import Range, check_number

ROUNDS: Range = (1, 1_000_000, "1 to 1000000 rounds")
THREADS: Range = (1, 4096, "1 to 4096 threads")


@dataclass(frozen=True)
class Contender:
    """One competitor in a case: `setup(**arguments)`, called in the process called `process`, gives what is timed.

    `trials` are changes of the arguments that leave this share of the work, the smallest first, for one that may take
    far too long; see `longest` of `compare`.
    """

    name: str
    process: str
    setup: Callable[..., Call]
    arguments: Mapping[str, Any]
    trials: Sequence[tuple[Mapping[str, Any], float]] = ()


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
    longest: float = math.inf,
    device: str = "cpu",
    workers: Workers | None = None,
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
        longest: A contender with trials is not called if these say that a call takes more than so many seconds.
        device: Where all of them compute.
        workers: Their processes, if there are some already.
        progress: Called with the number of cases done and of all.

    Returns:
        One row per contender: the labels of its case, its name, median, minimum and maximum of the rounds in
        milliseconds, the number of rounds, `ratio`, its median over the first contender's, and `peak_mib`, the memory
        that the first call needs beyond what was there before it. On CUDA also `first_ms`, what the first call took,
        compilation included; `eager_ms`, what a call takes as a user makes it; and `timed`, "calls" or "graph" if
        replays of a CUDA graph of the call were timed instead. A contender that cannot be timed has a `note` that says
        why, such as that its library is not installed.

    Raises:
        ValueError: If a value is out of range.
    """
    check_timing(repeats=repeats, seconds=seconds)
    rows: list[dict[str, Any]] = []
    names = {contender.process for case in cases for contender in case.contenders}
    with Workers(names, device=device) if workers is None else nullcontext(workers) as started:
        for index, case in enumerate(cases):
            progress(index, len(cases))
            rows += _measure(case, started, repeats, seconds, hopeless, longest)
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
    if not {"replknet", other} <= set(best):
        return pd.DataFrame(columns=[*labels, "ours_ms", "other_ms", "ratio"])
    found = best[[*labels, "replknet", other]].rename(columns={"replknet": "ours_ms", other: "other_ms"}).dropna()
    found["ratio"] = found["ours_ms"] / found["other_ms"]
    return pd.DataFrame(found.sort_values("ratio", ascending=False, ignore_index=True))


def _measure(
    case: Case, workers: Workers, repeats: int, seconds: float, hopeless: float, longest: float
) -> list[dict[str, Any]]:
    ready = []
    rows = []
    failed: set[str] = set()
    for position, contender in enumerate(case.contenders):
        own = (contender.setup, dict(contender.arguments), contender.trials, longest)
        answer = workers.ask(contender.process, "set up", position, *own)
        row: dict[str, Any] = {**case.labels, "contender": contender.name}
        if isinstance(answer, str):
            row["note"] = answer
            if answer.startswith(FAILED):
                failed.add(contender.process)
        else:
            first, known = answer
            row |= known
            ready.append((position, contender, row, cast("list[float]", [first])))
        rows.append(row)
    slowest = max(50.0, hopeless * min((times[0] for *_, times in ready), default=0.0))
    repeated = [entry for entry in ready if entry[3][0] <= slowest]
    for _, _, _, times in repeated:
        times.clear()
    begin = time.monotonic()
    for done in range(repeats):
        if done >= 2 and time.monotonic() - begin > seconds:
            break
        for position, contender, row, times in repeated:
            if "note" in row:
                continue
            answer = workers.ask(contender.process, "run", position)
            if isinstance(answer, str):
                row["note"] = answer
                failed.add(contender.process)
            else:
                times.append(answer)
    for row, times in [(row, times) for _, _, row, times in ready if "note" not in row]:
        row |= {"median_ms": statistics.median(times), "min_ms": min(times), "max_ms": max(times), "rounds": len(times)}
        row["ratio"] = row["median_ms"] / rows[0].get("median_ms", math.nan)
    for name in {contender.process for contender in case.contenders}:
        if name in failed:  # an error of a GPU stays with the process
            workers.end(name)
        else:
            workers.ask(name, "clear")
    return rows
