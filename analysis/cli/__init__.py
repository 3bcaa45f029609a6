"""The command line: parse, one library call, print, exit code."""

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS = {
    "models": ("model_commands", "List the RepLKNets and the published weights."),
    "predict": ("predict_commands", "Name what is in images."),
    "features": ("predict_commands", "Extract features of images into an .npz file."),
    "evaluate": ("predict_commands", "Measure the accuracy on an image folder."),
    "erf": ("erf_command", "Measure effective receptive fields."),
    "shape-bias": ("shape_bias_command", "Measure shape bias."),
    "study": ("study_commands", "Train networks that differ in kernel size, measure them, write a report."),
    "report": ("study_commands", "Write the table, the figures and the page of a study anew."),
    "ablate": ("study_commands", "Kernel-size ablations, trained anew or on a trained network."),
    "info": ("model_commands", "Say what a weight file holds."),
    "convert": ("model_commands", "Write weights under other key names or in another format."),
    "reparameterize": ("model_commands", "Merge the kernels and batch norms of a weight file."),
    "export": ("model_commands", "Write a network as ONNX, TorchScript or a program of torch.export."),
    "data": ("data_commands", "Fetch published weights and stimuli, or generate some."),
    "bench": ("bench_commands", "Time RepLKNet and its convolution beside other libraries."),
}
"""Module and one line of help of each command; the module is imported when the command runs."""


class _Deferred(TyperCommand):
    """Stands for a command in the list of all, and fetches it when it is called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        module = importlib.import_module(f"analysis.cli.{COMMANDS[str(self.name)][0]}")
        group: Any = typer.main.get_command(module.app)
        return group.get_command(None, self.name).make_context(info_name, args, parent, **extra)


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _Deferred(cmd_name, help=COMMANDS[cmd_name][1]) if cmd_name in COMMANDS else None


app = typer.Typer(cls=_Commands, pretty_exceptions_enable=False)
# Typer keeps the base class of its parsing errors under another name in each version.
_UsageError: Any = typer.BadParameter.__bases__[0]
_INTERRUPTED = 130


@app.callback()
def _root() -> None:
    """Large-kernel vision networks: use them, and measure what they see."""


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
