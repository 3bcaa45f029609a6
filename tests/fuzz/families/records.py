"""What runs leave behind for themselves: run.json, study.json, the states of unfinished measurements."""

import json
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
from numpy.typing import NDArray

import analysis
from analysis import ResultError
from analysis.runs.folder import RunFolder
from analysis.runs.resuming import measure
from tests.fuzz.engine import Case, WrongError, family
from tests.fuzz.families.results import change_arrays
from tests.fuzz.mutating import TEXTS, mutated_bytes, mutated_json, rewritten_zip

_NAMES = ("a", "b", "c", "d")


@family()
def run_records(random: Random, folder: Path) -> Case:
    """A run's folder is taken or refused, and no file that the run has not written is touched."""
    out = folder / "out"
    beside = folder / "beside.txt"
    beside.write_text("kept")
    run = RunFolder.claim(out, "erf", {"size": 64, "images": ["a", "b"]}, command_line="replknet erf")
    with run.replace("table.csv") as path:
        path.write_text("1")
    (out / "mine.txt").write_text("kept")
    file = out / "run.json"
    if random.random() < 0.3:
        tree = json.loads(file.read_text())
        odd = ("../beside.txt", "mine.txt/../../beside.txt", str(beside), ".", "..", "../", "./..", "")
        name = random.choice(odd if random.random() < 0.6 else TEXTS)
        tree["outputs"] = random.choice(([name], ["table.csv", name], name, {name: 1}))
        file.write_text(json.dumps(tree))
        what = f"outputs {str(tree['outputs'])[:60]}"
    else:
        content, what = mutated_json(random, file.read_bytes())
        file.write_bytes(content)
    size, overwrite = random.choice((64, 32)), random.random() < 0.7

    def go_on() -> None:
        try:
            again = RunFolder.claim(out, "erf", {"size": size, "images": ["a", "b"]}, overwrite=overwrite)
            with again.replace("table.csv") as path:
                path.write_text("2")
            again.close()
            RunFolder.existing(out)
        finally:
            if not beside.is_file() or not (out / "mine.txt").is_file():
                raise WrongError("a file that the run has not written is gone")

    return Case(f"run.json {what}, size={size}, overwrite={overwrite}", go_on)


def _work(numbers: range) -> Mapping[int, Mapping[str, NDArray[Any]] | str]:
    return {index: "odd" if index == 1 else {"row": np.full(2, index), "sum": np.ones(2)} for index in numbers}


@family()
def partial_files(random: Random, folder: Path) -> Case:
    """An unfinished measurement goes on or begins anew; what comes out is the same."""
    path = folder / "partial.npz"

    def stopping(numbers: range) -> Mapping[int, Mapping[str, NDArray[Any]] | str]:
        if numbers.start >= 3:
            raise InterruptedError
        return _work(numbers)

    try:
        measure(_NAMES, stopping, summed=("sum",), fingerprint="f", partial=path)
    except InterruptedError:
        content = path.read_bytes()
    if random.random() < 0.5:
        changed, what, exact = mutated_bytes(random, content), "bytes", True
    elif random.random() < 0.5:
        changed, what = change_arrays(random, content)
        exact = what == "bytes"
    else:
        with np.load(path) as file:
            header, what = mutated_json(random, str(file["header"]).encode())
        text = folder / "text.npy"
        np.save(text, header.decode("utf-8", "replace"))
        new = text.read_bytes()
        changed = rewritten_zip(content, lambda name, own: (name, new if name == "header.npy" else own))
        exact = False
    path.write_bytes(changed)

    def run() -> None:
        found = measure(_NAMES, _work, summed=("sum",), fingerprint="f", partial=path)
        if found.used != [0, 2, 3] or [name for name, _ in found.skipped] != ["b"]:
            raise WrongError(f"used {str(found.used)[:60]}, skipped {str(found.skipped)[:60]}")
        rows = found.stacked("row")
        if rows.shape != (3, 2) or found.sums["sum"].shape != (2,):
            raise WrongError(f"rows of shape {rows.shape}, sums of {found.sums['sum'].shape}")
        if exact and (rows.tolist() != [[0, 0], [2, 2], [3, 3]] or found.sums["sum"].tolist() != [3, 3]):
            raise WrongError(f"rows {rows.tolist()}, sums {found.sums['sum'].tolist()}")
        found.seconds + 0.0

    return Case(f"partial file, {what}", run, () if exact else (ValueError,))


@family()
def study_records(random: Random, folder: Path) -> Case:
    """study.json, from which reports and further runs are made."""
    analysis.save_study(analysis.preset("quick"), "replknet study", folder)
    file = folder / "study.json"
    content, what = mutated_json(random, file.read_bytes())
    file.write_bytes(content)

    def run() -> None:
        record = analysis.load_study(folder)
        for cell in record.study.cells():
            record.study.config(cell, num_classes=2)
        analysis.cell_states(record.study, folder)

    return Case(f"study.json {what}", run, (ResultError,))
