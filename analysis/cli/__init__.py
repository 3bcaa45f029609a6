"""The command line: parse, one library call, print, exit code."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import typer
from rich.table import Table

import replknet
from analysis.cli.bench_commands import bench
from analysis.cli.console import print_table
from analysis.cli.data_commands import data
from analysis.cli.erf_command import erf
from analysis.cli.shape_bias_command import shape_bias
from analysis.cli.study_commands import ablate, report, study
from analysis.complexity import num_macs, num_parameters

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
app.command()(erf)
app.command()(shape_bias)
app.command()(study)
app.command()(report)
app.add_typer(ablate, name="ablate")
app.add_typer(data, name="data")
app.add_typer(bench, name="bench")
# Typer keeps the base class of its parsing errors under another name in each version.
_UsageError: Any = typer.BadParameter.__bases__[0]
_INTERRUPTED = 130


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
        ("replknet_nano_k3", 64, {}),
        ("replknet_nano_k31", 64, {}),
        ("replknet_31b", 224, three),
    ]
    for name, size, overrides in rows:
        with torch.device("meta"):
            model = replknet.create_model(name, **overrides).eval()
        label = name + (" 3-3-3-3" if overrides else "")
        forms = (model, replknet.reparameterize(model, level="kernels"))
        parameters = [f"{num_parameters(form):,}" for form in forms]
        macs = [f"{num_macs(form, (size, size)):,}" for form in forms]
        table.add_row(label, str(size), *parameters, *macs)
    print_table(table)


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
