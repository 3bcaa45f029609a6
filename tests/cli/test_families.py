"""The commands on a network of another family, from a weight file."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import replknet
from analysis.models.files import load_file, save_network
from replknet.checkpoints.reading import read_metadata
from tests.cli.command import run
from tests.networks import tiny_unireplknet


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.save({"model": tiny_unireplknet().float().state_dict()}, tmp_path / "tiny.pth")
    return tmp_path / "tiny.pth"


def test_info_convert_and_reparameterize(weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("info", weights)
    told = capsys.readouterr().out
    assert "a UniRepLKNet with layers=(2, 2, 2, 1)" in told
    assert "3 | 13,5 | 9,3 | 7" in told
    run("convert", weights, weights.with_name("a.safetensors"))
    run("reparameterize", weights, weights.with_name("b.pth"))
    assert "51,122 parameters became 44,914" in capsys.readouterr().out
    run("info", weights.with_name("b.pth"))
    assert "large kernels merged" in capsys.readouterr().out
    run("convert", weights, weights.with_name("c.pth"), "--to", "mmpretrain", code=2)
    assert "its code has no UniRepLKNet" in capsys.readouterr().err


def test_erf_predict_and_posthoc(weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (80, 90, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "image.png")
    run("erf", weights, "--out", tmp_path / "erf", "--size", 64, "--num-images", 1)
    run("predict", weights, tmp_path / "image.png")
    assert "class 8" in capsys.readouterr().out
    arguments = ("--out", tmp_path / "posthoc", "--size", 64, "--num-images", 1, "--kernels", "3", "--no-stages")
    run("ablate posthoc", weights, *arguments)
    table = pd.read_csv(tmp_path / "posthoc" / "posthoc.csv")
    assert list(table["variant"]) == ["whole", "crop3", "whole_nodilated"]
    assert table["erf_rms_radius"].is_unique
    assert set(pd.read_csv(tmp_path / "posthoc" / "energy.csv")["stage"]) == {2, 3, 4}


@pytest.mark.parametrize("suffix", ["onnx", "pt", "pt2"])
def test_export(weights: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    run("export", weights, "--out", weights.with_name(f"net.{suffix}"), "--size", 64)
    assert "2 x 3 x 64 x 64" in capsys.readouterr().out


def test_kernels_by_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("erf", "unireplknet_a", "--no-pretrained", "--small-kernel", 3, "--out", tmp_path / "erf", code=2)
    assert "a UniRepLKNet has dilated branches in its place" in capsys.readouterr().err


def test_a_network_file_says_its_family(tmp_path: Path) -> None:
    module = tiny_unireplknet()
    path = tmp_path / "network.safetensors"
    save_network(path, module, classes=[str(i) for i in range(10)], input_size=64)
    loaded = load_file(path)
    assert loaded.module.config == module.config
    assert loaded.fresh is not None
    assert isinstance(loaded.fresh(), replknet.UniRepLKNet)
    assert json.loads(read_metadata(path)["replknet"])["family"] == "UniRepLKNet"


def test_training_by_a_recipe_and_the_network_that_it_writes(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for label in ("a", "b"):
            (tmp_path / "data" / part / label).mkdir(parents=True)
            for number in range(4):
                pixels = np.random.default_rng(number).integers(0, 255, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "data" / part / label / f"{number}.png")
    words = ["--recipe", "imagenet-300", "--data", tmp_path / "data", "--out", tmp_path / "out", "--max-steps", 2]
    for change in ("batch_size=4", "image_size=32", "autocast=", "epochs=2", "warmup_epochs=0"):
        words += ["--set", change]
    run("train unireplknet_a", *words)
    loaded = load_file(tmp_path / "out" / "network.safetensors")
    assert isinstance(loaded.module, replknet.UniRepLKNet)
    assert (loaded.classes, loaded.module.config.num_classes) == (("a", "b"), 2)
    fresh = replknet.create_model("unireplknet_a", num_classes=2).state_dict()
    assert list(loaded.module.state_dict()) == list(fresh)
