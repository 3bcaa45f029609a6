"""Networks by a name of the user's own, their folders, and weights for them, as they are typed."""

import json
import signal
import sys
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torchvision
from torch import nn

import replknet
from analysis import ErfResult, LoadedModel, SyntheticImages, load_model, save_stimuli
from analysis.cli.choosing import ModelChoice, layers_of, owned
from analysis.cli.console import told_if_slow
from analysis.cli.methods import networks_told
from analysis.receptive_field.plots import plot_growth
from analysis.redrawing.saved import read_saved
from analysis.runs.identity import identify
from tests.cli.command import run
from tests.networks import TINY

ERF = "--size 64 --num-images 1 --device cpu"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def save_run(folder: Path, seed: int) -> None:
    folder.mkdir(parents=True)
    torch.manual_seed(seed)
    torch.save(replknet.create_model("replknet_31b", **TINY).state_dict(), folder / "w.pth")
    replknet.convert_checkpoint(folder / "w.pth", folder / "network.safetensors")


def test_names_of_ones_own_and_folders(here: Path) -> None:
    save_run(here / "runs" / "a", 1)
    save_run(here / "runs" / "b=2", 2)
    run(f"erf A=runs/a runs/b=2 First=replknet_nano_k3 {ERF} --out out")
    table = pd.read_csv("out/erf.csv")
    assert list(table["model"]) == ["A", "b=2", "First"]
    assert ErfResult.load(here / "out" / "A").model == "A"
    run(f"erf runs/a/w.pth runs/b=2/w.pth A=replknet_nano_k3 {ERF} --out more")
    assert list(pd.read_csv("more/erf.csv")["model"]) == ["a/w", "b=2/w", "A"]


def test_the_same_name_twice_is_refused_and_says_how(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"erf A=replknet_nano_k3 A=replknet_nano_k31 {ERF} --out out", code=2)
    assert "A, A are not all different; NAME=SPEC gives a network another name" in capsys.readouterr().err
    run(f"erf replknet_nano_k3 replknet_nano_k3 {ERF} --out out", code=2)
    assert "are not all different" in capsys.readouterr().err
    assert not (here / "out").exists()


def test_several_kernels_of_one_name(here: Path) -> None:
    choice = ModelChoice(kernel_sizes=["3,3,3,3", "5,5,3,3"], pretrained=False, device="cpu")
    assert [item.name for item in choice.load(["K=replknet_nano_k3"])] == ["K 3-3-3-3", "K 5-5-3-3"]
    one = ModelChoice(kernel_sizes=["3,3,3,3"], pretrained=False, device="cpu")
    assert [item.name for item in one.load(["K=replknet_nano_k3"])] == ["K"]
    (first, second) = ModelChoice(device="cpu").load(["K=replknet_nano_k3"], untrained=True)
    assert (first.name, second.name) == ("K", "K, untrained")


