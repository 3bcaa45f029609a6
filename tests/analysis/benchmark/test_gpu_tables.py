"""What is measured on a GPU, as far as a CPU can tell: the cases, their notes, the sums, the figures beside targets."""

import math
import re
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.nn import functional as F

import replknet
from analysis.benchmark import agreement, convolutions, devices, networks, plots, summary, timing
from analysis.benchmark.workers import Workers
from analysis.cli import bench_all
from tests.cli.command import run

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU with CUDA")
SMALL = (2, 3, 7, 6, 3, 5)


def test_cases_on_a_gpu_are_those_of_the_issue() -> None:
    headline = list(convolutions.convolution_cases("headline", 2, device="cuda"))
    assert len(headline) == 3 * (10 + 1)
    assert {case.labels["direction"] for case in headline} == {"forward", "input", "weight"}
    assert {case.labels["kernel"] for case in headline} == {31, 29, 27, 13, 51, 5, "51x5", "5x51"}
    assert [case.labels["dtype"] for case in headline].count("float32") == 3
    assert len(list(convolutions.convolution_cases("headline", 2, device="cuda", dtype="float16"))) == 3 * 10
    names = [contender.name for contender in headline[0].contenders]
    assert names[:4] == ["replknet", "replknet, channels_last", "conv2d", "conv2d, channels_last"]
    assert names[4:] == ["torch-fftconv, in float32"]
    assert [bool(contender.trials) for contender in headline[0].contenders] == [False, False, False, True, False]
    paper = list(convolutions.convolution_cases("paper", 2, device="cuda"))
    assert len(paper) == 30
    assert {contender.arguments["layers"] for case in paper for contender in case.contenders} == {24}
    compiled = next(iter(convolutions.convolution_cases("paper", 2, device="cuda", compiled=True)))
    assert compiled.contenders[-1].name == "conv2d, torch.compile"
    (train,) = networks.gpu_network_cases("train", (224,), (64,), 2, device="cuda", dtype="bfloat16")
    assert [contender.name for contender in train.contenders] == [
        "31-29-27-13",
        "31-29-27-13, channels_last",
        "3-3-3-3",
        "3-3-3-3, channels_last",
        "31-29-27-13, nn.Conv2d",
        "31-29-27-13, nn.Conv2d, channels_last",
    ]


def test_layers_are_applied_one_after_the_other() -> None:
    shape = (1, 2, 6, 3)
    ours, theirs = (
        convolutions.convolution(library, shape, "forward", False, 1, layers=3)() for library in ("replknet", "conv2d")
    )
    torch.testing.assert_close(ours, theirs)
    torch.manual_seed(0)
    x, _, weight = torch.randn(1, 2, 6, 6), torch.randn(1, 2, 6, 6), torch.randn(2, 1, 3, 3)
    weights = [torch.randn_like(weight) / 3 for _ in range(3)]
    for own in weights:
        x = F.conv2d(x, own, padding=1, groups=2)
    torch.testing.assert_close(theirs, x)


@pytest.mark.parametrize("sides", [(5, 3), (3, 7)])
def test_kernels_need_not_be_square(sides: tuple[int, int]) -> None:
    found = [
        convolutions.convolution(library, (1, 2, 8, sides), "both", last, 1)()
        for library, last in (("replknet", False), ("replknet", True), ("conv2d", False), ("torch-fftconv", False))
        if library != "torch-fftconv" or pytest.importorskip("torch_fftconv")
    ]
    for other in found[1:]:
        for tensor, expected in zip(other, found[0], strict=True):  # type: ignore[call-overload]
            torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-4)


def test_networks_for_a_gpu_compute_the_same_in_each_way() -> None:
    common = {"task": "inference", "size": 64, "batch": 1, "threads": 2, "dtype": "float32"}
    ways: tuple[dict[str, bool], ...] = (
        {},
        {"channels_last": True},
        {"native": True},
        {"native": True, "channels_last": True},
    )
    first, *others = (networks.network_on("cpu", **common, **way)() for way in ways)  # type: ignore[arg-type]
    assert isinstance(first, torch.Tensor)
    for other in others:
        torch.testing.assert_close(other, first, rtol=1e-3, atol=1e-4)


