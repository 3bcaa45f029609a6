"""The command line: parse, one library call, print, exit code."""

import difflib
import importlib
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from re import Match
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from analysis.runs.signals import EndedBySignal

COMMANDS = {
    "models": ("models", "List the networks and the published weights."),
    "predict": ("recognition", "Name what is in images."),
    "features": ("recognition", "Extract features of images into an .npz file."),
    "evaluate": ("recognition", "Measure the accuracy on an image folder."),
    "train": ("train", "Train a network by a published recipe."),
    "erf": ("erf", "Measure effective receptive fields."),
    "explore": ("explore", "Click on images: what the unit there sees, in a page on this machine."),
    "shape-bias": ("shape_bias", "Measure shape bias."),
    "study": ("study", "Train networks that differ in kernel size, measure them, write a report."),
    "compare": ("compare", "Put trained networks beside each other, write a report."),
    "plot": ("plot", "Draw a figure anew from saved results, for a paper."),
    "report": ("study", "Write the table, the figures and the page of a study anew."),
    "ablate": ("ablate", "Kernel-size ablations, trained anew or on a trained network."),
    "info": ("info", "Tell of a network its layers, sizes, classes and cost; of a weight file what it holds."),
    "convert": ("models", "Write weights under other key names or in another format."),
    "reparameterize": ("models", "Merge the kernels and batch norms of a weight file."),
    "export": ("models", "Write a network as ONNX, TorchScript or a program of torch.export."),
    "data": ("data", "Fetch published weights and stimuli, or generate some."),
    "bench": ("bench", "Time RepLKNet and its convolution beside other libraries."),
}
"""Module and one line of help of each command; the module is imported when the command runs."""
ARGUMENTS: ContextVar[tuple[str, ...]] = ContextVar("ARGUMENTS", default=())
"""What the user typed after the name of the program."""


class _Deferred(TyperCommand):
    """Stands for a command in the list of all, and fetches it when it is called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        module = importlib.import_module(f"analysis.cli.{COMMANDS[str(self.name)][0]}")
        group: Any = typer.main.get_command(module.app)
        return group.get_command(None, self.name).make_context(info_name, args, parent, **extra)


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] not in COMMANDS:  # Typer suggests commands of groups whose members it knows
            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            raise ValueError(f"No such command {args[0]!r}." + (f" Did you mean {near[0]!r}?" if near else ""))
        return super().resolve_command(ctx, args)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _Deferred(cmd_name, help=COMMANDS[cmd_name][1]) if cmd_name in COMMANDS else None


app = typer.Typer(
    cls=_Commands, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]}
)
# Typer keeps the base class of its parsing errors under another name in each version.
_UsageError: Any = typer.BadParameter.__bases__[0]
_INTERRUPTED = 130
_HEAD_START, _PATIENCE = 3.0, 30.0
"""Seconds."""
_FOR_SEVERAL_PROCESSES = ("train", "evaluate", "erf", "shape-bias", "study", "ablate train")


def _tell_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"replknet {version('replknet')}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Say which version this is.", callback=_tell_version, is_eager=True)
    ] = False,
) -> None:
    """Large-kernel vision networks: use them, and measure what they see."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; errors a user can mend are one line and exit code 2."""
    _write_any_name(sys.stdout)
    _leave_out_current_folder()
    given = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    try:
        ARGUMENTS.set(tuple(given))
        with _ended_by_signals(), _all_processes(given):
            _refuse_empty(given)
            code = app(args=given, prog_name="replknet", standalone_mode=False)
    except _UsageError as error:
        _fail(error.format_message())
    except (ValueError, OSError) as error:
        _fail(as_typed(str(error), given))
    except (KeyboardInterrupt, typer.Abort):
        code = _INTERRUPTED
    if code == _INTERRUPTED:  # Typer returns it or raises, depending on its version
        typer.echo("replknet: interrupted; the same command resumes", err=True)
    sys.exit(code or 0)


def _end_by_signal(number: int, frame: FrameType | None) -> None:
    """Handles a signal: ends the process as Ctrl-C does, so that nothing unfinished is left."""
    if os.environ.get("RANK", "0") == "0":
        typer.echo(f"replknet: ended by {signal.Signals(number).name}; the same command resumes", err=True)
    raise EndedBySignal(128 + number)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ended: list[BaseException] = []

    def noted(handler: Callable[[int, FrameType | None], Any]) -> Callable[[int, FrameType | None], None]:
        def handle(number: int, frame: FrameType | None) -> None:
            try:
                handler(number, frame)
            except BaseException as end:
                ended.append(end)
                raise

        return handle

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    interrupt = before[signal.SIGINT]
    signal.signal(signal.SIGTERM, noted(_end_by_signal))
    if callable(interrupt):
        signal.signal(signal.SIGINT, noted(interrupt))
    try:
        yield
    except Exception as error:  # compiled code may have put an error of its own in place of the signal's
        if ended:
            raise ended[-1] from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _leave_out_current_folder() -> None:
    """Python processes that this one starts would look for modules there first; see also `replknet.starting`."""
    try:
        here = Path.cwd()
    except FileNotFoundError:
        _fail("the current folder was deleted; change to one that is there")
    if here != Path(__file__).parents[2]:
        os.environ["PYTHONSAFEPATH"] = "1"


