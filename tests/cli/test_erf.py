from contextlib import nullcontext
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import analysis
from analysis import ErfResult
from analysis.receptive_field.plots import plot_contribution, plot_erf
from tests.cli.command import run


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 4, 9, padding=4))


def not_a_network() -> int:
    return 3


MODEL = "tests.cli.test_erf:small_network"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(3):
        pixels = np.random.default_rng(index).integers(0, 255, (40, 50, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{index}.png")
    return folder


def test_erf_writes_results_table_and_figures(photos: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    arguments = ("erf", MODEL, "--untrained", "--images", photos, "--size", "32x40", "--layers", "0,last", "--out", out)
    run(*arguments)
    names = {path.name for path in out.iterdir()}
    for figure in ("erf", "contribution", "growth"):
        assert {f"{figure}.png", f"{figure}.pdf"} <= names
        assert matplotlib.image.imread(out / f"{figure}.png").std() > 0.01
    table = pd.read_csv(out / "erf.csv")
    assert list(table["model"]) == ["small_network"] * 2 + ["small_network, untrained"] * 2
    assert list(table["layer"]) == ["0", "last feature map"] * 2
    result = ErfResult.load(out / "small_network")
    assert result.images == ("0.png", "1.png", "2.png") or sorted(result.images) == ["0.png", "1.png", "2.png"]
    assert table["area_0.5"][1] == pytest.approx(result.area_ratio(0.5))
    assert result.map_size == (32, 40)
    # A second call answers from what is saved; another run is refused and changes nothing.
    stamp = (out / "small_network" / "result.json").stat().st_mtime_ns
    run(*arguments)
    assert (out / "small_network" / "result.json").stat().st_mtime_ns == stamp
    capsys.readouterr()
    run(*arguments, "--protocol", "official", code=2)
    assert "differs in protocol" in capsys.readouterr().err
    assert (out / "small_network" / "result.json").stat().st_mtime_ns == stamp
    run(*arguments, "--protocol", "official", "--overwrite")
    assert ErfResult.load(out / "small_network").protocol == "official"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["replknet_31x"], "model='replknet_31x': expected a RepLKNet"),
        (["timm:no_such_net", "--no-pretrained"], "timm has no such model"),
        (["torchvision:no_such_net"], "torchvision has no such model"),
        (["tests.cli.test_erf:absent"], "cannot be imported"),
        (["tests.cli.test_erf:not_a_network"], "returned int"),
        ([MODEL, "--images", "/no/such/folder"], "no such folder"),
        ([MODEL, "--size", "12y"], "--size='12y'"),
        ([MODEL, "--protocol", "luo"], "--protocol='luo'"),
        ([MODEL, "--num-images", "0"], "--num-images=0"),
        ([MODEL, "--mean", "1,2"], "--mean='1,2'"),
        ([MODEL, "--std", "0,1,1"], "--std='0,1,1'"),
        ([MODEL, "--std", "nan,1,1"], "--std='nan,1,1'"),
        ([MODEL, "--mean", "inf,1,1"], "--mean='inf,1,1'"),
        ([MODEL, "--layers", "nope"], "--layers='nope'"),
        ([MODEL, "--checkpoint", "w.pth"], "no such file"),
        ([MODEL, MODEL], "not all different"),
        (["replknet_31b", "--kernel-sizes", "31,30,27,13"], "--kernel-sizes="),
        (["replknet_31b", "--kernel-sizes", "31,29"], "--kernel-sizes="),
        (["replknet_31b", "--kernel-sizes", "a"], "--kernel-sizes='a'"),
        (["replknet_31b", "--checkpoint", "/no/such.pth"], "no such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(arguments: list[str], message: str, tmp_path: Path, capsys: Any) -> None:
    small = () if "--size" in arguments or "--num-images" in arguments else ("--size", "32", "--num-images", "1")
    run("erf", *arguments, *small, "--out", tmp_path / "out", code=2)
    error = capsys.readouterr().err
    assert error.strip().splitlines()[-1].startswith("replknet: ")
    assert message in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["erf", MODEL], "Missing option '--out'"),
        (["erf", MODEL, "--out", "x", "--num-images", "many"], "--num-images"),
        (["erf", MODEL, "--out", "x", "--colour", "red"], "--colour"),
        (["shape"], "shape"),
    ],
)
def test_a_call_that_cannot_be_parsed_is_one_line_too(arguments: list[str], message: str, capsys: Any) -> None:
    run(*arguments, code=2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]


