"""Progress where the output is no terminal, the version, help, and words that are nearly right."""

import re
from importlib.metadata import version
from itertools import count
from pathlib import Path

import pytest
from PIL import Image

from analysis.cli import COMMANDS, as_typed, console
from analysis.models.libraries import _unavailable
from tests.cli.command import run


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr("analysis.cli.console.time.monotonic", lambda: now[0])
    return now


def test_a_line_a_minute_with_the_time_left(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bar("images") as progress:
        for done in range(301):
            progress(done, 300)
            clock[0] += 1
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "images: 20 % (61 of 300), 0:01:01 passed, about 0:03:59 left",
        "images: 41 % (122 of 300), 0:02:02 passed, about 0:02:58 left",
        "images: 61 % (183 of 300), 0:03:03 passed, about 0:01:57 left",
        "images: 81 % (244 of 300), 0:04:04 passed, about 0:00:56 left",
        "images: 100 % (300 of 300), 0:05:01 passed",
    ]


def test_a_line_a_cell(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """What was done before does not count for the time that is left."""
    with console.progress_bar("study") as progress:
        for cell in range(4, 8):
            progress(10 * cell, 80, f"k{cell}")
            clock[0] += 30
            progress(10 * cell + 10, 80, f"k{cell}")
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        "study: k5: 62 % (50 of 80), 0:00:30 passed, about 0:01:30 left",
        "study: k6: 75 % (60 of 80), 0:01:00 passed, about 0:01:00 left",
        "study: k7: 88 % (70 of 80), 0:01:30 passed, about 0:00:30 left",
        "study: k7: 100 % (80 of 80), 0:02:00 passed",
    ]


def test_a_limit_is_no_total(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bar("study", at_most=True) as progress:
        for cell in range(2):
            progress(10 * cell, 80, f"k{cell}")
            clock[0] += 30
    assert capsys.readouterr().err.splitlines() == [
        "study: k1: (10 of up to 80), 0:00:30 passed, up to 0:03:30 left",
        "study: k1: (10 of up to 80), 0:01:00 passed",
    ]


def test_many_short_things_and_errors_make_no_lines(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.progress_bar("variants") as progress:
        for number in range(20):
            progress(number, 20, f"v{number}")
            clock[0] += 0.1
    assert len(capsys.readouterr().err.splitlines()) == 1

    def fail() -> None:
        with console.progress_bar("images") as progress:
            progress(0, 3)
            raise ValueError("no image")

    with pytest.raises(ValueError, match="no image"):
        fail()
    with console.progress_bar("nothing"):
        pass
    assert capsys.readouterr().err == ""


def test_the_lines_hold_no_control_characters(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    numbers = count()
    with console.progress_bar("a[b]:smile:") as progress:
        for _ in range(3):
            progress(next(numbers), 3)
            clock[0] += 90
    printed = capsys.readouterr().err
    assert printed.startswith("a[b]:smile:: 33 %")
    assert re.fullmatch(r"[ -~\n]*", printed)


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    run("--version")
    assert capsys.readouterr().out == f"replknet {version('replknet')}\n"


@pytest.mark.parametrize("command", ["", *COMMANDS, "ablate posthoc", "data synthetic", "bench conv"])
def test_both_ways_to_ask_for_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"{command} -h")
    short = capsys.readouterr().out
    run(f"{command} --help")
    assert short == capsys.readouterr().out
    assert f"Usage: replknet {command}".strip() in " ".join(short.split())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("erff", "No such command 'erff'. Did you mean 'erf'?"),
        ("shapebias x", "No such command 'shapebias'. Did you mean 'shape-bias'?"),
        ("xyzzy", "No such command 'xyzzy'."),
        ("ablate posthok", "No such command 'posthok'. Did you mean 'posthoc'?"),
        ("bench modl", "Did you mean 'model'?"),
        ("predict a b --tpo 3", "No such option: --tpo"),
        ("erf x --sise 3 --out o", "--size"),
        ("predict resnet50 images", "(did you mean timm:resnet50 or torchvision:resnet50?)"),
        ("predict timm:resnet5o images", "near are"),
        ("predict timm:resnet5 images", "near are resnet50, "),
        ("predict torchvision:resnet55 images", "torchvision has no such model; near are resnet50"),
        ("train replknet_nano_k33 --recipe r --data d --out o", "recipe='r'"),
    ],
)
def test_what_was_meant(
    words: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("images.png")
    run(words.replace("images", "images.png"), code=2)
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1


def test_only_options_of_the_command_are_advised() -> None:
    told = str(_unavailable("timm:resnet50", OSError("offline"), ""))
    assert as_typed(told, ["erf"]).endswith("or take random weights with --no-pretrained")
    assert as_typed(told, ["compare"]).endswith("go online once to fill the cache")


@pytest.mark.parametrize("folders", [(), ("circle", "ring")])
def test_compare_takes_no_table_of_images(
    folders: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its --labels are of networks; both reasons against a folder of images name that option elsewhere."""
    for name in folders:
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "data" / name / "0.png")
    (tmp_path / "data").mkdir(exist_ok=True)
    data = f"replknet_nano_k3 --data {tmp_path / 'data'} --out"
    run(f"evaluate {data}", tmp_path / "evaluate", code=2)
    assert "or --labels FILE, a CSV of file,class" in capsys.readouterr().err
    run(f"compare --size 64 --num-images 1 {data}", tmp_path / "compare")
    said = capsys.readouterr().err
    assert "warning: No accuracy of replknet_nano_k3: --data=" in said and "labels" not in said
