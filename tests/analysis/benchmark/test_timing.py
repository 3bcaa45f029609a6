"""The benchmarks run, compare what they say and leave a table that other tools read."""

import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from analysis.benchmark import convolutions, networks, plots, timing
from replknet import reparameterize
from tests.networks import tiny_model


def test_contenders_of_a_case_compute_the_same() -> None:
    shape = (2, 4, 12, 9)
    directions: tuple[convolutions.Direction, ...] = ("forward", "input", "weight", "both")
    for direction in directions:
        results: list[tuple[Any, ...]] = []
        for library, channels_last in (("replknet", False), ("replknet", True), ("conv2d", False)):
            found: Any = convolutions.convolution(library, shape, direction, channels_last, torch.get_num_threads())()
            results.append((found,) if isinstance(found, torch.Tensor) else found)
        for other in results[1:]:
            for tensor, expected in zip(other, results[0], strict=True):
                torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-4)


def test_compare_times_every_contender_and_names_what_is_missing() -> None:
    cases = [
        timing.Case(
            {"size": 8},
            [
                timing.Contender(name, name, convolutions.convolution, {**arguments, "library": library})
                for name, library in (("ours", "replknet"), ("theirs", "conv2d"))
                for arguments in [
                    {"shape": (1, 2, 8, 5), "direction": "both", "channels_last": False, "threads": 1},
                ]
            ]
            + [timing.Contender("absent", "absent", _absent, {})],
        )
    ]
    seen: list[tuple[int, int]] = []
    table = timing.compare(cases, repeats=3, seconds=5, progress=lambda *state: seen.append(state))
    assert list(table["contender"]) == ["ours", "theirs", "absent"]
    assert list(table["rounds"].dropna()) == [3, 3]
    assert table["ratio"][0] == 1
    assert table["ratio"][1] == pytest.approx(table["median_ms"][1] / table["median_ms"][0])
    assert table["note"][2] == "not installed: no_such_library"
    assert seen == [(0, 1), (1, 1)]
    assert len(plots.plot_benchmark(table).lines) == 2


def _absent() -> timing.Call:
    raise ImportError(name="no_such_library")


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the rows, the inner size and the columns of every matrix product."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.sizes: list[tuple[int, int, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        factors = {"aten.mm.default": args[:2], "aten.addmm.default": args[1:3]}.get(str(func))
        if str(func).startswith("mkldnn._linear_pointwise"):
            factors = (args[0], args[1].t())
        if factors is not None:
            self.sizes.append((*factors[0].shape, factors[1].shape[1]))
        return func(*args, **(kwargs or {}))


def test_products_alone_are_those_of_the_network() -> None:
    torch.manual_seed(0)
    model = reparameterize(tiny_model().float().eval().requires_grad_(False))
    images = torch.randn(1, 3, 64, 64).requires_grad_()
    with Products() as of_network:
        torch.autograd.grad(model.forward_features(images).sum(), images)
    products = networks._products(model, images.detach(), backward=True)
    with Products() as alone:
        products()
    assert len(alone.sizes) == 2 * (4 * 5 + 1 + 3)
    assert sorted(alone.sizes) == sorted(of_network.sizes)


def test_suites_hold_the_cases_of_the_issue() -> None:
    counts = {suite: len(list(convolutions.convolution_cases(suite, 2))) for suite in ("headline", "grid", "paper")}
    assert counts == {"headline": 8, "grid": 4 * 5 * 10 * 3, "paper": 3 * 14}


def test_a_hopeless_contender_is_called_once() -> None:
    contenders = [timing.Contender(name, name, _sleeps, {"seconds": seconds}) for name, seconds in SLEEPERS]
    table = timing.compare(
        [timing.Case({"size": 1}, contenders)], repeats=3, seconds=5, hopeless=3.0, progress=lambda *_: None
    )
    assert list(table["rounds"]) == [3, 1]
    assert table["median_ms"][1] == table["max_ms"][1] >= 200


def test_a_contender_that_dies_is_said() -> None:
    case = timing.Case({"size": 1}, [timing.Contender("dead", "dead", _dies, {})])
    with pytest.raises(ChildProcessError, match="a benchmark's process has ended"):
        timing.compare([case], repeats=1, seconds=1, progress=lambda *_: None)


def _dies() -> timing.Call:
    os._exit(9)


SLEEPERS = (("fast", 0.01), ("slow", 0.2))


def _sleeps(seconds: float) -> timing.Call:
    return partial(time.sleep, seconds)


def test_slowness_compares_the_better_layouts() -> None:
    times = {
        "replknet": 4.0,
        "replknet, channels_last": 2.0,
        "conv2d": 8.0,
        "conv2d, channels_last": 16.0,
        "other": 1.0,
    }
    rows = [
        {"kernel": kernel, "direction": "forward", "contender": name, "median_ms": kernel * value}
        for kernel in (3, 5)
        for name, value in times.items()
    ]
    rows[-1]["median_ms"] = float("nan")
    found = timing.slowness(pd.DataFrame(rows), "conv2d")
    assert list(found["ratio"]) == [0.25, 0.25]
    other = timing.slowness(pd.DataFrame(rows), "other")
    assert list(other["kernel"]) == [3]
    assert list(other["ratio"]) == [2.0]
    axes = plots.plot_ratios(found)
    assert sorted(np.asarray(axes.lines[0].get_ydata())) == [0.25, 0.25]


def test_command_line(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "from analysis.cli import main; main()", "bench", "conv", "--suite"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    bad = subprocess.run([*command, "winograd"], capture_output=True, text=True, env=environment)
    assert bad.returncode == 2
    assert bad.stderr.strip() == "replknet: --suite=winograd: expected headline, grid or paper"
    (tmp_path / "conv-paper.csv").write_text("kept")
    taken = subprocess.run([*command, "paper", "--out", str(tmp_path)], capture_output=True, text=True, env=environment)
    assert taken.returncode == 2
    assert "conv-paper.csv is there already" in taken.stderr
    assert (tmp_path / "conv-paper.csv").read_text() == "kept"


def test_plot_by_kernel_has_a_line_per_contender_and_size() -> None:
    rows = [
        {"size": size, "kernel": kernel, "contender": name, "median_ms": float(kernel)}
        for size in (16, 32)
        for kernel in range(3, 19, 2)
        for name in ("a", "b")
    ]
    ax = plots.plot_benchmark(pd.DataFrame(rows).assign(images=1, channels=2, direction="forward"))
    drawn = [line for line in ax.lines if len(np.asarray(line.get_xdata()))]
    assert len(drawn) == 4
    assert len({(line.get_color(), line.get_linestyle()) for line in drawn}) == 4
    assert ax.get_legend_handles_labels()[1] == ["a", "b", "size 16", "size 32"]
    assert ax.get_xscale() == ax.get_yscale() == "log"
