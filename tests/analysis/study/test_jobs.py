import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from analysis.cli.ablate import _minutes
from analysis.study import jobs, record, report
from analysis.study.jobs import CellState, JobOptions, cell_jobs, cell_states
from analysis.study.result import CellResult
from analysis.study.sweeping import run_study
from tests.analysis.study.test_running import TINY
from tests.cli.command import run

SWEEP = (
    "ablate train --preset quick --kernels 3,5 --seeds 1 --steps 4 --batch-size 8 --layers 1,1 --channels 4,8 "
    "--train-images 24 --erf-images 1"
)


def states_of(out: Path) -> dict[str, CellState]:
    study, _ = record.read_study(out)
    return {state.cell: state for state in cell_states(study, out)}


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30", 2), ("12:00:00", 720), ("2-00", 2880), ("1-02:30", 1590), ("1-00:00:30", 1441)],
)
def test_times_as_slurm_writes_them(text: str, minutes: int) -> None:
    assert _minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "a", "1:2:3:4", "-5", "1.5", "2-"])
def test_wrong_times_are_named(text: str) -> None:
    with pytest.raises(ValueError, match="time="):
        _minutes(text)


def test_a_sweep_in_processes_of_this_machine(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cell cannot be written; a second call, when it can, runs that one alone."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    out = tmp_path / "out"
    run(SWEEP + " --steps 5", "--out", tmp_path / "plain")
    (out / "cells").mkdir(parents=True)
    (tmp_path / "plain" / "run.json").rename(out / "run.json")
    (out / "cells" / "k5_small3_seed0").write_text("in the way")
    capsys.readouterr()
    command = SWEEP + " --steps 5 --executor local --array-parallelism 2"
    run(command, "--out", out)
    printed = capsys.readouterr().out
    assert "1 done, 1 failed" in printed
    found = states_of(out)
    assert found["k3_small3_seed0"].state == "done"
    assert found["k5_small3_seed0"].state == "failed"
    assert "FileExistsError" in found["k5_small3_seed0"].line
    (out / "cells" / "k5_small3_seed0").unlink()
    before = json.loads((out / "jobs" / "jobs.json").read_text())
    run(command, "--out", out)
    assert "2 done" in capsys.readouterr().out
    after = json.loads((out / "jobs" / "jobs.json").read_text())
    assert after["k3_small3_seed0"] == before["k3_small3_seed0"]
    assert after["k5_small3_seed0"] != before["k5_small3_seed0"]
    run(command, "--out", out)
    assert "nothing is submitted" in capsys.readouterr().err
    run("ablate status", out)
    assert "2 done" in capsys.readouterr().out
    # A job does what the command without jobs does.
    ours, plain = (CellResult.load(folder / "cells" / "k5_small3_seed0") for folder in (out, tmp_path / "plain"))
    assert ours.curve.train_loss == pytest.approx(plain.curve.train_loss, rel=1e-3)
    log = next((out / "jobs").glob(f"{after['k5_small3_seed0']['job']}_0_log.out")).read_text()
    assert "step 5 of 5" in log


def test_the_script_of_a_dry_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs no Slurm on this machine."""
    monkeypatch.setenv("PATH", "")
    options = "--dry-run --partition gpu --gpus 4 --nodes 2 --cpus 8 --memory 100 --time 2-00 --array-parallelism 3"
    run(f"{SWEEP} {options} --slurm account=vision", "--out", tmp_path / "out")
    printed = capsys.readouterr()
    expected = {
        "array=0-1%2", "partition=gpu", "gpus-per-node=4", "nodes=2", "ntasks-per-node=4", "cpus-per-task=8",
        "mem=102400M", "time=2880", "account=vision", "signal=USR2@90",
    }  # fmt: skip
    lines = {line.removeprefix("#SBATCH --") for line in printed.out.splitlines()}
    assert expected <= lines
    assert "k3_small3_seed0, k5_small3_seed0" in " ".join(printed.err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--executor cloud", "executor='cloud': expected local or slurm"),
        ("--executor local --partition a", "executor='local': one machine"),
        ("--executor local --dry-run", "executor='local': there is no job script"),
        ("--executor slurm --gpus 2 --processes 2", "processes=2: there is one for each of the 2 GPUs"),
        ("--executor slurm --time 1", "signal_seconds=90: expected less than the 1 minutes"),
        ("--executor slurm --time soon", "--time=soon: expected minutes"),
        ("--executor slurm --memory 0", "memory=0.0: expected a positive number"),
        ("--executor slurm --slurm account", "--slurm=account: expected name=value"),
    ],
)
def test_wrong_options_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: str, message: str
) -> None:
    run(f"{SWEEP} {options}", "--out", tmp_path / "out", code=2)
    printed = capsys.readouterr().err
    assert message in printed
    assert printed.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_without_slurm_it_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    run(SWEEP + " --executor slurm", "--out", tmp_path / "out", code=2)
    assert "executor='slurm': " in capsys.readouterr().err


def test_states_of_jobs_that_slurm_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [cell.name for cell in TINY.cells()]
    jobs._register(tmp_path, {name: f"7_{number}" for number, name in enumerate(names[:3])}, "slurm")
    answer = "7_0|RUNNING|None|2030-01-01T00:00:00\n7_1|PENDING|Priority|N/A\n8_1|RUNNING|None|N/A\n"
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 0, answer))
    (tmp_path / "jobs" / "7_0_0_log.out").write_text("submitit INFO\nstep 3 of 9\n\n")
    (tmp_path / "jobs" / "7_2_0_log.err").write_text(
        "CUDA out of memory\nsrun: error: n: task 0: Exited with exit code 1\n"
    )
    found = cell_states(TINY, tmp_path)
    assert [(state.state, state.line) for state in found] == [
        ("running", "step 3 of 9"),
        ("pending", "pending: Priority"),
        ("failed", "CUDA out of memory"),
        ("missing", ""),
    ]


# A real cluster -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cluster() -> None:
    try:
        answer = subprocess.run(["sinfo", "--noheader"], capture_output=True, timeout=20, check=False)
    except OSError:
        answer = None
    if answer is None or answer.returncode:
        pytest.skip('no Slurm cluster answers; eval "$(tests/slurm-cluster start)" starts one')


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit
        time.sleep(0.5)


@pytest.mark.slurm
def test_a_sweep_on_slurm(cluster: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One cell fails by itself; the second call submits it alone, and in two processes."""
    out = tmp_path / "out"
    command = SWEEP + " --executor slurm --time 10"
    run(command, "--out", out)
    assert "submitted 2 cells as" in capsys.readouterr().err
    (out / "cells").mkdir(exist_ok=True)
    (out / "cells" / "k5_small3_seed0").write_text("in the way")
    first = states_of(out)
    assert {state.state for state in first.values()} <= {"pending", "running"}
    wait_for(lambda: {state.state for state in states_of(out).values()} == {"done", "failed"})
    assert "FileExistsError" in states_of(out)["k5_small3_seed0"].line
    assert "1 of 2 networks are trained" in report.write_report(out).read_text()
    (out / "cells" / "k5_small3_seed0").unlink()
    run(command + " --processes 2", "--out", out)
    assert "submitted 1 cells as" in capsys.readouterr().err
    wait_for(lambda: {state.state for state in states_of(out).values()} == {"done"})
    assert states_of(out)["k3_small3_seed0"].job == first["k3_small3_seed0"].job
    result = CellResult.load(out / "cells" / "k5_small3_seed0")
    assert result.curve.step[-1] == 4


@pytest.mark.slurm
def test_a_job_out_of_time_goes_on_and_a_killed_one_fails(cluster: None, tmp_path: Path) -> None:
    """The signal that Slurm sends before the limit, sent at once; the network is that of a run in one go."""
    study = replace(TINY, num_seeds=1, recipe=replace(TINY.recipe, steps=1500))
    options = JobOptions(minutes=10)
    names = [cell.name for cell in study.cells()]
    record.save_study(study, "test", tmp_path)
    numbers = jobs.submit(cell_jobs(study, names, tmp_path, options, num_workers=0, device="cpu"), tmp_path, options)
    curves = [tmp_path / "cells" / name / "checkpoint.pt" for name in names]
    wait_for(lambda: all(curve.is_file() for curve in curves))
    subprocess.run(["scancel", "--signal=USR2", numbers[0]], check=True)
    # Slurm's own KILL comes after some seconds of SIGTERM, in which the training may end.
    os.kill(json.loads((curves[1].parent / ".replknet.lock").read_text())["process"], signal.SIGKILL)
    wait_for(lambda: states_of(tmp_path)[names[0]].state == "pending")
    step = torch.load(curves[0], weights_only=True)["loop"]["step"]
    assert 0 < step < 1500
    wait_for(lambda: states_of(tmp_path)[names[1]].state == "failed")
    assert states_of(tmp_path)[names[1]].line.startswith(("srun: ", "slurmstepd"))
    wait_for(lambda: states_of(tmp_path)[names[0]].state == "done")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        (whole,) = run_study(replace(study, kernels=study.kernels[:1]), tmp_path / "whole")
    finally:
        torch.set_num_threads(threads)
    assert whole.result is not None
    assert CellResult.load(tmp_path / "cells" / names[0]).weights_hash == whole.result.weights_hash
    log = "".join(path.read_text() for path in (tmp_path / "jobs").glob(f"{numbers[0]}_0_log.*"))
    assert log.count("Loading pickle") == 2


def test_files_of_a_study_that_others_have_damaged_say_so_or_count_as_absent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record.save_study(TINY, "test", tmp_path)
    first, second, third, fourth = (cell.name for cell in TINY.cells())
    for name in (first, second, third):
        (tmp_path / "cells" / name).mkdir(parents=True)
    (tmp_path / "cells" / first / "measures").mkdir()
    (tmp_path / "cells" / first / "measures" / "result.json").write_text("[]")
    (tmp_path / "cells" / second / "error.txt").write_bytes(b"Traceback\nValueError: caf\xe9\n\n")
    os.mkfifo(tmp_path / "cells" / third / "error.txt")
    (tmp_path / "jobs").mkdir()
    os.mkfifo(tmp_path / "jobs" / "7_0_0_log.err")
    for registry in ("[]", "[" * 100_000, json.dumps({fourth: 1}), json.dumps({fourth: {"executor": "local"}})):
        (tmp_path / "jobs" / "jobs.json").write_text(registry)
        found = states_of(tmp_path)
        assert [found[name].state for name in (first, second, third, fourth)] == [
            "failed",
            "failed",
            "missing",
            "missing",
        ]
        assert "unreadable result ([]: expected an object)" in found[first].line
        assert found[second].line == "ValueError: caf\ufffd"
    for job in ("/etc/x", "../x", "**/*", "", "9" * 30, "-1"):
        (tmp_path / "jobs" / "jobs.json").write_text(json.dumps({fourth: {"executor": "local", "job": job}}))
        assert states_of(tmp_path)[fourth].state == ("failed" if job == "9" * 30 else "missing")
    study = json.loads((tmp_path / "study.json").read_text())
    for content, message in (
        ("null", "None: expected an object"),
        ("[" * 100_000, "nested too deeply"),
        (json.dumps({"command": "x"}), "study is missing"),
        (json.dumps(study | {"command": 1}), "command=1: expected a text"),
        (json.dumps(study | {"study": study["study"] | {"kernels": 3}}), "study.kernels=3: expected a list"),
        (json.dumps(study | {"study": study["study"] | {"kernels": [True]}}), r"study.kernels[0]=True"),
        (json.dumps(study | {"study": study["study"] | {"recipe": []}}), "study.recipe=[]: expected an object"),
        (json.dumps(study | {"study": study["study"] | {"num_seeds": 10**15}}), "expected 1 to 10000"),
    ):
        (tmp_path / "study.json").write_text(content)
        run("report", tmp_path, code=2)
        (line,) = capsys.readouterr().err.splitlines()
        assert f"{str(tmp_path / 'study.json')!r}: unreadable (" in line
        assert message in line


def test_a_job_that_a_former_version_queued_says_so(tmp_path: Path) -> None:
    """Its pickle names modules that are not there any more."""
    record.save_study(TINY, "test", tmp_path)
    (tmp_path / "jobs").mkdir()
    name = TINY.cells()[0].name
    jobs._register(tmp_path, {name: "7_0"}, "local")
    (tmp_path / "jobs" / "7_0_0_log.err").write_text(
        "Traceback\nModuleNotFoundError: No module named 'analysis.jobs'\n"
    )
    state = states_of(tmp_path)[name]
    assert (state.state, state.line) == (
        "failed",
        "was queued by a former version, whose files have moved; the same command submits it again",
    )


def test_a_job_is_plain_values() -> None:
    """So that it outlives everything but its own class."""
    (job,) = cell_jobs(TINY, ["k3_small3_seed0"], Path("x"), JobOptions(executor="local"), num_workers=0, device="cpu")
    kinds = {type(value) for value in (*vars(job).values(), *job.study.values(), *job.study["recipe"].values())}
    assert kinds <= {str, int, float, bool, dict, tuple, type(None)}