def test_rates_are_images_over_time() -> None:
    table = pd.DataFrame([{"images": 64, "contender": "a", "median_ms": 32.0}])
    assert list(networks.with_rates(table)["images_per_s"]) == [2000.0]


def test_what_would_take_too_long_is_not_called() -> None:
    trials = [({"seconds": 0.01}, 1e-3), ({"seconds": 0.02}, 2e-3)]
    slow = timing.Contender("slow", "one", _sleeps, {"seconds": 1000.0}, trials)
    fast = timing.Contender("fast", "one", _sleeps, {"seconds": 0.01}, [({"seconds": 0.001}, 0.1)])
    table = compared([slow, fast], longest=5.0)
    assert re.match(
        r"skipped: about 1\d s a call \(2\d(\.\d)? ms for 0.002 of the work\); the limit is 5 s", table["note"][0]
    )
    assert table["rounds"][1] == 2
    assert math.isnan(table["ratio"][1])  # to the first contender, which has no time


def test_what_fails_is_a_note_and_its_process_starts_anew() -> None:
    bad = timing.Contender("bad", "one", _fails, {"where": "set-up"})
    later = timing.Contender("later", "one", _fails, {"where": "third call"})
    good = timing.Contender("good", "two", _sleeps, {"seconds": 0.001})
    table = compared([good, bad, later])
    assert table["note"][1] == "failed: RuntimeError: CUDA error: an illegal memory access in set-up"
    assert table["note"][2] == "failed: RuntimeError: CUDA error: an illegal memory access in third call"
    assert table["ratio"][0] == 1
    again = [timing.Case({"size": size}, [bad, replace(good, process="one")]) for size in (1, 2)]
    table = timing.compare(again, repeats=2, seconds=1, progress=lambda *_: None)
    assert list(table["rounds"].dropna()) == [2, 2]


def test_what_does_not_answer_is_ended() -> None:
    hung = timing.Contender("hung", "one", _sleeps, {"seconds": 1000.0})
    good = timing.Contender("good", "two", _sleeps, {"seconds": 0.001})
    cases = [timing.Case({"size": 1}, [good, hung]), timing.Case({"size": 2}, [replace(good, process="one")])]
    with Workers(["one", "two"], limit=12.0) as workers:
        table = timing.compare(cases, repeats=2, seconds=1, workers=workers, progress=lambda *_: None)
    assert table["note"][1] == "failed: no answer within 12 s"
    assert list(table["median_ms"].notna()) == [True, False, True]


def compared(contenders: list[timing.Contender], longest: float = math.inf) -> pd.DataFrame:
    case = timing.Case({"size": 1}, contenders)
    return timing.compare([case], repeats=2, seconds=1, longest=longest, progress=lambda *_: None)


def _sleeps(seconds: float) -> timing.Call:
    return partial(time.sleep, seconds)


def _fails(where: str) -> timing.Call:
    calls: list[None] = []

    def call() -> None:
        calls.append(None)
        if where == "set-up" or len(calls) > 2:
            raise RuntimeError(f"CUDA error: an illegal memory access in {where}")

    return call


def test_sums_of_directions() -> None:
    times = {"forward": (1.0, 2.0), "input": (2.0, 4.0), "weight": (4.0, 29.0)}
    rows = [
        {"size": 8, "kernel": kernel, "direction": direction, "contender": name, "median_ms": time, "ratio": 0.0}
        for kernel in (5, "9x3")
        for direction, pair in times.items()
        for name, time in zip(("ours", "theirs"), pair, strict=True)
    ]
    rows[-1]["median_ms"] = math.nan
    table = pd.DataFrame(rows).assign(min_ms=1.0, max_ms=50.0)
    found = convolutions.with_sums(table)
    assert list(found.columns) == list(table.columns)
    assert list(found["kernel"]) == [5] * 8 + ["9x3"] * 7
    sums = found[found["direction"] == "sum"]
    assert list(zip(sums["kernel"], sums["contender"], sums["median_ms"], sums["ratio"], strict=True)) == [
        (5, "ours", 7.0, 1.0),
        (5, "theirs", 35.0, 5.0),
        ("9x3", "ours", 7.0, 1.0),
    ]


