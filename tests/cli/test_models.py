"""One test, since to count all networks takes half a minute."""

import pytest

import replknet
from tests.cli.command import run

COUNTS = {
    "replknet_31b ": ("79,864,168", "79,527,272", "15,431,298,048"),
    "replknet_31l ": ("172,671,016",),
    "replknet_xl ": ("335,399,656",),
    "replknet_31b --kernel-sizes 3,3,3,3": ("12,938,654,720",),
    "unireplknet_t ": ("31,693,420", "31,037,980", "5,003,516,800", "4,898,993,920"),
    "unireplknet_s.in22k ": ("72,483,433",),  # with its own head of 21841 classes
    "slak_t ": ("50,703,838", "50,678,026", "8,704,776,370"),
    "slak_t_61 ": ("51,264,838",),
    "slak_b ": ("28,509,057,219",),
}
"""Parameters, or multiply-accumulates of one image, as published or counted for the official code."""


def test_models_lists_all_networks_and_weights(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    run("models")
    lines = capsys.readouterr().out.splitlines()
    for name, numbers in COUNTS.items():
        shown = [line for line in lines if f" {name}" in line]
        assert all(any(number in line for line in shown) for number in numbers), name
    for name, weights in replknet.PUBLISHED.items():
        (line,) = [line for line in lines if f" {name} " in line]
        for value in (weights.top1, weights.top5):
            assert (" - " if value is None else f"{value:.2f}") in line
