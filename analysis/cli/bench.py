"""`replknet bench`."""

import json
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
import typer
from rich.table import Table

import replknet
from analysis.benchmark.convolutions import convolution_cases, with_published, with_sums
from analysis.benchmark.devices import DTYPES, environment
from analysis.benchmark.networks import family_cases, gpu_network_cases, network_cases, with_rates
from analysis.benchmark.receptive_fields import receptive_field_cases
from analysis.benchmark.timing import ROUNDS, THREADS, Case, check_timing, compare, slowness
from analysis.benchmark.workers import Workers
from analysis.cli.console import print_line, print_table, progress_bar
from analysis.cli.options import parse_numbers
from analysis.models.loaded import resolve_device
from analysis.runs.settings import BATCHES, SIDES
from analysis.runs.tables import write_table
from analysis.runs.writing import clear_leftovers, replacing, write_json

app = typer.Typer()
bench = typer.Typer(help="Time RepLKNet and its convolution beside other libraries (install the extra 'bench').")


app.add_typer(bench, name="bench")


_MANY = 400
_FOREIGN_IMAGES = 48
_FIRST = "replknet_31b"
_Network = Annotated[str, typer.Option(help="Architecture, by its name; others than the first on a CPU only.")]
_Rounds = Annotated[int, typer.Option(help="Rounds; in each, every contender is called once.", min=1, max=ROUNDS[1])]
_Seconds = Annotated[float, typer.Option(help="After so many seconds of rounds, no new one begins (two at least).")]
_Threads = Annotated[
    int | None, typer.Option(help="Threads of every library; all cores by default.", min=1, max=THREADS[1])
]
_Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...; auto takes the GPU if there is one.")]
_Compile = Annotated[bool, typer.Option("--compile", help="On a GPU, time what torch.compile makes of them, too.")]
LONGEST = 0.25
"""Seconds; on a GPU, what would take longer for one call by the vendor's channels_last convolution is not called."""
_Out = Annotated[Path | None, typer.Option(help="Folder for table, figure and environment.")]


@bench.command("conv")
def bench_conv(
    suite: Annotated[str, typer.Option(help="headline, grid or paper.")] = "headline",
    rounds: _Rounds = 9,
    seconds: _Seconds = 20.0,
    threads: _Threads = None,
    device: _Device = "auto",
    dtype: Annotated[
        str | None,
        typer.Option(help="On a GPU: float32, bfloat16 or float16; float32 by default, bfloat16 in the headline."),
    ] = None,
    compiled: _Compile = False,
    out: _Out = None,
) -> None:
    """Depthwise convolutions: the headline's shapes, each direction on a grid, or the paper's table of latencies.

    The headline is forward and backward on a CPU, and each direction and their sum on a GPU. On the grid, what takes
    over three times as long as the fastest in its first call is not called again.
    """
    if suite not in ("headline", "grid", "paper"):
        raise ValueError(f"suite={suite}: expected headline, grid or paper")
    device, threads = _place(device, dtype), threads or torch.get_num_threads()
    cases = list(convolution_cases(suite, threads, device=device, dtype=dtype, compiled=compiled))
    hopeless = 3.0 if suite == "grid" else math.inf
    _bench(f"conv-{suite}", cases, rounds, seconds, threads, out, device, hopeless)


@bench.command("model")
def bench_model(
    network: _Network = _FIRST,
    size: Annotated[int, typer.Option(help="Side of the images.", min=32, max=4096)] = 224,
    batches: Annotated[str | None, typer.Option(help="Batch sizes; by default 1,4 on a CPU and 64 on a GPU.")] = None,
    rounds: _Rounds = 9,
    seconds: _Seconds = 60.0,
    threads: _Threads = None,
    device: _Device = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="On a GPU, of weights and images: float32, float16, by default bfloat16.")
    ] = None,
    compiled: _Compile = False,
    out: _Out = None,
) -> None:
    """A network, re-parameterised, in inference: RepLKNet-31B in other engines, too, any other in plain layers."""
    device = _place(device, dtype)
    batches = batches or ("1,4" if device == "cpu" else "64")
    cases = _network_cases("inference", (size,), batches, threads, device, dtype or "bfloat16", compiled, network)
    _bench(_named("inference", network), cases, rounds, seconds, threads, out, device)


