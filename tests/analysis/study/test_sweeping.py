import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from analysis.statistics import anytime_interval
from analysis.study import sweeping
from analysis.study.design import Cell, Study, preset
from analysis.study.running import Outcome
from analysis.study.sweeping import run_study
from tests.analysis.study.test_running import TINY, measures

THREADS = torch.get_num_threads()


@pytest.fixture(scope="module")
def by_one_thread(tmp_path_factory: pytest.TempPathFactory) -> list[Outcome]:
    torch.set_num_threads(1)
    try:
        return run_study(TINY, tmp_path_factory.mktemp("study"))
    finally:
        torch.set_num_threads(THREADS)


def agree(ours: Outcome, theirs: Outcome) -> bool:
    assert ours.cell == theirs.cell
    assert ours.result is not None and theirs.result is not None
    assert ours.result.weights_hash == theirs.result.weights_hash
    assert np.array_equal(ours.result.erf.mean_map, theirs.result.erf.mean_map)
    return measures(ours.result) == measures(theirs.result)


def test_cells_at_once_are_what_they_are_alone(by_one_thread: list[Outcome], tmp_path: Path) -> None:
    """In two processes of one thread each; one of them meets a folder that it cannot make."""
    blocked = tmp_path / "cells" / "k3_small3_seed1"
    blocked.parent.mkdir()
    blocked.touch()
    told: list[tuple[int, int, str]] = []
    outcomes = run_study(TINY, tmp_path, at_once=2, progress=lambda *now: told.append(now))
    assert torch.get_num_threads() == THREADS
    assert [outcome.error.partition(":")[0] for outcome in outcomes] == ["", "", "FileExistsError", ""]
    assert all(agree(outcomes[number], by_one_thread[number]) for number in (0, 1, 3))
    assert outcomes[0].result is not None
    assert outcomes[0].result.environment["threads"] == str(max(1, THREADS // 2))
    assert {name for _, _, name in told} == {cell.name for cell in TINY.cells()}
    assert [done for done, _, _ in told] == sorted(done for done, _, _ in told)
    assert told[-1][:2] == (4 * 7, 4 * 7)
    blocked.unlink()
    outcomes = run_study(TINY, tmp_path, at_once=2)
    assert [outcome.reused for outcome in outcomes] == [True, True, False, True]
    assert agree(outcomes[2], by_one_thread[2])


INTERRUPTED = """
import os, signal, sys
from analysis.study.sweeping import run_study
from tests.analysis.study.test_running import TINY
def progress(done, total, name):
    if done == 3:
        os.kill(os.getpid(), signal.SIGINT)
if __name__ == "__main__":
    run_study(TINY, sys.argv[1], at_once=2, progress=progress)
"""


def all_ended(group: int) -> bool:
    """Within seconds, which Python's own helper of such processes may take."""
    for _ in range(100):
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.1)
    return False


def test_interrupted_at_once_they_go_on(by_one_thread: list[Outcome], tmp_path: Path) -> None:
    """Ctrl-C: both processes write their state and end; nothing of them is left."""
    script, out = tmp_path / "script.py", tmp_path / "out"
    script.write_text(INTERRUPTED)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "2"}
    environment["TMPDIR"] = str(tmp_path)
    command = [sys.executable, str(script), str(out)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, process_group=0) as process:
        assert process.stderr is not None
        errors = process.stderr.read().decode()
    assert process.returncode in (1, -signal.SIGINT), errors
    assert errors.count("Traceback") == 1 and "KeyboardInterrupt" in errors
    assert all_ended(process.pid)
    assert {path.name for path in tmp_path.iterdir()} == {"script.py", "out"}
    assert list(out.glob("cells/*/checkpoint.pt"))
    assert not list(out.glob("cells/*/measures"))
    torch.set_num_threads(1)
    outcomes = run_study(TINY, out)  # in this process
    torch.set_num_threads(THREADS)
    assert all(agree(ours, theirs) for ours, theirs in zip(outcomes, by_one_thread, strict=True))


@pytest.mark.parametrize("number", [0, 1025])
def test_so_many_cells_at_once_are_refused(number: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"at_once={number}: expected 1 to 1024"):
        run_study(TINY, tmp_path, at_once=number)
    assert not any(tmp_path.iterdir())


def test_seeds_are_added_until_the_interval_is_narrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cells without training: the bias of kernel 5 is that of kernel 3, a shift and noise higher."""
    noise = np.random.default_rng(0).normal(0.1, 0.05, 40)

    def cell_of(study: Study, cell: Cell, *_arguments: Any, **_options: Any) -> Outcome:
        return Outcome(cell=cell, result=cell)  # type: ignore[arg-type]

    def table_of(cells: list[Cell]) -> pd.DataFrame:
        rows = [{**asdict(cell), "shape_bias": noise[cell.seed] * (cell.kernel == 5)} for cell in cells]
        return pd.DataFrame(rows)

    monkeypatch.setattr(sweeping, "run_cell", cell_of)
    monkeypatch.setattr(sweeping, "study_table", table_of)
    for width in (0.1, 0.06):
        outcomes = run_study(replace(TINY, num_seeds=40, until_width=width), tmp_path)
        widths = [high - low for low, high in (anytime_interval(noise[:n].tolist()) for n in range(2, 41))]
        expected = 2 + next(place for place, found in enumerate(widths) if found <= width)
        assert len(outcomes) == 2 * expected and 5 <= expected < 40
    # A family that lacks a kernel of others is judged by its own.
    families = replace(TINY, families=("replknet", "unireplknet"), kernels=(3, 5, 31), channels=(12, 24))
    assert len(run_study(replace(families, num_seeds=40, until_width=0.06), tmp_path)) == 5 * expected
    assert len(run_study(replace(TINY, num_seeds=7, until_width=0.01), tmp_path)) == 14
    for wrong in ({"kernels": (3,)}, {"data": "photos"}):
        with pytest.raises(ValueError, match=r"until_width=0\.1: goes with"):
            replace(TINY, until_width=0.1, **wrong)


@pytest.mark.parametrize(
    ("study", "gibibytes", "expected"),
    [
        (preset("standard"), 80, 12),
        (preset("standard"), 9, 4),
        (preset("standard"), 1, 1),
        (replace(preset("standard"), size=512), 80, 1),
    ],
)
def test_small_networks_share_a_gpu(
    study: Study, gibibytes: int, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 12)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda place: (gibibytes * 2**30, 80 * 2**30))
    assert sweeping._cells_at_once(study, torch.device("cuda"), 8) == expected
    assert sweeping._cells_at_once(study, torch.device("cpu"), 8) == 12
    assert sweeping._cells_at_once(study, torch.device("mps"), 8) == 1