def test_published_times_stand_beside_ours() -> None:
    table = pd.DataFrame([{"size": 16, "kernel": 3}, {"size": 64, "kernel": 31}, {"size": 32, "kernel": 13}])
    found = convolutions.with_published(table)
    assert list(found["published_2080ti_pytorch_ms"]) == [5.6, 3090.4, 141.2]
    assert list(found["published_2080ti_own_ms"]) == [5.6, 431.7, 52.5]
    assert {len(times) for pair in convolutions.PUBLISHED_MS.values() for times in pair} == {10}


def test_agreement_with_float64() -> None:
    rows = pd.DataFrame(agreement.errors(agreement.Check(SMALL, "float32", "channels_last", "cpu")))
    assert list(rows["direction"]) == ["output", "input gradient", "weight gradient", "bias gradient"]
    assert rows["right"].all()
    assert rows["error"].max() < 1e-6
    none = pd.DataFrame(agreement.errors(agreement.Check((0, 4, 5, 5, 3, 3), "float32", "contiguous", "cpu")))
    assert none["right"].all()


def _flipped(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, _: str) -> torch.Tensor:
    return replknet.depthwise_conv2d(x, weight.flip(3), bias)


def _not_finite(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, _: str) -> torch.Tensor:
    return replknet.depthwise_conv2d(x, weight, bias) * math.nan


def _contiguous(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, _: str) -> torch.Tensor:
    return replknet.depthwise_conv2d(x, weight, bias).contiguous()


@pytest.mark.parametrize("wrong", [_flipped, _not_finite, _contiguous])
def test_what_is_not_right_is_found(monkeypatch: pytest.MonkeyPatch, wrong: Callable[..., torch.Tensor]) -> None:
    class Library:
        depthwise_conv2d = staticmethod(wrong)

    monkeypatch.setattr(agreement, "replknet", Library)
    rows = pd.DataFrame(agreement.errors(agreement.Check(SMALL, "float32", "channels_last", "cpu")))
    assert not rows["right"].iloc[0]
    assert bool(rows["note"].iloc[0]) == (wrong is _contiguous)
    assert not agreement.worst(rows)["right"].all()


def test_figures_stand_beside_their_targets() -> None:
    labels = {"images": 64, "channels": 124, "size": 56, "kernel": "51x5", "dtype": "bfloat16", "direction": "sum"}
    headline = pd.DataFrame(
        [labels | {"contender": "replknet", "median_ms": 2.0}, labels | {"contender": "conv2d", "median_ms": 24.0}]
    )
    times = {"31-29-27-13": 106.0, "3-3-3-3": 100.0, "31-29-27-13, nn.Conv2d": 530.0}
    train = pd.DataFrame([{"task": "train", "contender": name, "median_ms": time} for name, time in times.items()])
    found = {figure.name: figure for figure in summary.figures({"conv-headline": headline, "train": train})}
    assert len(found) == 9 + 4 + 3
    told = {name: (figure.value, figure.reached) for name, figure in found.items() if figure.value is not None}
    assert told == {
        "(64, 124, 56, 51x5) bfloat16: conv2d over ours, sum of three directions": (12.0, True),
        "train, contiguous: 31-29-27-13 over 3-3-3-3": (1.06, False),
        "train, contiguous: native over ours": (5.0, True),
    }
    assert str(found["train, contiguous: 31-29-27-13 over 3-3-3-3"]).endswith("1.06  at most 1.05  NOT REACHED")
    assert str(found["train, channels_last, torch.compile: images per second"]).endswith("not measured  at least 900")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """`bench all` with one small shape and one small table."""
    monkeypatch.setattr(agreement, "SHAPES", (SMALL,))
    arguments = {"shape": (1, 2, 8, 5), "direction": "both", "channels_last": False, "threads": 1}
    contenders = [
        timing.Contender(name, name, convolutions.convolution, {**arguments, "library": name})
        for name in ("replknet", "conv2d")
    ]
    labels = {"images": 1, "channels": 2, "size": 8, "kernel": 5, "direction": "both"}
    step = bench_all.Step("conv-headline", [timing.Case(labels, contenders)], 2, 1.0)
    monkeypatch.setattr(bench_all, "steps", lambda *_: [step])


