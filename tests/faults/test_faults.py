"""Every command that writes, failed and killed at its points: what was there stays, and the same command then ends
with the same bytes, and nothing beside them.

By default some points of each command, drawn anew every day; `make fuzz` takes them all.
"""

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, get_args

import pytest
import typer

from analysis.cli import COMMANDS as FILES
from analysis.cli import app
from analysis.runs.folder import FORMER
from analysis.runs.locking import LOCK_FILE
from tests.faults.commands import ALIKE, COMMANDS, READING, SERVED, Case, make_inputs
from tests.faults.runner import Run
from tests.faults.supervising import Kind, Point, unsupported
from tests.fuzz.reporting import COUNTS, seed_of_the_day
from tests.server import serving

ROOT = Path(__file__).parents[2]
SEED = seed_of_the_day()
SECONDS = float(os.environ.get("FUZZ_SECONDS", "120")) / 2 / len(COMMANDS)
"""For each command; the other half is that of `tests/fuzz`."""
TIMES = ("seconds", "seconds_per_step", "images_per_second", "inference_ms", "calls", "elapsed_seconds")
"""What two runs of a command have not in common, in files of JSON."""
CALL = re.compile(rb"<time.*?</time>|<dt>commit</dt>.*?</dd>")
"""Of a page: when and from which commit it was made."""
TIMED = re.compile(
    r".*events\.out\.tfevents.*|.*/run/report\.html|.*/((study|compare)\.csv|figures/(inference|step_time)\.(png|pdf))"
)
"""Files that show such times."""


class Runner:
    """Runs commands in forks of one process."""

    def __init__(self, inputs: Path, server: str) -> None:
        environment = os.environ | {"SOURCE_DATE_EPOCH": "0", "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
        self._replaced = {"inputs": str(inputs), "server": server}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.runner"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def __call__(
        self, words: str, folder: Path, kind: Kind = "none", at: int = 0, prepared: str = ""
    ) -> tuple[int, list[Point]]:
        """Exit code, or minus the signal, and the points."""
        assert self._process.stdin is not None and self._process.stdout is not None
        run = Run(words.format(**self._replaced).split(), str(folder), kind, at, prepared)
        self._process.stdin.write(json.dumps(asdict(run)) + "\n")
        self._process.stdin.flush()
        answer = json.loads(self._process.stdout.readline())
        return answer["code"], [Point(**point) for point in answer["points"]]

    def close(self) -> None:
        self._process.communicate()


