"""What the commands share: reading options, claiming the output folder, progress and tables."""

import json
import re
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from analysis.models.loaded import LoadedModel
from analysis.models.loading import load_model, untrained_copy
from analysis.models.replknets import is_replknet
from analysis.runs.processes import by_first
from analysis.runs.writing import write_json

RUN_FILE = "run.json"


_SCHEMA_VERSION = 2
"""Of that file; 1 said nothing of it."""


DTYPES = ("float32", "float64", "bfloat16", "float16")


MODEL_HELP = (
    "replknet_31b and siblings, replknet_31b.in1k_224 and other published weights (replknet models), timm:NAME, "
    "torchvision:NAME, hf:NAME, package.module:callable, or a file: weights, TorchScript or an exported program."
)


Checkpoint = Annotated[Path | None, typer.Option(help="Weight file of a RepLKNet.")]


Pretrained = Annotated[bool, typer.Option(help="Published weights; otherwise random ones.")]


Device = Annotated[str, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps, ...")]


Dtype = Annotated[str, typer.Option(help=f"Of weights and images: {', '.join(DTYPES)}.")]


BatchSize = Annotated[int, typer.Option(help="Images in one forward pass.", min=1)]


Workers = Annotated[int, typer.Option(help="Processes that read images.", min=0)]


InputSize = Annotated[
    int | None,
    typer.Option(help="Side of the input in pixels, with RepLKNet's resizing; else the model's own.", min=8, max=4096),
]


Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")]


def load_models(
    specs: Sequence[str],
    checkpoint: Path | None,
    kernel_sizes: list[str] | None,
    small_kernel: int | None,
    pretrained: bool,
    seed: int,
    untrained: bool,
    device: str = "cpu",
    dtype: str = "float32",
) -> list[LoadedModel]:
    if not any(is_replknet(spec) for spec in specs):
        for name, value in (
            ("--checkpoint", checkpoint),
            ("--kernel-sizes", kernel_sizes),
            ("--small-kernel", small_kernel),
        ):
            if value is not None:
                raise ValueError(f"{name}={value}: applies to RepLKNets by name only; none was named")
    kernels = [parse_kernels(text) for text in kernel_sizes] if kernel_sizes else [None]
    loaded = []
    for spec in specs:
        ours = is_replknet(spec)
        for sizes in kernels if ours else [None]:
            item = load_model(
                spec,
                checkpoint=checkpoint if ours else None,
                kernel_sizes=sizes,
                small_kernel=small_kernel if ours else None,
                pretrained=pretrained,
                seed=seed,
            )
            item = placed(item, device, dtype)
            loaded.append(item)
            if untrained:
                loaded.append(untrained_copy(item, seed=seed))
    names = [item.name for item in loaded]
    if len(set(names)) < len(names):
        raise ValueError(f"model: {', '.join(names)} are not all different")
    return loaded


def placed(loaded: LoadedModel, device: str, dtype: str) -> LoadedModel:
    """The model on a device, in a dtype."""
    if dtype not in DTYPES:
        raise ValueError(f"--dtype={dtype}: expected one of {', '.join(DTYPES)}")
    if (device, dtype) == ("cpu", "float32"):
        return loaded
    check_device(device)
    return replace(loaded, module=loaded.module.to(torch.device(device), getattr(torch, dtype)))


def check_device(device: str) -> None:
    """Refuse a device that is not there."""
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, ImportError) as error:  # each absent backend has its own
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"--device={device}: cannot be used here ({reason})") from error


def computed_on(device: str, dtype: str) -> dict[str, str]:
    """What a run's settings say of device and dtype: what is not the default."""
    return {key: value for key, value in (("device", device), ("dtype", dtype)) if value not in ("cpu", "float32")}


def folder_name(label: str) -> str:
    """A label as the name of a file or folder.

    Raises:
        ValueError: If nothing is left of it.
    """
    name = re.sub(r"[^\w.-]+", "-", label).strip("-.")
    if not name:
        raise ValueError(f"model: the name {label!r} holds no letter or digit")
    return name


