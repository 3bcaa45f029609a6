"""The command line: parse, one library call, print, exit code."""

import hashlib
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import pandas as pd
import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from torch.utils.flop_counter import FlopCounterMode

import replknet
from analysis import benchmark
from analysis.erf import PROTOCOLS, THRESHOLDS, ErfResult, effective_receptive_field, hash_weights
from analysis.images import ImageSet, load_images
from analysis.models import LoadedModel, load_model, untrained_copy
from analysis.receptive_field import theoretical_receptive_field

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
bench = typer.Typer(help="Time RepLKNet and its convolution beside other libraries (install the extra 'bench').")
app.add_typer(bench, name="bench")
# Typer keeps the base class of its parsing errors under another name in each version.
_UsageError: Any = typer.BadParameter.__bases__[0]
_INTERRUPTED = 130
_RUN_FILE = "run.json"
_FIGURES = ("erf", "contribution", "growth")


@app.callback()
def _root() -> None:
    """Large-kernel vision networks and their receptive fields."""


@app.command()
def models() -> None:
    """List the RepLKNets with their parameters and multiply-accumulates."""
    table = Table("model", "input", "parameters", "merged", "MACs", "merged MACs")
    three: dict[str, Any] = {"kernel_sizes": (3, 3, 3, 3), "small_kernel": None}
    rows: list[tuple[str, int, dict[str, Any]]] = [
        ("replknet_31b", 224, {}),
        ("replknet_31b", 384, {}),
        ("replknet_31l", 384, {}),
        ("replknet_xl", 320, {}),
        ("replknet_31b", 224, three),
    ]
    for name, size, overrides in rows:
        with torch.device("meta"):
            model = replknet.create_model(name, **overrides).eval()
        label = name + (" 3-3-3-3" if overrides else "")
        forms = (model, replknet.reparameterize(model, level="kernels"))
        parameters = [f"{sum(parameter.numel() for parameter in form.parameters()):,}" for form in forms]
        macs = []
        for form in forms:
            with FlopCounterMode(display=False) as counter, torch.no_grad():
                form(torch.empty(1, 3, size, size, device="meta"))
            macs.append(f"{counter.get_total_flops() // 2:,}")
        table.add_row(label, str(size), *parameters, *macs)
    _print_table(table)


