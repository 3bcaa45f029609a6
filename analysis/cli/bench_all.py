"""`replknet bench all`: correctness first, then the tables, then what they come to."""

import io
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.table import Table

from analysis.benchmark.agreement import checks, errors, worst
from analysis.benchmark.convolutions import convolution_cases, network_convolutions
from analysis.benchmark.devices import environment, first_call, start_device
from analysis.benchmark.networks import gpu_network_cases, network_cases
from analysis.benchmark.summary import figures
from analysis.benchmark.timing import Case
from analysis.benchmark.workers import Workers
from analysis.cli.bench import bench_table, draw_table, timed_table
from analysis.cli.console import print_line, print_notes, progress_bar, run_folder
from analysis.runs.folder import RunFolder
from analysis.runs.tables import write_table
from analysis.runs.writing import write_json

PROCESSES = 15
"""That compile kernels at the same time, at most."""
PATIENCE = 90.0
"""Seconds for one contender's first call or round on a GPU; `torch.compile` has three times as many."""
LEFT = 1
"""Exit code where the convolution is not right, or a table could not be made."""


@dataclass(frozen=True)
class Step:
    """A table: its cases, rounds, seconds for the rounds of a case, and the patience with its processes."""

    name: str
    cases: Sequence[Case]
    rounds: int
    seconds: float
    patience: float = PATIENCE


def steps(device: str, threads: int, compiled: bool) -> list[Step]:
    """The tables in the order in which they are made."""
    if device == "cpu":
        return [
            Step("conv-headline", list(convolution_cases("headline", threads)), 3, 2.0),
            Step("conv-paper", list(convolution_cases("paper", threads)), 3, 1.0),
            Step("inference", list(network_cases("inference", (224,), (1,), threads)), 3, 10.0),
            Step("erf", list(network_cases("erf", (512,), (1,), threads)), 3, 10.0),
            Step("train", list(network_cases("train", (224,), (8,), threads)), 3, 10.0),
        ]

    def networks(task: str, size: int, batch: int, dtype: str, **options: bool) -> list[Case]:
        return list(gpu_network_cases(task, (size,), (batch,), threads, device=device, dtype=dtype, **options))

    found = [
        Step("train", networks("train", 224, 64, "bfloat16"), 7, 8.0),
        Step("inference", networks("inference", 224, 64, "bfloat16"), 9, 4.0),
        Step("erf", networks("erf", 1024, 1, "float32"), 7, 8.0),
    ]
    if compiled:
        cases = networks("train", 224, 64, "bfloat16", compiled=True, plain=False)
        found.append(Step("train-compiled", cases, 7, 8.0, 3 * PATIENCE))
    found.append(Step("conv-headline", list(convolution_cases("headline", threads, device=device)), 3, 0.6))
    found.append(Step("conv-paper", list(convolution_cases("paper", threads, device=device)), 3, 0.5))
    return found


def run_all(out: Path, device: str, compiled: bool, minutes: float) -> None:
    """All of it, into a folder that is this command's own.

    Raises:
        typer.Exit: With `LEFT` if the convolution is not right, or a table could not be made.
    """
    if device != "cpu" and not device.startswith("cuda"):
        raise ValueError(f"device={device}: expected cpu or cuda")
    begin, threads = time.monotonic(), torch.get_num_threads()
    record = environment(threads, device)
    wanted = steps(device, threads, compiled)
    settings = {"device": device, "gpu": record.get("gpu"), "compiled": compiled, "threads": threads}
    with run_folder(out, "bench all", settings) as folder:
        write_json(folder.add("environment.json"), record)
        names = {contender.process for step in wanted for case in step.cases for contender in case.contenders}
        tables: dict[str, pd.DataFrame] = {}
        missing: dict[str, str] = {}
        with Workers(
            names - {"torch.compile"} if device != "cpu" else (), device=device, limit=_limit(device)
        ) as workers:
            checked = _agreement(folder, device, threads, wanted)
            right = bool(checked["right"].all())
            text = _summarised(folder, record, checked, tables, missing, wanted)
            for step in wanted if right else ():
                if _is_done(folder, step.name):
                    tables[step.name] = _read(folder, step.name)
                elif time.monotonic() - begin > 60 * minutes:
                    missing[step.name] = f"not begun after {minutes:g} minutes; the same command makes it"
                else:
                    try:
                        tables[step.name] = _made(folder, step, device, workers)
                    except ChildProcessError as error:
                        missing[step.name] = str(error)
                text = _summarised(folder, record, checked, tables, missing, wanted)
    print_line(text, stderr=False)
    print_notes(f"{name}: {reason}" for name, reason in missing.items())
    if not right:
        print_line("replknet: the convolution is not as exact as it has to be; see correctness.csv")
    if not right or missing:
        raise typer.Exit(LEFT)