def shrinking_network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 2, 33), nn.ReLU())


def test_overwriting_with_a_command_that_cannot_run_keeps_the_old_results(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    run("erf", MODEL, "--size", "24", "--num-images", "1", "--out", out)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    for bad in ([MODEL, "--layers", "nope"], ["tests.cli.test_erf:shrinking_network"]):
        run("erf", *bad, "--size", "24", "--num-images", "1", "--out", out, "--overwrite", code=2)
        assert "Traceback" not in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


def test_an_interrupt_says_how_to_go_on(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("analysis.cli.erf.effective_receptive_field", interrupt)
    run("erf", MODEL, "--size", "24", "--num-images", "1", "--out", tmp_path / "out", code=130)
    assert "the same command resumes" in capsys.readouterr().err


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for target in (tmp_path, tmp_path / "thesis.tex"):
        run("erf", MODEL, "--size", "32", "--num-images", "1", "--out", target, "--overwrite", code=2)
        assert f"--out={str(target)!r}: " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    assert (tmp_path / "thesis.tex").read_text() == "years of work"


def test_untrained_copy_is_new_and_names_what_it_could_not_reset() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.scale = nn.Conv2d(3, 2, 3), nn.Parameter(torch.ones(2))

    loaded = analysis.LoadedModel(name="scaled", module=Scaled())
    copy = analysis.untrained_copy(loaded, seed=1)
    weights = [item.module.get_parameter("conv.weight") for item in (loaded, copy)]
    assert not torch.equal(*weights)
    assert copy.name == "scaled, untrained"
    assert "scale" in copy.notes[0]
    again = analysis.untrained_copy(loaded, seed=1).module.get_parameter("conv.weight")
    assert torch.equal(weights[1], again)


def test_a_small_kernel_that_does_not_fit_is_left_out_with_a_note() -> None:
    loaded = analysis.load_model("replknet_31b", kernel_sizes=(3, 3, 3, 3))
    assert "does not fit" in loaded.notes[0]
    assert not any("small_conv" in key for key in loaded.module.state_dict())
    kept = analysis.load_model("torchvision:mobilenet_v2", pretrained=False)
    assert kept.input_size == 224


def off() -> nn.Module:
    network = nn.Conv2d(3, 1, 3, padding=1)
    nn.init.constant_(network.bias, -99.0)  # type: ignore[arg-type]
    return nn.Sequential(network)


def test_what_is_undefined_is_not_printed_as_a_number(tmp_path: Path, capsys: Any) -> None:
    run("erf", "tests.cli.test_erf:off", "--size", "16", "--num-images", "1", "--out", tmp_path / "off")
    printed = capsys.readouterr()
    assert "nan" not in printed.out
    assert "does not react to any image" in printed.err
    run("erf", MODEL, "--size", "16", "--num-images", "1", "--out", tmp_path / "one")
    printed = capsys.readouterr()
    assert "nan" not in printed.out
    assert "raw map; theory" in printed.err  # no interval of one image


def test_names_are_drawn_as_they_are(tmp_path: Path) -> None:
    images = torch.rand(1, 3, 16, 16)
    results = [
        analysis.effective_receptive_field(small_network(), images, name=name) for name in (r"net $\bad$", "[b]")
    ]
    analysis.save_figure(analysis.erf_figure(results), "erf", lambda name: nullcontext(tmp_path / name))
    assert {path.name for path in tmp_path.iterdir()} == {"erf.png", "erf.pdf"}


def test_plots_show_the_data_of_the_result() -> None:
    images = torch.rand(2, 3, 32, 32)
    result = analysis.effective_receptive_field(small_network(), images)
    ax = plot_erf(result)
    shown = np.asarray(ax.images[0].get_array())
    np.testing.assert_allclose(shown, np.maximum(result.mean_map / result.mean_map.max(), 1e-4))
    assert ax.patches[0].get_width() == result.side(0.5)  # type: ignore[attr-defined]
    ax = plot_erf(analysis.effective_receptive_field(off(), images))
    assert not ax.patches
    assert "99 % in an undefined part" in ax.get_xlabel()
    line = plot_contribution([result]).lines[0]
    areas, shares = result.contribution_curve()
    np.testing.assert_allclose(np.asarray(line.get_xdata()), 100 * np.sqrt(areas))
    np.testing.assert_allclose(np.asarray(line.get_ydata()), 100 * shares)


def test_a_network_of_one_size_alone(tmp_path: Path, capsys: Any) -> None:
    """Its own size with a note where none was asked for; else one line, before anything is written."""
    vit, out, image = "timm:vit_tiny_patch16_224", tmp_path / "out", tmp_path / "grey.png"
    Image.new("RGB", (256, 256), "grey").save(image)
    run("erf", vit, "--no-pretrained", "--num-images", "1", "--out", out)
    error = capsys.readouterr().err
    assert "does not run at 1024 pixels; everything is measured at its own 224" in error
    table = pd.read_csv(out / "erf.csv")
    assert (table["height"][0], table["theoretical_height"][0]) == (224, float("inf"))
    for arguments in (("erf", vit, "--size", "256", "--out", out), ("predict", vit, "--size", "256", image)):
        run(*arguments, "--no-pretrained", code=2)
        lines = capsys.readouterr().err.strip().splitlines()
        assert "vit_tiny_patch16_224 (random weights) cannot take images of shape (1, 3, 256, 256)" in lines[-1]
        assert "Input height (256)" in lines[-1]
    run("erf", "timm:swin_tiny_patch4_window7_224", "--no-pretrained", "--size", "200", "--out", out, code=2)
    assert "cannot take images of shape (1, 3, 200, 200)" in capsys.readouterr().err


class Reordered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches, self.cls = nn.Conv2d(3, 4, 8, stride=8), nn.Parameter(torch.zeros(1, 5, 4))
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = tokens[:, torch.arange(tokens.shape[1], device=x.device)]
        out: Tensor = self.norm(torch.cat([self.cls, tokens], 1))
        return out.mean(1)


def reordered_network() -> nn.Module:
    return Reordered()


def test_the_grid_of_tokens_can_be_named(tmp_path: Path, capsys: Any) -> None:
    command = ("erf", "tests.cli.test_erf:reordered_network", "--size", "32", "--num-images", "1", "--layers", "norm")
    run(*command, "--out", tmp_path / "out", code=2)
    assert "nothing says how its output (1, 21, 4) lies on a 32x32 image" in capsys.readouterr().err
    run(*command, "--grid", "4x4", "--prefix-tokens", "5", "--out", tmp_path / "out")
    (saved,) = (tmp_path / "out").glob("*/result.json")
    result = ErfResult.load(saved.parent)
    assert (result.grid, result.theoretical) == ((4, 4), None)
    run(*command, "--grid", "5x5", "--out", tmp_path / "other", code=2)
    assert "--grid=5x5: an output of shape (1, 21, 4) has no such units" in capsys.readouterr().err
    run(*command, "--prefix-tokens", "5", "--out", tmp_path / "other", code=2)
    assert "--prefix-tokens=5: needs the grid" in capsys.readouterr().err


def test_untrained_networks_say_how_they_were_made(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "out"
    specs = ("timm:resnet18", "torchvision:resnet18")  # one name in two libraries
    run("erf", *specs, "--no-pretrained", "--size", "64", "--num-images", "2", "--out", out)
    error = " ".join(capsys.readouterr().err.split())
    methods = (out / "methods.txt").read_text()
    shut = "8 norms or layer scales let 0 % of their branches through, "
    ways = [f"own initialisation, seed 0, {scales}batch norms calibrated on 2 images" for scales in (shut, "")]
    for library, how in zip(("timm", "torchvision"), ways, strict=True):
        assert f"note: {library}:resnet18 (random weights): {how}" in error
        assert f"{library}:resnet18 (random weights) is not trained: {how}." in methods
    assert "8 norms or layer scales (layer1.0.bn2.weight" in error
    assert "let 0 % through; --unit-scales sets them to one" in error
    saved = [ErfResult.load(path.parent) for path in sorted(out.glob("*/result.json"))]
    assert [result.initial for result in saved] == ways
    run("erf", *specs, "--no-pretrained", "--size", "64", "--num-images", "2", "--unit-scales", "--out", out, code=2)
    assert "differs in models" in capsys.readouterr().err
