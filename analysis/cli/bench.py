"""`replknet bench`."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.table import Table

from analysis.benchmark.convolutions import convolution_cases
from analysis.benchmark.networks import network_cases
from analysis.benchmark.timing import ROUNDS, THREADS, Case, check_timing, compare, environment, slowness
from analysis.cli.console import print_line, print_table, progress_bar
from analysis.cli.options import parse_numbers
from analysis.runs.settings import BATCHES, SIDES
from analysis.runs.tables import write_table
from analysis.runs.writing import clear_leftovers, replacing, write_json

app = typer.Typer()
bench = typer.Typer(help="Time RepLKNet and its convolution beside other libraries (install the extra 'bench').")


app.add_typer(bench, name="bench")


_MANY = 400
_Rounds = Annotated[int, typer.Option(help="Rounds; in each, every contender is called once.", min=1, max=ROUNDS[1])]
_Seconds = Annotated[float, typer.Option(help="After so many seconds of rounds, no new one begins (two at least).")]
_Threads = Annotated[
    int | None, typer.Option(help="Threads of every library; all cores by default.", min=1, max=THREADS[1])
]
_Out = Annotated[Path | None, typer.Option(help="Folder for table, figure and environment.")]


@bench.command("conv")
def bench_conv(
    suite: Annotated[str, typer.Option(help="headline, grid or paper.")] = "headline",
    rounds: _Rounds = 9,
    seconds: _Seconds = 20.0,
    threads: _Threads = None,
    out: _Out = None,
) -> None:
    """Depthwise convolutions: forward and backward, each direction on a grid, or the paper's table of latencies.

    On the grid, what takes over three times as long as the fastest in its first call is not called again.
    """
    if suite not in ("headline", "grid", "paper"):
        raise ValueError(f"suite={suite}: expected headline, grid or paper")
    threads = threads or torch.get_num_threads()
    cases = list(convolution_cases(suite, threads))
    _bench(f"conv-{suite}", cases, rounds, seconds, threads, out, hopeless=3.0 if suite == "grid" else math.inf)


@bench.command("model")
def bench_model(
    size: Annotated[int, typer.Option(help="Side of the images.", min=32, max=4096)] = 224,
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "1,4",
    rounds: _Rounds = 9,
    seconds: _Seconds = 60.0,
    threads: _Threads = None,
    out: _Out = None,
) -> None:
    """RepLKNet-31B, re-parameterised, in inference."""
    _bench_network("inference", (size,), batches, rounds, seconds, threads, out)


@bench.command("erf")
def bench_erf(
    sizes: Annotated[str, typer.Option(help="Sides of the images.")] = "512,1024",
    rounds: _Rounds = 5,
    seconds: _Seconds = 120.0,
    threads: _Threads = None,
    out: _Out = None,
) -> None:
    """Input gradient of RepLKNet-31B for an effective receptive field."""
    _bench_network("erf", parse_numbers("--sizes", sizes, within=SIDES[:2]), "1", rounds, seconds, threads, out)


@bench.command("train")
def bench_train(
    size: Annotated[int, typer.Option(help="Side of the images.", min=32, max=4096)] = 224,
    batches: Annotated[str, typer.Option(help="Batch sizes.")] = "8",
    rounds: _Rounds = 5,
    seconds: _Seconds = 120.0,
    threads: _Threads = None,
    out: _Out = None,
) -> None:
    """A training step of RepLKNet-31B with kernels 31-29-27-13 and with 3-3-3-3."""
    _bench_network("train", (size,), batches, rounds, seconds, threads, out)


def _bench_network(
    task: str, sizes: Sequence[int], batches: str, rounds: int, seconds: float, threads: int | None, out: Path | None
) -> None:
    threads = threads or torch.get_num_threads()
    cases = list(network_cases(task, sizes, parse_numbers("--batches", batches, within=BATCHES[:2]), threads))
    _bench(task, cases, rounds, seconds, threads, out)


def _bench(
    name: str,
    cases: Sequence[Case],
    rounds: int,
    seconds: float,
    threads: int,
    out: Path | None,
    hopeless: float = math.inf,
) -> None:
    check_timing(repeats=rounds, seconds=seconds, threads=threads)
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"out={str(out)!r}: exists and is not a folder")
    if out is not None:
        _check_free(out, name)
    with progress_bar(f"bench {name}") as progress:
        table = compare(cases, repeats=rounds, seconds=seconds, hopeless=hopeless, progress=progress)
    record = environment(threads)
    caption = ", ".join(f"{key} {value}" for key, value in record.items())
    if len(table) > _MANY:
        _print_slowest(table, caption)
    else:
        print_table(_bench_table(table, caption))
    if out is None:
        return
    from matplotlib.figure import Figure

    from analysis.benchmark import plots
    from analysis.figures import paper_style, save_figure

    write_json(out / f"{name}.json", record | {"outputs": _outputs(name)})
    with paper_style():
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.add_subplot()
        if len(table) > _MANY:
            plots.plot_ratios(slowness(table, "conv2d"), ax=axes)
        else:
            plots.plot_benchmark(table, ax=axes)
        save_figure(figure, name, lambda file: replacing(out / file))
    with replacing(out / f"{name}.csv") as path:
        write_table(table, path, float_format="%.6g")
    typer.echo(f"{name}.csv, .json, .png and .pdf are in {out}")


def _outputs(name: str) -> list[str]:
    """In the order in which they are written."""
    return [f"{name}.{suffix}" for suffix in ("json", "png", "pdf", "csv")]


def _check_free(out: Path, name: str) -> None:
    """Refuse to replace anything but what an interrupted run has left."""
    first, *others = _outputs(name)
    try:
        begun = json.loads((out / first).read_text())["outputs"] == _outputs(name)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        begun = False
    for file in others[-1:] if begun else (first, *others):
        if (out / file).exists():
            raise FileExistsError(f"out={str(out)!r}: {file} is there already; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    for file in (first, *others):
        clear_leftovers(out, of=file)


def _print_slowest(table: pd.DataFrame, caption: str) -> None:
    """Of a table too long to print."""
    for other in ("conv2d", "torch-fftconv"):
        ratios = slowness(table, other)
        if ratios.empty:
            continue
        rows = ratios.head(10)
        shown = Table(title=f"The 10 cases with the highest time over that of {other}, best layouts", caption=caption)
        for column in rows.columns:
            shown.add_column(column)
        for row in rows.itertuples(index=False):
            shown.add_row(*(f"{value:.3f}" if isinstance(value, float) else str(value) for value in row))
        print_table(shown)
        above = ", ".join(f"{int((ratios['ratio'] > limit).sum())} above {limit}" for limit in (1.0, 1.1))
        print_line(f"{len(ratios)} cases: {above}; median {ratios['ratio'].median():.3f}", stderr=False)


def _bench_table(rows: pd.DataFrame, caption: str) -> Table:
    table = Table(caption=caption)
    shown = [column for column in rows.columns if column not in ("min_ms", "max_ms", "rounds")]
    for column in shown:
        table.add_column("median [min, max] ms" if column == "median_ms" else column)
    for row in rows.to_dict("records"):
        cells = []
        for column in shown:
            value = row[column]
            if column == "median_ms" and not pd.isna(value):
                cells.append(f"{value:.2f} [{row['min_ms']:.2f}, {row['max_ms']:.2f}]")
            elif isinstance(value, float):
                cells.append("" if pd.isna(value) else f"{value:.2f}" if column == "ratio" else f"{value:.0f}")
            else:
                cells.append(str(value))
        table.add_row(*cells)
    return table
