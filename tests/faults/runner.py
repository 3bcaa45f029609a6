"""Runs commands for `test_faults`, each in a fork of this process, which has imported everything once.

Reads a line of JSON for each run, and answers with one; see `Run`.
"""

import importlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from analysis.cli import COMMANDS, main
from tests.faults.supervising import Kind, supervise

# What commands import when they run.
_LATER = ("analysis.figures", "analysis.models.exporting", "analysis.study.report", "onnx", "onnxruntime", "onnxscript")


@dataclass(frozen=True)
class Run:
    """A command.

    Args:
        words: After the name of the program.
        folder: To run in; its `out` is watched.
        kind: What happens to it.
        at: At which point.
        prepared: A function of `tests.faults.commands` to call before.
    """

    words: Sequence[str]
    folder: str
    kind: Kind = "none"
    at: int = 0
    prepared: str = ""


def _run(asked: Run) -> None:
    folder = Path(asked.folder)
    os.chdir(folder)
    for stream, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    if asked.prepared:
        getattr(importlib.import_module("tests.faults.commands"), asked.prepared)(asked.words)
    main(list(asked.words))


def _serve() -> None:
    for name in {*(f"analysis.cli.{module}" for module, _ in COMMANDS.values()), *_LATER}:
        importlib.import_module(name)
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        asked = Run(**json.loads(line))
        watched = [Path(asked.folder, "out")]
        ended = supervise(lambda asked=asked: _run(asked), watched, kind=asked.kind, at=asked.at)  # type: ignore[misc]
        answers.write(json.dumps(asdict(ended)) + "\n")
        answers.flush()


if __name__ == "__main__":
    _serve()