@bench.command("erf")
def bench_erf(
    suite: Annotated[
        str, typer.Option(help="31b, or foreign: 48 images through networks of timm, beside openerf, on a CPU.")
    ] = "31b",
    sizes: Annotated[
        str | None, typer.Option(help="Sides of the images; by default 512,1024 on a CPU and 1024 on a GPU.")
    ] = None,
    rounds: _Rounds = 5,
    seconds: _Seconds = 120.0,
    threads: _Threads = None,
    device: _Device = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="On a GPU, of weights and images: bfloat16, float16, by default float32.")
    ] = None,
    out: _Out = None,
) -> None:
    """Input gradient of RepLKNet-31B for an effective receptive field, or whole measurements of other networks."""
    if suite not in ("31b", "foreign"):
        raise ValueError(f"suite={suite}: expected 31b or foreign")
    device = _place(device, dtype)
    if suite == "foreign":
        if device != "cpu":
            raise ValueError(f"device={device}: expected cpu for suite=foreign")
        cases = list(receptive_field_cases(_FOREIGN_IMAGES, threads or torch.get_num_threads()))
        _bench("erf-foreign", cases, rounds, seconds, threads, out, device)
        return
    sides = parse_numbers("--sizes", sizes or ("512,1024" if device == "cpu" else "1024"), within=SIDES[:2])
    cases = _network_cases("erf", sides, "1", threads, device, dtype or "float32")
    _bench("erf", cases, rounds, seconds, threads, out, device)


@bench.command("train")
def bench_train(
    network: _Network = _FIRST,
    size: Annotated[int, typer.Option(help="Side of the images.", min=32, max=4096)] = 224,
    batches: Annotated[str | None, typer.Option(help="Batch sizes; by default 8 on a CPU and 64 on a GPU.")] = None,
    rounds: _Rounds = 5,
    seconds: _Seconds = 120.0,
    threads: _Threads = None,
    device: _Device = "auto",
    dtype: Annotated[
        str | None, typer.Option(help="On a GPU, that of autocast: float16, float32 for none, by default bfloat16.")
    ] = None,
    compiled: _Compile = False,
    out: _Out = None,
) -> None:
    """A training step: of RepLKNet-31B with kernels 31-29-27-13 and with 3-3-3-3, of others beside plain layers."""
    device = _place(device, dtype)
    batches = batches or ("8" if device == "cpu" else "64")
    cases = _network_cases("train", (size,), batches, threads, device, dtype or "bfloat16", compiled, network)
    _bench(_named("train", network), cases, rounds, seconds, threads, out, device)


@bench.command("all")
def bench_all(
    out: Annotated[Path, typer.Option(help="Folder for all of it.")],
    device: _Device = "auto",
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="On a GPU, train by torch.compile, too.")
    ] = True,
    minutes: Annotated[float, typer.Option(help="After so many, no new table is begun.", min=0.0, max=1e6)] = 4.0,
) -> None:
    """Compare the convolution with float64, then make all tables but the grid, and a summary.

    Exit code 1 and no table if the convolution is not as exact as it has to be. Each table is written when it is done;
    the same command makes those that are missing.
    """
    from analysis.cli.bench_all import run_all

    run_all(out, _place(device, None), compiled, minutes)


def _place(device: str, dtype: str | None) -> str:
    if dtype not in (None, *DTYPES):
        raise ValueError(f"dtype={dtype}: expected one of {', '.join(DTYPES)}")
    device = str(resolve_device(device))
    if device == "cpu" and dtype not in (None, "float32"):
        raise ValueError(f"dtype={dtype}: expected float32 on a CPU, where conv2d of half precision may not return")
    return device


def _network_cases(
    task: str,
    sizes: Sequence[int],
    batches: str,
    threads: int | None,
    device: str,
    dtype: str,
    compiled: bool = False,
    network: str = _FIRST,
) -> list[Case]:
    threads, numbers = threads or torch.get_num_threads(), parse_numbers("--batches", batches, within=BATCHES[:2])
    if network not in replknet.PRESETS:
        raise ValueError(f"network={network}: expected one of {', '.join(replknet.PRESETS)}")
    if network != _FIRST:
        if device != "cpu":
            raise ValueError(f"network={network}: expected {_FIRST} on a GPU")
        return list(family_cases(network, task, sizes, numbers, threads))
    if device == "cpu":
        return list(network_cases(task, sizes, numbers, threads))
    return list(gpu_network_cases(task, sizes, numbers, threads, device=device, dtype=dtype, compiled=compiled))