def _refuse_empty(given: Sequence[str]) -> None:
    """An empty text, often that of an unset variable of the shell, would be taken for the current folder."""
    for before, word in zip(["", *given], given, strict=False):
        option, equals, value = word.partition("=") if word.startswith("--") else (before, "=", word)
        if equals and not value.strip():
            place = option if option.startswith("--") else f"argument after {option or 'replknet'}"
            raise ValueError(f"{place}={value!r}: expected a value, not an empty text")


def _write_any_name(stream: Any) -> None:
    """File names need not be valid text, and none may end a command whose work is done."""
    if hasattr(stream, "reconfigure"):
        stream.reconfigure(errors="backslashreplace")


def as_typed(message: str, given: Sequence[str]) -> str:
    """A message of the library with the options that the user knows in place of arguments of functions."""
    from analysis.cli.options import SPELLING

    typed = {word.partition("=")[0] for word in given}

    def option(match: Match[str]) -> str:
        names = (*SPELLING.get(match[1], ()), f"--{match[1].replace('_', '-')}")
        return next((f"{name}=" for name in names if name in typed), match[0])

    if list(given[:1]) == ["compare"]:  # it has trained networks alone
        ways = "take random weights with pretrained=False|labels=FILE, a CSV of file,class"
        message = re.sub(f"[,;] or (?:{ways})", "", message)
    message = re.sub(r"(?:(?<=^)|(?<=, )|(?<=: ))([a-z_]+)=", option, message)
    return (
        message.replace("overwrite=True", "--overwrite")
        .replace(
            "with pretrained=False", "without --pretrained" if list(given[:1]) == ["train"] else "with --no-pretrained"
        )
        .replace("pretrained=False", "--no-pretrained")
        .replace("pretrained=True", "--pretrained")
        .replace("trust=True", "--trust")
        .replace("with checkpoint=", "with --checkpoint ")
        .replace("labels=FILE", "--labels FILE")
        .replace("mapping=LabelMapping(...) of each", "--labels NAME=FILE of each")
        .replace("mapping=LabelMapping(...)", "--labels")
    )


def _fail(message: str) -> NoReturn:
    typer.echo("replknet: " + " ".join(message.split()), err=True)
    sys.exit(2)


@contextmanager
def _all_processes(given: Sequence[str]) -> Iterator[None]:
    """Where torchrun has started several processes, join them, and let the first one alone write to the terminal."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2 or "RANK" not in os.environ:
        yield
        return
    number = int(os.environ["RANK"])
    command = " ".join(word for word in given[:2] if not word.startswith("-"))
    if not command.startswith(_FOR_SEVERAL_PROCESSES):
        if number > 0:
            _wait_for_end()
        raise ValueError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']}: {given[0]} runs in one process, without torchrun; "
            f"{', '.join(_FOR_SEVERAL_PROCESSES)} run in several"
        )
    with _quiet(number > 0):
        from analysis.runs.processes import process_group

        with process_group() as store:
            try:
                yield
            except (ValueError, OSError, _UsageError) as error:
                if number > 0:
                    time.sleep(_HEAD_START)  # what only this one knows is told; mostly the first knows it too
                if _told_by_another(store, str(error)):
                    _wait_for_end()
                raise


def _told_by_another(store: Any, message: str) -> bool:
    from torch.distributed import DistNetworkError

    try:
        return int(store.add(f"told: {message}", 1)) > 1
    except DistNetworkError:  # the process that had the store is gone
        return False


def _wait_for_end() -> NoReturn:
    """Leave the word to the process that says the same; whatever started both ends this one when that one has ended."""
    time.sleep(_PATIENCE)
    sys.exit(2)


@contextmanager
def _quiet(active: bool) -> Iterator[None]:
    if not active:
        yield
        return
    shown = sys.stdout, sys.stderr
    with Path(os.devnull).open("w") as nowhere:
        sys.stdout = sys.stderr = nowhere
        try:
            yield
        finally:
            sys.stdout, sys.stderr = shown