def test_a_file_of_weights_for_each(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what a result records of them is the hash of the file's own weights."""
    torch.manual_seed(0)
    networks = {name: torchvision.models.squeezenet1_1(num_classes=4).eval() for name in ("one", "two")}
    for name, module in networks.items():
        torch.save(
            {"state_dict": {f"module.{key}": value for key, value in module.state_dict().items()}}, f"{name}.pth"
        )
    command = f"erf A=torchvision:squeezenet1_1 B=torchvision:squeezenet1_1 {ERF} --out out"
    run(command, "--checkpoint", "A=one.pth", "--checkpoint", "B=two.pth")
    settings = json.loads(Path("out/run.json").read_text())["settings"]
    assert [(name, weights) for name, weights, _ in settings["models"]] == [
        ("A", identify(networks["one"]).weights),
        ("B", identify(networks["two"]).weights),
    ]
    capsys.readouterr()
    run(command, "--checkpoint", "A=two.pth", "--checkpoint", "B=two.pth", code=2)  # the same folder, other weights
    assert "differs in models" in capsys.readouterr().err
    choice = ModelChoice(checkpoint=["A=one.pth"], pretrained=False, device="cpu")
    mine, random = choice.load(["A=torchvision:squeezenet1_1", "B=torchvision:squeezenet1_1"])
    assert identify(mine.module).weights == identify(networks["one"]).weights
    assert (bool(mine.initial), bool(random.initial)) == (False, True)
    told = "B: SqueezeNet, 1,235,496 parameters (torchvision:squeezenet1_1; not trained: own initialisation, seed 0)."
    assert networks_told([], [random]).paragraphs == (told,)


def test_layers_of_each_network(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = f"erf K=replknet_nano_k3 S=torchvision:squeezenet1_1 --no-pretrained {ERF} --out out"
    run(f"{command} --layers stages.0,features.3", code=2)
    said = capsys.readouterr().err
    assert said.startswith("replknet: K: --layers='features.3': the model has no such module")
    assert said.endswith("; --layers K=... gives it layers of its own\n")
    run("erf", "K 3=replknet_nano_k3", "S=replknet_nano_k3", *f"{ERF} --out out --layers nope".split(), code=2)
    assert "; --layers 'K 3=...' gives it" in capsys.readouterr().err
    run(f"{command} --layers S=features.3,last --layers stages.0")
    table = pd.read_csv("out/erf.csv")
    assert list(zip(table["model"].str[0], table["layer"], strict=True)) == [
        ("K", "stages.0"),
        ("S", "features.3"),
        ("S", "last feature map"),
    ]
    settings = json.loads(Path("out/run.json").read_text())["settings"]
    assert settings["layers"] == [["stages.0"], ["features.3", None]]
    redrawn = read_saved(["out"]).fields  # in the order of the run
    assert [(own.model[0], own.layer) for own in redrawn] == list(
        zip(table["model"].str[0], table["layer"], strict=True)
    )
    methods = Path("out/methods.txt").read_text()
    assert "S: SqueezeNet, 1,235,496 parameters (torchvision:squeezenet1_1)." in methods
    assert methods.count("not trained") == 2  # once of each
    results = [ErfResult.load(path.parent) for path in sorted(Path("out").glob("*/result.json"))]
    ticks = [label.get_text() for label in plot_growth(results).get_xticklabels()]
    assert ticks == ["stages.0", "features.3", "last feature map"]
    capsys.readouterr()
    for wrong in ("--layers T=features.3", "--layers a --layers b"):
        run(f"{command} {wrong}", code=2)
        assert "replknet: --layers=" in capsys.readouterr().err


def test_a_wait_is_told(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with told_if_slow("a: still loading", seconds=0.01):
        time.sleep(0.3)
    with told_if_slow("b: still loading", seconds=60):
        pass
    assert capsys.readouterr().err == "note: a: still loading\n"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["one.pth"], "checkpoint='one.pth': expected NAME=FILE, as several networks are named"),
        (
            ["C=one.pth"],
            "no network is called 'C'; expected the value alone, or NAME=... with one of A, torchvision:vgg11",
        ),
        (["A=one.pth", "A=two.pth"], "has another weight file already"),
        (["A=none.pth"], "'none.pth': no such file"),
        (["A=same.pth"], "may be that file, or 'same.pth' for A"),
    ],
)
def test_whose_weights_these_are_must_be_clear(here: Path, given: list[str], message: str) -> None:
    for name in ("one.pth", "two.pth", "same.pth", "A=same.pth"):
        torch.save({"a": torch.ones(1)}, name)
    with pytest.raises((ValueError, OSError)) as refused:
        ModelChoice(checkpoint=given, device="cpu").load(["A=torchvision:squeezenet1_1", "torchvision:vgg11"])
    assert message in str(refused.value)


def test_a_file_without_a_name_is_that_of_the_only_network_that_takes_one() -> None:
    specs = ["replknet_nano_k3", "timm:resnet18"]
    assert ModelChoice(checkpoint=["w.pth"]).checkpoints(specs) == [Path("w.pth"), None]
    assert ModelChoice(checkpoint=["timm:resnet18=w.pth"]).checkpoints(specs) == [None, Path("w.pth")]
    assert ModelChoice(checkpoint=["w.pth"]).checkpoints(["other.pth", "a.b:c"]) == [None, Path("w.pth")]
    assert ModelChoice(checkpoint=["A=a=b.pth"]).checkpoints(["A=timm:resnet18"]) == [Path("a=b.pth")]


def test_networks_are_called_as_typed_and_their_own_layers_come_first() -> None:
    own = LoadedModel(name="N (random weights)", module=nn.Sequential(OrderedDict(last=nn.ReLU())), source="timm:n")
    other = LoadedModel(name="M", module=nn.ReLU(), source="timm:m, kernels 3-3")
    assert layers_of(["timm:n=last,a", "timm:m=b"], [own, other]) == [("last", "a"), ("b",)]
    assert layers_of(["last"], [own, other]) == [("last",), ("last feature map",)]
    with pytest.raises(ValueError, match=r"--labels='X=m\.csv': no network is called 'X'; expected the value alone$"):
        owned("--labels", ["X=m.csv"], [])


