"""Every command and option of the command line, found by walking its tree, with hostile values."""

import contextlib
import functools
import io
import itertools
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import typer
from PIL import Image

import analysis
import replknet
from analysis.cli import COMMANDS, main
from tests.fuzz.engine import MEMORY, Case, WrongError, family
from tests.fuzz.mutating import INTERESTING, TEXTS

_NEEDED = {
    "model": "replknet_nano_k3", "images": "data/val", "data": "data", "recipe": "r.toml", "out": "OUT", "to": "OUT",
    "destination": "OUT.pth", "source": "w.safetensors", "file": "w.safetensors", "directory": "none",
    "name": "replknet_31b.in1k_224",
}  # fmt: skip
"""Values of required parameters."""
_QUICK = {
    "stimuli": "stimuli", "preset": "quick", "num_images": "1", "seeds": "1", "max_steps": "2", "url": "http://127.0.0.1:9/",
    "size": "32", "rounds": "1", "seconds": "0.1", "suite": "quick",
}  # fmt: skip
"""Values of other parameters, wherever a command has them."""
_NUMBERS = (
    *map(str, INTERESTING),
    "nan",
    "inf",
    "-inf",
    "1e30",
    "1e400",
    "1e-30",
    "0.5",
    ".5",
    "-0.5",
    "1000000",
    "1_0",
    "9" * 30,
)
_SECONDS = 1.5
"""Until a command that was accepted is interrupted, as by Ctrl-C."""
_INTERRUPTED = 130
_UNFINISHED = 1
"""Of commands that tell whether something is as it should be."""
_TAKES_INFINITE = ("max_gradient_norm",)
_PROCESSES = ("workers", "gpus", "cpus", "threads", "processes", "nodes", "memory", "array_parallelism")
"""Options of which a large number is costly for the machine that tests."""
_LARGE = {"bench all": 2 * MEMORY}
"""Bytes of a command whose work is large, whatever is typed: maps of 64 images in float64."""


@functools.cache
def commands() -> dict[str, Any]:
    """Every command that does something, by the words that call it."""
    found: dict[str, Any] = {}

    def walk(words: tuple[str, ...], command: Any) -> None:
        if hasattr(command, "commands"):
            for name, own in command.commands.items():
                walk((*words, name), own)
        else:
            found[" ".join(words)] = command

    for name, (module, _) in COMMANDS.items():
        group: Any = typer.main.get_command(import_module(f"analysis.cli.{module}").app)
        walk((name,), group.commands[name])
    return found