@pytest.mark.usefixtures("tiny")
def test_all_of_it_is_left_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("bench", "all", "--device", "cpu", "--out", tmp_path / "out")
    run(*words, "--minutes", 0, code=1)
    assert "not begun after 0 minutes; the same command makes it" in capsys.readouterr().err
    run(*words)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {f"conv-headline.{suffix}" for suffix in ("csv", "png", "pdf")}
    assert names == {"run.json", "environment.json", "correctness.csv", "summary.txt", *figures}
    text = (tmp_path / "out" / "summary.txt").read_text()
    assert text.startswith("device: cpu\n")
    assert "Correctness: 8 comparisons with conv2d in float64, 0 out of bounds" in text
    assert text in capsys.readouterr().out
    table = (tmp_path / "out" / "conv-headline.csv").read_bytes()
    run(*words)
    assert (tmp_path / "out" / "conv-headline.csv").read_bytes() == table  # nothing is timed again


@pytest.mark.usefixtures("tiny")
def test_nothing_is_timed_that_is_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(agreement.OVER_OWN, "float32", -1e9)
    run("bench", "all", "--device", "cpu", "--out", tmp_path / "out", code=1)
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"run.json", "environment.json", "correctness.csv", "summary.txt"}
    assert "8 out of bounds" in (tmp_path / "out" / "summary.txt").read_text()
    assert "not as exact as it has to be; see correctness.csv" in capsys.readouterr().err


def test_a_table_of_which_nothing_was_timed_is_drawn() -> None:
    table = compared([timing.Contender("bad", "one", _fails, {"where": "set-up"})])
    assert not plots.plot_benchmark(table).lines


@CUDA
@pytest.mark.cuda
def test_short_calls_are_timed_as_graphs_and_memory_is_told() -> None:
    meter = devices.meter_of("cuda")
    x = torch.ones(2**20, device="cuda")
    first, peak = meter.first(lambda: x + 1)
    assert first > 0
    assert peak == pytest.approx(4.0)
    replay, seconds, known = meter.ready(lambda: x + 1, first)
    assert known["timed"] == "graph"
    assert 0 < seconds <= known["eager_ms"] / 1e3 * 2
    assert 0 < meter.seconds(replay, 5) < 0.01
    waiting, _, known = meter.ready(lambda: (x + 1).sum().item(), first)
    assert known["timed"] == "calls"
    assert isinstance(waiting(), float)


@CUDA
@pytest.mark.cuda
def test_every_contender_is_timed_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolutions, "GPU_HEADLINE", ((2, 16, 14, 13), (2, 16, 14, (9, 3))))
    monkeypatch.setattr(convolutions, "GPU_EXACT", ((2, 16, 14, 13),))
    cases = list(convolutions.convolution_cases("headline", 2, device="cuda"))
    table = timing.compare(cases, repeats=2, seconds=1, longest=10.0, device="cuda", progress=lambda *_: None)
    notes = table["note"].dropna() if "note" in table else pd.Series(dtype=str)
    assert not [note for note in notes if not note.startswith("not installed")]
    assert (table["first_ms"].dropna() > 0).all()
    assert len(convolutions.with_sums(table)) > len(table)


@CUDA
@pytest.mark.cuda
def test_memory_that_does_not_suffice_is_a_note_on_cuda() -> None:
    arguments = {"shape": (4096, 4096, 512, 3), "direction": "forward", "channels_last": False, "threads": 1}
    contender = timing.Contender(
        "large", "one", convolutions.convolution, {**arguments, "library": "conv2d", "device": "cuda"}
    )
    table = timing.compare(
        [timing.Case({"size": 1}, [contender])], repeats=1, seconds=1, device="cuda", progress=lambda *_: None
    )
    assert list(table["note"]) == ["out of memory"]


@CUDA
@pytest.mark.cuda
@pytest.mark.parametrize("task", ["train", "inference", "erf"])
def test_networks_are_timed_on_cuda(task: str) -> None:
    dtype = "float32" if task == "erf" else "bfloat16"
    cases = list(networks.gpu_network_cases(task, (64,), (2,), 2, device="cuda", dtype=dtype))
    table = timing.compare(cases, repeats=2, seconds=1, longest=10.0, device="cuda", progress=lambda *_: None)
    assert table["median_ms"].notna().all()


@CUDA
@pytest.mark.cuda
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_agreement_on_cuda(dtype: str) -> None:
    for layout in agreement.LAYOUTS:
        rows = pd.DataFrame(agreement.errors(agreement.Check(SMALL, dtype, layout, "cuda")))
        assert rows["right"].all(), rows.to_string()