@app.command()
def erf(
    model: Annotated[
        list[str], typer.Argument(help="replknet_31b, timm:NAME, torchvision:NAME or package.module:callable")
    ],
    out: Annotated[Path, typer.Option(help="Folder for results, table and figures.")],
    images: Annotated[
        Path | None, typer.Option(help="Folder of images; without it, generated dead-leaves images.")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="Weight file of a RepLKNet.")] = None,
    protocol: Annotated[str, typer.Option(help=f"{' or '.join(PROTOCOLS)}.")] = "standard",
    size: Annotated[str, typer.Option(help="Image size in pixels, N or HxW.")] = "1024",
    num_images: Annotated[int, typer.Option(help="How many images are drawn.")] = 50,
    layers: Annotated[
        str | None, typer.Option(help="Layers by name, separated by commas; 'last' is the last feature map.")
    ] = None,
    untrained: Annotated[bool, typer.Option("--untrained", help="Add an untrained copy of each model.")] = False,
    kernel_sizes: Annotated[
        list[str] | None, typer.Option(help="Kernels of a RepLKNet, e.g. 31,29,27,13; may be given several times.")
    ] = None,
    small_kernel: Annotated[int | None, typer.Option(help="Parallel kernel of a RepLKNet; 0 for none.")] = None,
    pretrained: Annotated[bool, typer.Option(help="Published weights of timm and torchvision models.")] = True,
    mean: Annotated[str | None, typer.Option(help="Three numbers that replace the model's own.")] = None,
    std: Annotated[str | None, typer.Option(help="Three numbers that replace the model's own.")] = None,
    seed: Annotated[int, typer.Option(help="Of the image draw and of random weights.")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace another run's results in OUT.")] = False,
) -> None:
    """Measure effective receptive fields. The same command again resumes, or answers from what is saved."""
    if protocol not in PROTOCOLS:
        raise ValueError(f"--protocol={protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    pixels = _parse_size(size)
    means, stds = _parse_numbers("--mean", mean), _parse_numbers("--std", std)
    wanted = [None if name == "last" else name for name in layers.split(",")] if layers else [None]
    chosen = load_images(images, size=pixels, num_images=num_images, seed=seed)
    loaded = _load_models(model, checkpoint, kernel_sizes, small_kernel, pretrained, seed, untrained)
    notes = [note for item in loaded for note in item.notes]
    notes += [f"skipped {name}: {reason}" for name, reason in chosen.skipped]
    settings = {
        "models": [[item.name, hash_weights(item.module)] for item in loaded],
        "layers": wanted,
        "protocol": protocol,
        "size": pixels,
        "images": hashlib.sha256(" ".join(chosen.hashes).encode()).hexdigest(),
        "mean": means,
        "std": stds,
    }
    _check_layers(loaded, wanted, pixels)
    with _clear_errors_for_files():
        _claim(out, settings, overwrite)
        results = _measure_all(loaded, wanted, chosen, protocol, out, means, stds)
        _write_outputs(results, out)
    _report(results, notes, out)


_Rounds = Annotated[int, typer.Option(help="Rounds; in each, every contender is called once.", min=1)]
_Seconds = Annotated[float, typer.Option(help="After so many seconds of rounds, no new one begins (two at least).")]
_Threads = Annotated[int | None, typer.Option(help="Threads of every library; all cores by default.", min=1)]
_Out = Annotated[Path | None, typer.Option(help="Folder for table, figure and environment.")]


@bench.command("conv")
def bench_conv(
    suite: Annotated[str, typer.Option(help="headline, grid or paper.")] = "headline",
    rounds: _Rounds = 9,
    seconds: _Seconds = 20.0,
    threads: _Threads = None,
    out: _Out = None,
) -> None:
    """Depthwise convolutions: forward and backward, each direction on a grid, or the paper's table of latencies."""
    if suite not in ("headline", "grid", "paper"):
        raise ValueError(f"--suite={suite}: expected headline, grid or paper")
    threads = threads or torch.get_num_threads()
    _bench(f"conv-{suite}", list(benchmark.convolution_cases(suite, threads)), rounds, seconds, threads, out)


@bench.command("model")
def bench_model(
    size: Annotated[int, typer.Option(help="Side of the images.", min=32)] = 224,
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
    _bench_network("erf", _parse_integers("--sizes", sizes), "1", rounds, seconds, threads, out)


@bench.command("train")
def bench_train(
    size: Annotated[int, typer.Option(help="Side of the images.", min=32)] = 224,
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
    cases = list(benchmark.network_cases(task, sizes, _parse_integers("--batches", batches), threads))
    _bench(task, cases, rounds, seconds, threads, out)


def _bench(
    name: str, cases: Sequence[benchmark.Case], rounds: int, seconds: float, threads: int, out: Path | None
) -> None:
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
        for suffix in ("csv", "json", "png", "pdf"):
            if (out / f"{name}.{suffix}").exists():
                raise FileExistsError(f"--out={out}: {name}.{suffix} is there already; choose another folder")
    with _progress(f"bench {name}") as progress:
        table = benchmark.compare(cases, repeats=rounds, seconds=seconds, progress=progress)
    record = benchmark.environment(threads)
    _print_table(_bench_table(table, ", ".join(f"{key} {value}" for key, value in record.items())))
    if out is None:
        return
    from matplotlib.figure import Figure

    from analysis import plots

    table.to_csv(out / f"{name}.csv", index=False)
    (out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    with plots.paper_style():
        figure = Figure(figsize=(3.4, 3.0), layout="constrained")
        plots.plot_benchmark(table, ax=figure.add_subplot())
        for suffix in ("png", "pdf"):
            figure.savefig(out / f"{name}.{suffix}")
    Console().print(f"{name}.csv, .json, .png and .pdf are in {out}", highlight=False, soft_wrap=True)


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


def _parse_integers(name: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ValueError(f"{name}={text}: expected positive whole numbers separated by commas")
    return numbers


def _load_models(
    specs: Sequence[str],
    checkpoint: Path | None,
    kernel_sizes: list[str] | None,
    small_kernel: int | None,
    pretrained: bool,
    seed: int,
    untrained: bool,
) -> list[LoadedModel]:
    kernels = [_parse_kernels(text) for text in kernel_sizes] if kernel_sizes else [None]
    loaded = []
    for spec in specs:
        ours = spec in replknet.PRESETS
        for sizes in kernels if ours else [None]:
            item = load_model(
                spec,
                checkpoint=checkpoint if ours else None,
                kernel_sizes=sizes,
                small_kernel=small_kernel if ours else None,
                pretrained=pretrained,
                seed=seed,
            )
            loaded.append(item)
            if untrained:
                loaded.append(untrained_copy(item, seed=seed))
    if not any(spec in replknet.PRESETS for spec in specs):
        for name, value in (
            ("--checkpoint", checkpoint),
            ("--kernel-sizes", kernel_sizes),
            ("--small-kernel", small_kernel),
        ):
            if value is not None:
                raise ValueError(f"{name}={value}: applies to RepLKNets only; none was named")
    names = [item.name for item in loaded]
    if len(set(names)) < len(names):
        raise ValueError(f"model: {', '.join(names)} are not all different")
    return loaded


def _check_layers(loaded: Sequence[LoadedModel], layers: Sequence[str | None], size: tuple[int, int]) -> None:
    """Refuse a layer or size that a model cannot do before anything in OUT is touched."""
    for item in loaded:
        for layer in layers:
            try:
                theoretical_receptive_field(item.module, size, layer=layer)
            except RuntimeError as error:
                raise ValueError(
                    f"--size={size[0]}x{size[1]}: {item.name} does not run at this size ({error})"
                ) from error


def _claim(out: Path, settings: dict[str, Any], overwrite: bool) -> None:
    """Make OUT ours: new, or of the same run; another run's files go only when asked."""
    record = out / _RUN_FILE
    normal = json.loads(json.dumps(settings))
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out={str(out)!r}: exists and is not a folder")
    if record.is_file():
        try:
            known = json.loads(record.read_text())
        except ValueError:
            known = {}
        if known == normal:
            return
        differing = [key for key, value in normal.items() if known.get(key) != value]
        if not overwrite:
            raise ValueError(
                f"--out={str(out)!r}: holds another run, which differs in {', '.join(differing)}; "
                "choose another folder or pass --overwrite"
            )
        for path in out.iterdir():
            if path.is_dir() and (path / "result.json").is_file():
                shutil.rmtree(path)
            elif path.name == "erf.csv" or path.stem in _FIGURES or path.name.endswith(".partial.npz"):
                path.unlink()
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"--out={str(out)!r}: holds files of something else; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    record.write_text(json.dumps(normal, indent=2) + "\n")


def _measure_all(
    loaded: Sequence[LoadedModel],
    layers: Sequence[str | None],
    images: ImageSet,
    protocol: str,
    out: Path,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
) -> list[ErfResult]:
    results = []
    for item in loaded:
        own_images = images.normalized_by(mean or item.mean, std or item.std)
        for layer in layers:
            module = item.module
            if layer is None and isinstance(module, replknet.RepLKNet):
                module = replknet.reparameterize(module)  # the same map in less time; inner layers keep their names
            label = item.name if layer is None else f"{item.name}, {layer}"
            target = out / re.sub(r"[^A-Za-z0-9._-]+", "-", label).strip("-")
            if (target / "result.json").is_file():
                results.append(ErfResult.load(target))
                continue
            with _progress(label) as progress:
                result = effective_receptive_field(
                    module,
                    own_images,
                    protocol=protocol,  # type: ignore[arg-type]
                    layer=layer,
                    name=item.name,
                    progress=progress,
                    partial=out / f"{target.name}.partial.npz",
                )
            result.save(target)
            results.append(result)
    return results


def _write_outputs(results: Sequence[ErfResult], out: Path) -> None:
    from analysis import plots

    pd.DataFrame([result.summary() for result in results]).to_csv(out / "erf.csv", index=False)
    with plots.paper_style():
        figures = {"erf": plots.erf_figure(results)}
        figures["contribution"] = plots.plot_contribution(results).get_figure(root=True)  # type: ignore[assignment]
        if len({result.layer for result in results}) > 1:
            figures["growth"] = plots.plot_growth(results).get_figure(root=True)  # type: ignore[assignment]
        for name, figure in figures.items():
            for suffix in ("png", "pdf"):
                figure.savefig(out / f"{name}.{suffix}")


def _report(results: Sequence[ErfResult], notes: Sequence[str], out: Path) -> None:
    table = Table("model", "layer", "images", *[f"area {100 * t:g} %" for t in THRESHOLDS], "RMS radius", "theory")
    for result in results:
        areas = []
        for threshold in THRESHOLDS:
            low, high = (100 * end for end in result.area_ratio_interval(threshold))
            areas.append(f"{100 * result.area_ratio(threshold):.1f} [{low:.1f}, {high:.1f}]")
        theory = "not traced" if result.theoretical is None else f"{result.theoretical[0]:g}"
        table.add_row(
            result.model,
            result.layer,
            str(len(result.images)),
            *areas,
            f"{result.rms_radius():.1f} px",
            "whole image" if theory == "inf" else theory,
        )
    _print_table(table)
    console = Console(stderr=True)
    console.print("Areas in % of the image, raw map, 95 % bootstrap interval over images.", highlight=False)
    for note in notes:
        console.print(f"note: {note}", highlight=False, markup=False)
    for result in results:
        if not result.mean_map.any():
            console.print(
                f"warning: unit {result.unit} of {result.model}, {result.layer} does not react to any image "
                "(its ReLU is off); its measures are undefined",
                highlight=False,
            )
        if result.fills_image():
            console.print(
                f"warning: the 99 % area of {result.model}, {result.layer} fills the image: it shows where the "
                "network attends, not how far it could reach; measure at a larger --size",
                highlight=False,
            )
    typer.echo(f"results, table and figures: {out}")


def _print_table(table: Table) -> None:
    """Wide enough for every column where the output is a file or a pipe."""
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


@contextmanager
def _progress(label: str) -> Iterator[Callable[[int, int], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def _clear_errors_for_files() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"--out: cannot write ({error})") from error


def _parse_size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--size={text!r}: expected N or HxW in pixels")
    return int(parts[0]), int(parts[-1])


def _parse_kernels(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"--kernel-sizes={text!r}: expected odd numbers, one per stage, such as 31,29,27,13")
    return tuple(int(part) for part in parts)


def _parse_numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or (name == "--std" and min(values) <= 0):
        raise ValueError(f"{name}={text!r}: expected three numbers such as 0.485,0.456,0.406")
    return values


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors a user can mend are one line and exit code 2."""
    sys.path.append(str(Path.cwd()))  # so that package.module:callable finds the user's own files
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        code = app(args=given, prog_name="replknet", standalone_mode=False)
    except _UsageError as error:
        _fail(error.format_message())
    except (ValueError, OSError) as error:
        _fail(str(error))
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:  # Typer returns it or raises, depending on its version
        typer.echo("replknet: interrupted; the same command resumes", err=True)
    sys.exit(code or 0)


def _fail(message: str) -> None:
    typer.echo("replknet: " + " ".join(message.split()), err=True)
    sys.exit(2)