def _limit(device: str) -> float | None:
    return None if device == "cpu" else PATIENCE


def _is_done(folder: RunFolder, name: str) -> bool:
    return folder.add(f"{name}.csv").exists()


def _made(folder: RunFolder, step: Step, device: str, workers: Workers) -> pd.DataFrame:
    if device != "cpu" and step.patience != PATIENCE:
        workers.end("network")  # what it holds of the GPU's memory is needed
        with Workers((), device=device, limit=step.patience) as own:
            table = timed_table(step.name, step.cases, step.rounds, step.seconds, device, workers=own)
    else:
        table = timed_table(step.name, step.cases, step.rounds, step.seconds, device, workers=workers)
    draw_table(table, step.name, folder.replace)
    _write(folder, step.name, table)
    return _read(folder, step.name)


def _read(folder: RunFolder, name: str) -> pd.DataFrame:
    return pd.read_csv(folder.path / f"{name}.csv")


def _write(folder: RunFolder, name: str, table: pd.DataFrame) -> None:
    with folder.replace(f"{name}.csv") as path:
        write_table(table, path, float_format="%.6g")


def _agreement(folder: RunFolder, device: str, threads: int, wanted: Iterable[Step]) -> pd.DataFrame:
    """Errors; on a GPU all kernels are compiled meanwhile, so that nothing is timed while that is done."""
    if _is_done(folder, "correctness"):
        return _read(folder, "correctness")
    every = list(checks(device))
    with _mapping(device) as mapped, progress_bar("correctness") as progress:
        rows: list[dict[str, Any]] = []
        found = mapped(errors, every)
        later: Iterator[dict[str, Any]] = iter(())
        if device.startswith("cuda"):
            cases = [*network_convolutions(threads, device)]
            cases += [case for step in wanted for case in step.cases if step.name.startswith("conv")]
            firsts = [
                (dict(case.labels), contender.name, contender.setup, dict(contender.arguments))
                for case in cases
                for contender in case.contenders
                if contender.process == "replknet"
            ]
            later = mapped(first_call, firsts)
        for number, own in enumerate(found, 1):
            rows += own
            progress(number, len(every))
        compiled = list(later)
    if compiled:
        _write(folder, "compile", pd.DataFrame(compiled))
    _write(folder, "correctness", pd.DataFrame(rows))
    return _read(folder, "correctness")


@contextmanager
def _mapping(device: str) -> Iterator[Callable[..., Any]]:
    """`map`, on CUDA by several processes."""
    if not device.startswith("cuda"):
        yield map
        return
    number = max(1, min(PROCESSES, torch.get_num_threads()))
    with ProcessPoolExecutor(number, get_context("spawn"), start_device, (device,)) as pool:
        yield pool.map


def _summarised(
    folder: RunFolder,
    record: dict[str, Any],
    checked: pd.DataFrame,
    tables: dict[str, pd.DataFrame],
    missing: dict[str, str],
    wanted: Iterable[Step],
) -> str:
    lines = [f"{key}: {value}" for key, value in record.items()]
    wrong = checked[~checked["right"].astype(bool)]
    lines += [
        "",
        f"Correctness: {len(checked)} comparisons with conv2d in float64, {len(wrong)} out of bounds; the worst:",
    ]
    lines.append(worst(checked).to_string(index=False, float_format="%.2e"))
    if len(wrong):
        lines += ["", "Out of bounds:", wrong.head(40).to_string(index=False, float_format="%.2e")]
    if record["device"] != "cpu":
        lines += ["", "Figures:", *map(str, figures(tables))]
    lines += [f"{name}: {reason}" for name, reason in missing.items()]
    for step in wanted:
        if step.name in tables:
            lines += ["", step.name, _text(bench_table(tables[step.name], ""))]
    text = "\n".join(lines) + "\n"
    with folder.replace("summary.txt") as path:  # after each table, as a run may be cut
        path.write_text(text)
    return text


def _text(table: Table) -> str:
    console = Console(file=io.StringIO(), width=220, markup=False, emoji=False, highlight=False)
    console.print(table)
    text: str = console.file.getvalue()  # type: ignore[attr-defined]
    return "\n".join(line.rstrip() for line in text.splitlines())
