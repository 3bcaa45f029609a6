"""`replknet shape-bias` on stimuli of single cues, and the ranks of all networks."""

from pathlib import Path

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from analysis import LoadedModel, ShapeBiasResult, rank_correlation, sensitivity, write_responses
from analysis.images.stimuli import published_sets
from tests.analysis.shape_bias.observers import observer, write_single_cues, write_stimuli
from tests.cli.command import run
from tests.cli.test_shape_bias import MODEL, NAMES, Thousand

Capture = pytest.CaptureFixture[str]
FOLDERS = [folder.removeprefix("refined_bias_") for folder in published_sets()["refined-bias"].class_folders]
HERE = "tests.cli.test_sensitivity"


class Other(Thousand):
    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weights = nn.Parameter(torch.randn(3, 1000, generator=generator) * 8)


def second() -> LoadedModel:
    return LoadedModel(name="second", module=Other(1), input_size=16)


def third() -> LoadedModel:
    return LoadedModel(name="third", module=Other(2), input_size=16)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    names = [f"{folder}/{folder.rpartition('/')[2]}_{index}" for folder in FOLDERS for index in range(2)]
    return write_single_cues(tmp_path / "tree", names)


@pytest.fixture
def stimuli(tmp_path: Path) -> Path:
    return write_stimuli(tmp_path / "stimuli", NAMES)


def test_single_cues_alone(tree: Path, tmp_path: Path, capsys: Capture) -> None:
    out = tmp_path / "out"
    arguments = ("shape-bias", MODEL, "--stimuli", tree, "--out", out)
    run(*arguments)
    printed = capsys.readouterr()
    result = ShapeBiasResult.load(out / "thousand-single-cues")
    row = pd.read_csv(out / "sensitivity.csv").iloc[0]
    for cue in ("shape", "texture"):
        own = sensitivity(result, cue)
        assert tuple(row[f"{cue}_{name}"] for name in ("sensitivity", "low", "high", "top1", "chance", "images")) == (
            pytest.approx((own.value, own.low, own.high, own.top1, own.chance, 20))
        )
    assert (row["input_size"], row["num_outputs"]) == (224, 1000)
    assert row["resize"] == "bilinear, antialiased, short side to 256, central crop"
    ranks = pd.read_csv(out / "ranks.csv")
    assert len(ranks) == 40 and ranks["rank"].between(1, 1000).all()
    means = pd.read_csv(out / "sensitivity_by_class.csv")
    assert len(means) == 20 and set(means["num_images"]) == {2}
    assert means.groupby("cue")["sensitivity"].mean().tolist() == pytest.approx(
        [row["shape_sensitivity"], row["texture_sensitivity"]]
    )
    assert matplotlib.image.imread(out / "sensitivity.png").std() > 0.01 and (out / "sensitivity.pdf").is_file()
    assert not (out / "shape_bias.csv").exists() and not (out / "rankings.csv").exists()
    assert f"{row['shape_sensitivity']:.4f}" in printed.out
    assert (
        "224 px (bilinear, antialiased, short side to 256, central crop)" in printed.err
        and "bootstrap over class clusters" in printed.err
    )
    assert "40 images of single cues; 6000 are published" in printed.err
    run("plot", out, "--kind", "sensitivity", "--out", tmp_path / "again.png")
    assert matplotlib.image.imread(tmp_path / "again.png").std() > 0.01
    calls = Thousand.calls
    before = {path: path.read_bytes() for path in out.rglob("*.csv")}
    run(*arguments)
    assert Thousand.calls == calls
    assert {path: path.read_bytes() for path in out.rglob("*.csv")} == before
    # With another side the images go in anew, and the record says so.
    run(*arguments, "--size", 32, "--cluster", "image", "--overwrite")
    row = pd.read_csv(out / "sensitivity.csv").iloc[0]
    assert (row["input_size"], row["cluster"]) == (32, "image")
    assert row["resize"] == "bilinear, antialiased, short side to 36, central crop"


def test_both_kinds_of_stimuli_and_how_their_rankings_agree(
    tree: Path, stimuli: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    raw = tmp_path / "recorded.csv"
    write_responses(observer([(name, "dog") for name in NAMES], name="dog-sayer"), raw)
    models = (MODEL, f"{HERE}:second", f"{HERE}:third")
    run("shape-bias", *models, raw, "--stimuli", stimuli, "--stimuli", tree, "--out", out)
    printed = capsys.readouterr().err
    table = pd.read_csv(out / "sensitivity.csv")
    names = ["thousand", "second", "third"]
    assert table["observer"].tolist() == names * 2
    assert table["stimuli"].tolist() == ["cue conflicts"] * 3 + ["single cues"] * 3
    assert table["resize"].tolist()[::3] == [
        "bicubic, no crop",
        "bilinear, antialiased, short side to 256, central crop",
    ]
    assert "(Efron and Tibshirani, 1993). The images went in at 224 pixels." in (out / "methods.txt").read_text()
    bias = pd.read_csv(out / "shape_bias.csv").set_index("observer")
    columns = ["shape_sensitivity", "texture_low", "texture_top1", "relative_sensitivity"]
    np.testing.assert_allclose(bias.loc[names, columns], table[columns].iloc[:3])
    assert bias.loc["dog-sayer", columns].isna().all()
    assert "no ranks of dog-sayer: only responses are known, not logits" in printed
    decisions = pd.read_csv(out / "decisions.csv")
    own = ShapeBiasResult.load(out / "second")
    assert decisions[decisions["observer"] == "second"]["texture_rank"].tolist() == own.ranks["texture"].tolist()
    assert decisions[decisions["observer"] == "dog-sayer"]["shape_rank"].isna().all()
    rankings = pd.read_csv(out / "rankings.csv")
    relative = table["relative_sensitivity"].tolist()[3:]
    biases = bias["shape_bias"].tolist()[:3]
    expected = rank_correlation(biases, relative)
    assert rankings["num"].tolist() == [3] * 3
    assert rankings["tau"].tolist()[0] == pytest.approx(expected.tau, nan_ok=True)
    assert rankings["p_value"].tolist()[0] == pytest.approx(expected.p_value, nan_ok=True)
    assert "S / (S + T) of single cues: Kendall's tau" in printed and "n = 3 networks" in printed
    assert (out / "shape_bias.png").is_file() and (out / "sensitivity.png").is_file()


def test_responses_alone_write_no_ranks(tmp_path: Path, capsys: Capture) -> None:
    raw = tmp_path / "recorded.csv"
    write_responses(observer([(name, "dog") for name in NAMES], name="dog-sayer"), raw)
    run("shape-bias", raw, "--out", tmp_path / "out")
    assert "no ranks of dog-sayer" in capsys.readouterr().err
    assert not (tmp_path / "out" / "sensitivity.csv").exists()
    assert pd.read_csv(tmp_path / "out" / "shape_bias.csv")["shape_sensitivity"].isna().all()


def test_recorded_responses_do_not_go_with_single_cues_alone(tree: Path, tmp_path: Path, capsys: Capture) -> None:
    raw = tmp_path / "recorded.csv"
    write_responses(observer([(name, "dog") for name in NAMES], name="dog-sayer"), raw)
    run("shape-bias", MODEL, raw, "--stimuli", tree, "--out", tmp_path / "out", code=2)
    assert f"model={raw}: goes with cue-conflict stimuli" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