def test_bare_weights_name_the_option(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(torchvision.models.squeezenet1_1().state_dict(), "own.pth")
    run(f"erf own.pth {ERF} --out out", code=2)
    assert "name that, such as timm:resnet50" in (said := capsys.readouterr().err)
    assert "with --checkpoint 'own.pth'" in said
    run("info own.pth", code=1)
    assert "with --checkpoint 'own.pth'" in " ".join(capsys.readouterr().err.split())


def test_a_file_that_was_tried_on_the_wrong_network_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(torchvision.models.squeezenet1_1().state_dict(), "own.pth")
    run(f"erf replknet_nano_k3 torchvision:squeezenet1_1 --checkpoint own.pth {ERF} --out out", code=2)
    said = capsys.readouterr().err
    assert "it was tried on replknet_nano_k3: NAME=own.pth gives it to another" in said and said.count("\n") == 1


def test_responses_with_a_name(here: Path) -> None:
    lines = ["subj,session,trial,rt,object_response,category,condition,imagename"]
    lines += [f"net,1,{k},NaN,cat,cat,0,000{k}_cue_dnn_0_cat_00_cat{k}-dog1.png" for k in range(1, 4)]
    for name in ("one.csv", "two.csv"):
        Path(name).write_text("\n".join(lines) + "\n")
    run("shape-bias One=one.csv Two=two.csv --out out")
    assert set(pd.read_csv("out/shape_bias.csv")["observer"]) == {"One", "Two"}


@pytest.fixture
def images(here: Path) -> str:
    save_stimuli(SyntheticImages(kind="congruent", num_images=12), here / "images")
    return "images"


def test_several_networks_name_images(images: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"predict replknet_nano_k3 replknet_nano_k31 {images}", code=2)
    assert "'replknet_nano_k31': is a network; --model replknet_nano_k31 has it answer" in capsys.readouterr().err
    command = f"predict A=replknet_nano_k3 {images} --model B=replknet_nano_k31 --top 2 --device cpu"
    alone = {}
    for spec in ("replknet_nano_k3", "replknet_nano_k31"):
        run(f"predict {spec} {images} --top 2 --device cpu --out {spec}.csv")
        alone[spec] = pd.read_csv(f"{spec}.csv")
    run(f"{command} --out both.csv")
    both = pd.read_csv("both.csv")
    assert list(both.columns) == ["model", *alone["replknet_nano_k3"].columns]
    for name, table in zip("AB", alone.values(), strict=True):
        own = both[both["model"] == name].drop(columns="model").reset_index(drop=True)
        pd.testing.assert_frame_equal(own, table)
    capsys.readouterr()
    run(f"{command} --json")
    content = json.loads(capsys.readouterr().out)
    assert [entry["model"] for entry in content] == ["A"] * 12 + ["B"] * 12
    run(command)
    assert "model" in capsys.readouterr().out


def test_several_networks_are_evaluated(images: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(f"evaluate A=replknet_nano_k3 B=replknet_nano_k31 --data {images} --device cpu --confusion --out out")
    page = Path("out/index.html").read_text()
    assert page.count("<dt>dtype</dt>") == 1  # what holds for all is told once, as is each version
    assert page.count("numpy") == 1
    table = pd.read_csv("out/accuracy.csv").set_index("model")
    decisions = pd.read_csv("out/decisions.csv")
    assert list(table["images"]) == [12, 12]
    shares = [decisions[decisions["model"] == name]["correct"].mean() for name in "AB"]
    np.testing.assert_allclose(table["top1"], shares)
    assert (table["top1_low"] <= table["top1"]).all()
    assert (table["top1"] <= table["top1_high"]).all()
    assert set(pd.read_csv("out/by_class.csv")["model"]) == set(pd.read_csv("out/confusion.csv")["model"]) == {"A", "B"}
    shown = capsys.readouterr().out
    run(f"evaluate A=replknet_nano_k3 B=replknet_nano_k31 --data {images} --device cpu --confusion --out out")
    page = Path("out/index.html").read_text()
    assert page.count("<dt>dtype</dt>") == 1  # what holds for all is told once, as is each version
    assert page.count("numpy") == 1
    last = "results, tables and page (index.html): out"
    assert shown.splitlines()[-1] == capsys.readouterr().out.splitlines()[-1] == last
    run(f"evaluate replknet_nano_k3 --data {images} --device cpu --out one")
    assert "model" not in pd.read_csv("one/decisions.csv").columns
    assert pd.read_csv("one/accuracy.csv")["top1"].tolist() == table["top1"].tolist()[:1]


def test_info_tells_what_erf_takes(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("info replknet_nano_k3 --json")
    told = json.loads(capsys.readouterr().out)
    assert (told["parameters"], told["num_classes"], told["input_size"], told["free_size"]) == (287292, 12, 64, True)
    stem = next(layer for layer in told["layers"] if layer["name"] == "stem.0.conv")
    assert (stem["shape"], stem["stride"], stem["field"]) == ([1, 16, 32, 32], [2, 2], [3, 3])
    assert [stage["shape"][2:] for stage in told["stages"]] == [[16, 16], [8, 8], [4, 4], [2, 2]]
    run(f"erf replknet_nano_k3 --layers {stem['name']},stages.1 {ERF} --out out")
    assert list(pd.read_csv("out/erf.csv")["layer"]) == ["stem.0.conv", "stages.1"]


def test_a_trained_network_of_another_library_is_read_back(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With weights, classes and preprocessing; what it gives is what PyTorch gives for the tensors of the file."""
    from safetensors.torch import load_file

    save_stimuli(SyntheticImages(kind="congruent", num_images=24), here / "data" / "train")
    for name in ("timm:test_resnet", "torchvision:squeezenet1_1"):
        out = name.partition(":")[2]
        run(f"train {name} --recipe finetune-small --data data --set steps=2 --device cpu --out {out}")
        assert "warning: " in (error := capsys.readouterr().err) and "2 steps" in error
        loaded = load_model(out)
        assert (loaded.name, loaded.input_size, len(loaded.classes)) == (out, 64, 12)
        assert loaded.training["recipe"]["steps"] == 2
        state = load_file(f"{out}/network.safetensors")
        assert all(torch.equal(value, state[key]) for key, value in loaded.module.state_dict().items())
    run("info test_resnet")
    described = capsys.readouterr().out
    assert "problems" in described and "none" in described and "layer1" in described
    run("predict test_resnet data/train --device cpu --out p.csv")
    assert set(pd.read_csv("p.csv")["class"]) <= set(load_model("test_resnet").classes)
    # And it is where another training begins, with another head.
    save_stimuli(SyntheticImages(kind="congruent", num_images=12), here / "few" / "train")
    for folder in sorted((here / "few" / "train").iterdir())[3:]:
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    weights = "test_resnet/network.safetensors"
    run(f"train timm:test_resnet --recipe finetune-small --data few --set steps=1 --set batch_size=2 --device cpu "
        f"--checkpoint {weights} --out again")  # fmt: skip
    assert len(load_model("again").classes) == 3


def test_what_a_network_has_answered_is_kept_until_all_have(images: str, here: Path) -> None:
    Path("mine.py").write_text(
        "import torch\n"
        "calls = []\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self, name, stop):\n"
        "        super().__init__()\n"
        "        self.weight = torch.nn.Parameter(torch.ones(1))\n"
        "        self.name, self.stop = name, stop\n"
        "    def forward(self, x):\n"
        "        calls.append(self.name)\n"
        "        if self.stop and calls.count(self.name) == 3:\n"
        "            raise KeyboardInterrupt\n"
        "        return self.weight * x.mean((2, 3))\n"
        "def one(): return Net('one', False)\n"
        "def two(): return Net('two', True)\n"
    )
    command = f"predict mine:one {images} --model mine:two --batch-size 4 --size 32 --device cpu --out best.csv"
    run(command, code=130)
    calls = sys.modules["mine"].calls
    assert calls == ["one"] * 3 + ["two"] * 3
    run(command)
    assert calls[6:] == ["two"]
    assert len(pd.read_csv("best.csv")) == 2 * 12 * 3
    assert sorted(path.name for path in here.glob(".best*")) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("place", ["the module", "forward", "compiled code"])
def test_a_signal_in_the_midst_of_ones_own_code_is_no_error_of_it(
    images: str, here: Path, place: str, number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    name = f"own_ended_in_{place.split()[-1]}_{number.name}"
    end = f"signal.raise_signal({int(number)})\n"
    if place == "compiled code":  # which may raise an error of its own
        end = f"try: {end}        except BaseException: raise ValueError('shape of a storage') from None\n"
    Path(f"{name}.py").write_text(
        "import os, signal, torch\n"
        + (end if place == "the module" else "")
        + "class Net(torch.nn.Conv2d):\n"
        + "    def forward(self, x):\n"
        + ("" if place == "the module" else f"        {end}")
        + "        return super().forward(x).mean((2, 3))\n"
        + "def make(): return Net(3, 4, 3)\n"
    )
    run(f"predict {name}.py:make {images} --size 32 --device cpu", code=128 + number)
    said = capsys.readouterr().err
    assert ("interrupted" if number == signal.SIGINT else "ended by SIGTERM") in said
    assert name not in said
    assert "storage" not in said