def claim(
    out: Path,
    command: str,
    settings: dict[str, Any],
    outputs: Collection[str],
    overwrite: bool,
    keep: Collection[str] = (),
) -> None:
    """Make OUT the folder of this run: a new one, or one of the same command.

    The names of the files and folders that a run may write are recorded in it. With `overwrite`, those of another run
    of the same command are removed, but for those to `keep`; nothing else ever is.

    Raises:
        ValueError: If OUT holds something else, or another run and `overwrite` is false, or two outputs share a name.
    """
    by_first(lambda: _claim(out, command, settings, outputs, overwrite, keep))


def _claim(
    out: Path,
    command: str,
    settings: dict[str, Any],
    outputs: Collection[str],
    overwrite: bool,
    keep: Collection[str],
) -> None:
    twice = sorted({name for name in outputs if list(outputs).count(name) > 1})
    if twice:
        raise ValueError(f"model: two results would be called {twice[0]!r}; give the models different names")
    record = out / RUN_FILE
    normal = json.loads(json.dumps(settings))
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out={str(out)!r}: exists and is not a folder")
    if record.is_file():
        try:
            known = json.loads(record.read_text())
        except ValueError:
            known = None
        if not isinstance(known, dict) or known.get("command") != command:
            raise ValueError(f"--out={str(out)!r}: holds results of something else; choose another folder")
        former = known.get("settings", {})
        if former == normal:
            return
        if not overwrite:
            differing = [key for key in {**former, **normal} if former.get(key) != normal.get(key)]
            older = known.get("schema_version", 1) < _SCHEMA_VERSION
            why = ", and was made by a former version, which named the networks' code otherwise" if older else ""
            raise ValueError(
                f"--out={str(out)!r}: holds another run, which differs in {', '.join(differing)}{why}; "
                "choose another folder or pass --overwrite"
            )
        written = known.get("outputs", [])
        foreign = [name for name in outputs if name not in written and (out / name).exists()]
        if foreign:
            raise ValueError(f"--out={str(out)!r}: {foreign[0]} is not of this command; choose another folder")
        for path in (out / name for name in written if name not in keep):
            if path.parent == out and path.is_dir():
                shutil.rmtree(path)
            elif path.parent == out:
                path.unlink(missing_ok=True)
    elif out.is_dir() and any(out.iterdir()):
        raise ValueError(f"--out={str(out)!r}: holds files of something else; choose another folder")
    out.mkdir(parents=True, exist_ok=True)
    content = {"schema_version": _SCHEMA_VERSION, "command": command, "settings": normal, "outputs": sorted(outputs)}
    write_json(record, content)


@contextmanager
def clear_errors_for_files(out: Path, argument: str = "--out") -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ValueError(f"{argument}={str(out)!r}: cannot write ({error})") from error


@contextmanager
def progress_bar(label: str) -> Iterator[Callable[..., None]]:
    """Yields a function of the amount done, the total and, where it changes, what is at work."""
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
        try:
            yield lambda done, total, now=label: bar.update(task, completed=done, total=total, description=now)
        except Exception:
            bar.live.transient = True  # the error is the only line
            bar.remove_task(task)
            raise


def print_table(table: Table) -> None:
    """Wide enough for every column where the output is a file or a pipe."""
    console = Console()
    (console if console.is_terminal else Console(width=200)).print(table)


def parse_size(text: str) -> tuple[int, int]:
    parts = text.lower().split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise ValueError(f"--size={text!r}: expected N or HxW in pixels")
    return int(parts[0]), int(parts[-1])


def parse_kernels(
    text: str, name: str = "--kernel-sizes", example: str = "31,29,27,13, one per stage"
) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts):
        raise ValueError(f"{name}={text!r}: expected numbers such as {example}")
    return tuple(int(part) for part in parts)


def parse_numbers(name: str, text: str | None) -> tuple[float, ...] | None:
    if text is None:
        return None
    try:
        values = tuple(float(part) for part in text.split(","))
    except ValueError:
        values = ()
    if len(values) != 3 or (name == "--std" and min(values) <= 0):
        raise ValueError(f"{name}={text!r}: expected three numbers such as 0.485,0.456,0.406")
    return values


def parse_integers(name: str, text: str) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if not numbers or min(numbers) < 1:
        raise ValueError(f"{name}={text}: expected positive whole numbers separated by commas")
    return numbers