@pytest.fixture(scope="session")
def runner(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    reason = unsupported()
    if reason:
        pytest.skip(reason)
    inputs = tmp_path_factory.mktemp("inputs")
    make_inputs(inputs)
    with serving(SERVED) as server:
        found = Runner(inputs, server.url)
        yield found
        found.close()


def content(folder: Path) -> dict[str, Any]:
    """Every file below a folder, and every empty folder, without the times that it took."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_dir():
            if not any(path.iterdir()):
                found[name] = "empty folder"
        elif TIMED.fullmatch(f"{folder.name}/{name}"):
            found[re.sub(r"tfevents.*", "tfevents", name)] = "times"
        else:
            found[name] = path.read_bytes()
            if path.suffix == ".html":
                found[name] = CALL.sub(b"", found[name])
            if path.suffix == ".json":
                with suppress(ValueError):  # one that is not whole
                    found[name] = without_times(json.loads(found[name]))
    return found


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key not in TIMES}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def leftovers(folder: Path) -> list[str]:
    return [str(path.relative_to(folder)) for path in folder.rglob(".*")]


def drawn(points: list[Point], random_numbers: random.Random) -> list[tuple[Kind, int]]:
    """Faults in random order; of writes to one file in a row the first two stand for all."""
    chosen = [
        number
        for number, point in enumerate(points, 1)
        if number < 3 or point.call != "write" or len({point, *points[number - 3 : number - 1]}) > 1
    ]
    kinds: tuple[Kind, ...] = get_args(Kind)[1:]
    faults = [(kind, number) for kind in kinds for number in chosen]
    random_numbers.shuffle(faults)
    return faults


@pytest.mark.fuzz
@pytest.mark.parametrize("name", COMMANDS)
def test_a_fault_at_any_write(
    name: str, runner: Runner, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    case = COMMANDS[name]
    start, expected, points = clean(case, runner, tmp_path)
    ended, tried = time.monotonic() + SECONDS, 0
    faults = drawn(points, random.Random(f"{SEED} {name}"))
    for kind, at in faults:
        if tried and time.monotonic() > ended:
            break
        tried += 1
        folder = tmp_path / "faulty"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(start, folder, symlinks=True)
        code, _ = runner(case.words, folder, kind, at, case.prepared)
        told = (folder / "stderr").read_text()
        where = f"FUZZ_SEED={SEED}: {kind} at {at} of {len(points)}, {points[at - 1]}; exit code {code}: {told[-2000:]}"
        check_end(kind, code, told, folder / "out", where)
        if ", anew" in name:
            check_former(start / "out", folder / "out", expected, where)
        if content(folder / "out") == expected:
            continue  # it was done, and would not replace its file
        code, _ = runner(case.words, folder, prepared=case.prepared)
        told = (folder / "stderr").read_text()
        assert code == 0, f"{where}\nthe same command again: {code}: {told[-2000:]}"
        found = content(folder / "out")
        differing = {key for key in {*expected, *found} if expected.get(key) != found.get(key)}
        assert not differing, f"{where}\nthe same command again: differs in {sorted(differing)}"
    record_property(COUNTS, f"{name:<28}{tried:>10} of {len(faults)} faults at {len(points)} points, all right")


def clean(case: Case, runner: Runner, tmp_path: Path) -> tuple[Path, dict[str, Any], list[Point]]:
    """The folder before the command, what it holds after it, and the points of the command."""
    start, whole = tmp_path / "start", tmp_path / "whole"
    (start / "out").mkdir(parents=True)
    if case.former:
        assert runner(case.former, start)[0] == 0, (start / "stderr").read_text()
    shutil.copytree(start, whole)
    code, points = runner(case.words, whole, prepared=case.prepared)
    assert code == 0, (whole / "stderr").read_text()
    assert len(points) > 2
    assert not leftovers(whole / "out")
    return start, content(whole / "out"), points


def check_end(kind: Kind, code: int, told: str, out: Path, where: str) -> None:
    """A fault ends the command with a word and leaves nothing unfinished; only after a kill it can not."""
    if kind == "kill":
        assert code == -9, where
        return
    assert code in ({"term": 143, "full": 2}[kind], 0), where
    assert "Traceback" not in told, where
    assert code == 0 or "replknet: " in told, where  # maybe behind a progress bar
    # What was measured so far is kept, and what is replaced; the file of a lock that nobody holds is of no meaning.
    kept = (".partial.npz", LOCK_FILE, FORMER)
    left = [path for path in leftovers(out) if not path.endswith(kept)]
    if kind == "term":  # it may come while a folder is removed, which the next run completes
        left = [path for path in left if not (out / path).is_dir()]
    assert not left, where


def check_former(former: Path, out: Path, expected: dict[str, Any], where: str) -> None:
    """Of what is replaced the old or the new one is there, at any time, as a whole."""
    new = content(out)
    lost = [
        name
        for name, value in content(former).items()
        if value not in (new.get(name), new.get(name.replace("run/", f"run/{FORMER}/", 1)))
    ]
    assert not lost or all(new.get(name) == value for name, value in expected.items()), f"{where}\nlost: {lost}"


def test_every_command_is_covered() -> None:
    """One that is added has to be listed."""
    root: Any = typer.main.get_command(app)
    names = []
    for name in FILES:
        command = root.get_command(None, name)
        own = command.make_context(name, [], None, resilient_parsing=True).command
        names += [f"{name} {inner}" for inner in own.commands] if hasattr(own, "commands") else [name]
    assert {name.partition(",")[0] for name in COMMANDS} | {*READING, *ALIKE} == set(names)