def _make_materials(folder: Path) -> None:
    """The files of `_NEEDED`, and odd ones."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 24, 24, 3), np.uint8)
    for index, (part, kind) in enumerate(itertools.product(("train", "val"), ("arrow", "bolt"))):
        path = folder / "data" / part / kind
        path.mkdir(parents=True)
        Image.fromarray(pixels[index]).save(path / f"{index}.png")
    stimuli = folder / "stimuli"
    stimuli.mkdir()
    for index, name in enumerate(("arrow1-bolt1", "bolt1-arrow1")):
        Image.fromarray(pixels[4 + index]).save(stimuli / f"{name}.png")
    with replknet.shipped_weights("replknet_nano_k3") as file:
        shutil.copy(file, folder / "w.safetensors")
    (folder / "r.toml").write_text(
        'about = "a"\nsource = "s"\nepochs = 1\nwarmup_epochs = 0\n[recipe]\nbatch_size = 2\nlearning_rate = 0.001\n'
    )
    (folder / "a-file").write_text("a")
    (folder / "a-folder").mkdir()
    os.mkfifo(folder / "a-pipe")


def _hostile(random: Random, parameter: Any) -> str:
    if random.random() < 0.4:
        form = random.choice(("{0}", "{0}", "{0},{0},{0}", "{0},{0},{0},{0}", "{0}x{0}", "{1}={0}"))
        text = form.format(random.choice(_NUMBERS), random.choice(sorted(analysis.Recipe.__dataclass_fields__)))
    else:
        text = random.choice((*TEXTS, "missing", "a-file", "a-folder", "a-pipe", "a-file/inside", "OUT"))
    if text.startswith("/") or "\0" in text:  # the commands write
        text = "nan"
    if parameter.name in _PROCESSES and text.strip().isdecimal():
        text = "0"
    return text.replace("\ud800", "\udcff")  # as the system gives a name that is no text


def _typed(parameter: Any, value: str) -> list[str]:
    if parameter.param_type_name == "argument":
        return [value]
    name = max(parameter.opts, key=len)
    return [name] if parameter.is_flag else [f"{name}={value}"]


@family(share=8)
def arguments(random: Random, folder: Path) -> Case:
    """A command works, or says in one line why not and leaves nothing behind."""
    words, command = random.choice(list(commands().items()))
    _make_materials(folder)
    parameters = [own for own in command.params if own.name != "help"]
    count = min(len(parameters), random.choice((1, 1, 1, 2)))
    odd = {own.name: _hostile(random, own) for own in random.sample(parameters, count)}
    before, after = words.split(), list[str]()
    for own in parameters:
        value = odd.get(own.name, (_NEEDED if own.required else _QUICK).get(own.name))
        if value is not None:
            (after if own.param_type_name == "argument" else before).extend(_typed(own, value))
    line = [*before, *(["--"] if any(value.startswith("-") for value in after) else []), *after]
    return Case(
        " ".join(word[:60] for word in line),
        lambda: _check(line, odd, command, folder),
        memory=_LARGE.get(words, MEMORY),
    )


def _check(line: list[str], odd: dict[str, str], command: Any, folder: Path) -> None:
    present = {path.name for path in folder.iterdir()}
    code, errors = _called(line, folder)
    lines = [text for text in errors.splitlines() if text.strip()]
    if "Exception ignored in" in errors:  # Ctrl-C came where Python cannot raise it
        return
    if "Traceback" in errors:
        raise WrongError(f"a traceback: {lines[-1][:200]}")
    if code not in (0, 2, _UNFINISHED, _INTERRUPTED):
        raise WrongError(f"exit code {code}")
    if code == 2:
        if len(lines) != 1 or not lines[0].startswith("replknet: "):
            raise WrongError(f"exit code 2 with {len(lines)} lines: {' / '.join(lines)[:300]}")
        left = sorted({path.name for path in folder.iterdir()} - present)
        if left:
            raise WrongError(f"exit code 2, but {left[0][:60]!r} is left: {lines[0][:200]}")
        raise ValueError(lines[0])
    numbers = {
        own.name for own in command.params if "float" in str(getattr(own, "bare_type", getattr(own, "type", "")))
    }
    accepted = [
        name for name in numbers & odd.keys() - {*_TAKES_INFINITE} if odd[name] in ("nan", "inf", "-inf", "1e400")
    ]
    if accepted:
        raise WrongError(f"exit code {code}: {accepted[0]}={odd[accepted[0]]} is accepted")


@contextlib.contextmanager
def _interrupting() -> Iterator[None]:
    """Ctrl-C after some seconds, and again if that was not enough."""
    former = signal.signal(signal.SIGALRM, lambda *_: os.kill(os.getpid(), signal.SIGINT))
    signal.setitimer(signal.ITIMER_REAL, _SECONDS, _SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)


def _called(line: list[str], folder: Path) -> tuple[int, str]:
    """Exit code and what is written on the standard error."""
    errors, paths = io.StringIO(), list(sys.path)
    os.environ["TORCH_HOME"] = str(folder / "a-folder")
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(errors):
        try:
            with _interrupting():
                main(line)
        except SystemExit as end:
            code = end.code
        finally:
            sys.path[:] = paths
    return (code if isinstance(code, int) else 0 if code is None else 1), errors.getvalue()


@family()
def specs(random: Random, folder: Path) -> Case:
    """Names of models: any text is a model, or an error that the command line shows in a line."""
    prefix = random.choice(
        ("", "timm:", "torchvision:", "hf:", "A=", "=", "analysis.", "json:", "tests.fuzz.engine:", "replknet", "./")
    )
    parts = (
        "resnet18", "a.b:c", ":", "::", ".", "..", "x:", "__main__", "os.path:join", "json:loads", "replknet_31b",
        ".in1k_224", ".pth", ".pt2", ".onnx", ".safetensors", "[", "*", "?", "Case", "FAMILIES", "[a-", "(", *TEXTS,
    )  # fmt: skip
    spec = prefix + "".join(random.choice(parts) for _ in range(random.choice((0, 1, 1, 2, 3))))
    options: dict[str, Any] = {}
    if random.random() < 0.3:
        option = random.choice(("checkpoint", "kernel_sizes", "small_kernel", "seed"))
        values = {"checkpoint": ("", "x", "w.pth", ".", "\0"), "seed": (-1, 2**31, 2**63, 2**64, 2**70)}.get(option)
        options[option] = random.choice(values or ((), (3,), (3, 3, 3, 4), 0, -1, 2**70, (2**40,) * 4, 1.5, (1.5,) * 4))

    def run() -> None:
        with contextlib.chdir(folder):
            loaded = analysis.load_model(spec, pretrained=False, **options)
        if not isinstance(loaded.name, str) or sum(value.numel() for value in loaded.module.parameters()) < 0:
            raise WrongError(f"loads {loaded!r}")

    return Case(f"load_model({spec[:80]!r}, {options})", run, (ValueError, OSError))