def _named(task: str, network: str) -> str:
    return task if network == _FIRST else f"{task}-{network}"


def _bench(
    name: str,
    cases: Sequence[Case],
    rounds: int,
    seconds: float,
    threads: int | None,
    out: Path | None,
    device: str,
    hopeless: float = math.inf,
) -> None:
    threads = threads or torch.get_num_threads()
    check_timing(repeats=rounds, seconds=seconds, threads=threads)
    if out is not None and out.exists() and not out.is_dir():
        raise ValueError(f"out={str(out)!r}: exists and is not a folder")
    if out is not None:
        _check_free(out, name)
    table = timed_table(name, cases, rounds, seconds, device, hopeless)
    record = environment(threads, device)
    show_table(table, ", ".join(f"{key} {value}" for key, value in record.items()))
    if out is None:
        return
    write_json(out / f"{name}.json", record | {"outputs": _outputs(name)})
    draw_table(table, name, lambda file: replacing(out / file))
    with replacing(out / f"{name}.csv") as path:
        write_table(table, path, float_format="%.6g")
    typer.echo(f"{name}.csv, .json, .png and .pdf are in {out}")


def timed_table(
    name: str,
    cases: Sequence[Case],
    rounds: int,
    seconds: float,
    device: str,
    hopeless: float = math.inf,
    workers: Workers | None = None,
) -> pd.DataFrame:
    """What is written and shown of these cases."""
    with progress_bar(f"bench {name}") as progress:
        table = compare(
            cases,
            repeats=rounds,
            seconds=seconds,
            hopeless=hopeless,
            longest=LONGEST,
            device=device,
            workers=workers,
            progress=progress,
        )
    if device == "cpu":
        return table
    if name == "conv-headline":
        table = with_sums(table)
    elif name == "conv-paper":
        table = with_published(table)
    elif "task" in table:
        table = with_rates(table)
    table.insert(0, "device", torch.cuda.get_device_name(device) if device.startswith("cuda") else device)
    return table


def show_table(table: pd.DataFrame, caption: str) -> None:
    """As it is, or the worst of one that is too long to print."""
    if len(table) > _MANY:
        _print_slowest(table, caption)
    else:
        print_table(bench_table(table, caption))


def draw_table(table: pd.DataFrame, name: str, place: Callable[[str], AbstractContextManager[Path]]) -> None:
    """The figure of a table; nothing where nothing was timed."""
    from matplotlib.figure import Figure

    from analysis.benchmark import plots
    from analysis.figures import paper_style, save_figure

    with paper_style():
        figure = Figure(figsize=(5.2, 3.2), layout="constrained")
        axes = figure.add_subplot()
        if len(table) > _MANY:
            plots.plot_ratios(slowness(table, "conv2d"), ax=axes)
        else:
            plots.plot_benchmark(table, ax=axes)
        save_figure(figure, name, place)


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


def bench_table(rows: pd.DataFrame, caption: str) -> Table:
    table = Table(caption=caption)
    shown = [column for column in rows.columns if column not in ("min_ms", "max_ms", "rounds")]
    for column in shown:
        table.add_column("median [min, max] ms" if column == "median_ms" else column)
    for row in rows.to_dict("records"):
        cells = []
        for column in shown:
            value = row[column]
            if column == "median_ms" and not pd.isna(value):
                digits = 2 if value >= 1 else 4
                cells.append(f"{value:.{digits}f} [{row['min_ms']:.{digits}f}, {row['max_ms']:.{digits}f}]")
            elif isinstance(value, float):
                shown_as = ".3g" if column == "eager_ms" else ".2f" if column == "ratio" else ".0f"
                cells.append("" if pd.isna(value) else f"{value:{shown_as}}")
            else:
                cells.append(str(value))
        table.add_row(*cells)
    return table
