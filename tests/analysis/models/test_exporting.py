import json
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import analysis
from analysis.models.exporting import export_model, format_of
from tests.networks import tiny_model

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit.*:FutureWarning")


@pytest.fixture(scope="module")
def network() -> analysis.LoadedModel:
    return analysis.LoadedModel(name="tiny", module=tiny_model().float(), input_size=64)


def test_a_pruned_network_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    pruned = analysis.LoadedModel(name="pruned", module=tiny_model().float())
    prune.l1_unstructured(pruned.module.get_submodule("head"), "weight", amount=0.5)  # type: ignore[no-untyped-call]
    with pytest.raises(ValueError, match="parametrized or pruned; make it a plain parameter first"):
        export_model(pruned, tmp_path / "network.pt", format="torchscript")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".onnx", ".pt", ".pt2"])
def test_an_exported_network_gives_the_same_outputs_at_other_sizes(
    network: analysis.LoadedModel, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"network{suffix}"
    report = export_model(network, path, format=format_of(path))
    small = (1, 3, 32, 32)  # the last map has one position there, for which torch.export makes a program of its own
    shapes = [(2, 3, 64, 64), (1, 3, 64, 64), small, (1, 3, 63, 65), (1, 3, 128, 128), (3, 3, 96, 128)]
    assert report.refused == ((small,) if suffix == ".pt2" else ())
    assert report.shapes == tuple(shape for shape in shapes if shape not in report.refused)
    assert report.difference < 1e-5
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
    images = torch.rand(1, 3, 80, 64)
    with torch.no_grad():
        expected: Any = network.module(images)
        if suffix == ".onnx":
            onnx, onnxruntime = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
            nodes = [node.op_type for node in onnx.load(path).graph.node]
            assert "BatchNormalization" not in nodes
            assert nodes.count("Conv") > 10
            found = torch.from_numpy(onnxruntime.InferenceSession(path).run(None, {"images": images.numpy()})[0])
        else:
            found = analysis.load_model(str(path), trust=True).module(images)
    assert torch.allclose(found, expected, atol=1e-5)
    # The network itself is as it was.
    assert any(isinstance(module, nn.BatchNorm2d) for module in network.module.modules())
    with pytest.raises(FileExistsError, match="exists already"):
        export_model(network, path, format=format_of(path))


@pytest.mark.parametrize("suffix", [".onnx", ".pt", ".pt2"])
def test_the_shipped_networks_are_exported_with_their_preprocessing(tmp_path: Path, suffix: str) -> None:
    loaded = analysis.load_model("replknet_nano_k31")
    path = tmp_path / f"nano{suffix}"
    assert export_model(loaded, path, format=format_of(path)).difference < 1e-4
    if suffix == ".onnx":
        with pytest.raises(ValueError, match="ONNX files are run by onnxruntime"):
            analysis.load_model(str(path))
    else:
        again = analysis.load_model(str(path), trust=True)
        assert (again.classes, again.input_size, again.mean, again.crop) == (loaded.classes, 64, loaded.mean, 1.0)


def tried_in(path: Path) -> Any:
    """What the file itself says."""
    if path.suffix == ".onnx":
        (text,) = [item.value for item in pytest.importorskip("onnx").load(path).metadata_props]
    else:
        with zipfile.ZipFile(path) as archive:
            (name,) = [name for name in archive.namelist() if name.endswith("replknet.json")]
            text = archive.read(name)
    return json.loads(text)["tried"]


@pytest.mark.parametrize("suffix", [".onnx", ".pt", ".pt2"])
def test_a_network_of_32_pixels_says_which_sizes_its_file_takes(
    network: analysis.LoadedModel, tmp_path: Path, suffix: str
) -> None:
    path = tmp_path / f"network{suffix}"
    report = export_model(replace(network, input_size=32), path, format=format_of(path))
    assert report.shapes[:2] == ((2, 3, 32, 32), (1, 3, 32, 32))
    assert ((1, 3, 64, 64) in report.refused) == (suffix == ".pt2")
    tried = tried_in(path)
    assert tried == {
        "engine": report.engine,
        "taken": [list(shape) for shape in report.shapes],
        "refused": [list(shape) for shape in report.refused],
    }
    if suffix != ".onnx":  # what is said holds
        module = analysis.load_model(str(path), trust=True).module
        for shape in report.shapes:
            assert module(torch.rand(shape)).isfinite().all()
        for shape in report.refused:
            with pytest.raises(Exception, match="shape"):
                module(torch.rand(shape))


@pytest.mark.parametrize("suffix", [".onnx", ".pt", ".pt2"])
def test_a_network_of_one_size_is_exported_for_it(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    fixed = nn.Sequential(nn.Conv2d(3, 4, 4, 4), nn.Flatten(), nn.Linear(4 * 64, 5))
    path = tmp_path / f"fixed{suffix}"
    report = export_model(analysis.LoadedModel(name="f", module=fixed, input_size=32), path, format=format_of(path))
    assert report.shapes == ((2, 3, 32, 32), (1, 3, 32, 32))  # at others the network itself has no answer
    assert report.refused == ()


class OffWhen(nn.Module):
    """Not finite for images of a side."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.side = side

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3)) / (x.shape[2] - self.side)


class Sized(nn.Module):
    """A tracer keeps the side as a number, and its file has another answer at other sides."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.sum((2, 3)) / float(x.shape[2])


@pytest.mark.parametrize("suffix", [".onnx", ".pt", ".pt2"])
@pytest.mark.parametrize("side", [32, 64])
def test_what_is_not_finite_is_never_verified(tmp_path: Path, suffix: str, side: int) -> None:
    loaded = analysis.LoadedModel(name="off", module=OffWhen(side), input_size=32)
    path = tmp_path / f"off{suffix}"
    with pytest.raises(ValueError, match=rf"off as .*\({'2' if side == 32 else '.'}, 3, {side}, .* not finite"):
        export_model(loaded, path, format=format_of(path))
    assert list(tmp_path.iterdir()) == []


def test_a_file_with_other_answers_at_another_size_is_refused(tmp_path: Path) -> None:
    loaded = analysis.LoadedModel(name="sized", module=Sized(), input_size=32)
    with pytest.raises(ValueError, match=r"differ by .* for images of shape \(1, 3, 16, 16\)"):
        export_model(loaded, tmp_path / "s.pt", format="torchscript")
    assert list(tmp_path.iterdir()) == []


def test_what_an_exported_file_does_not_keep_is_said(tmp_path: Path) -> None:
    export_model(analysis.load_model("timm:test_resnet", pretrained=False), tmp_path / "t.pt2", format="export")
    assert "not the library's own resizing" in analysis.load_model(str(tmp_path / "t.pt2"), trust=True).notes[0]


def test_a_missing_runtime_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match=r"format='onnx': needs onnxruntime \(extra 'export'\)"):
        export_model(analysis.load_model("replknet_nano_k3"), tmp_path / "n.onnx", format="onnx")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_exported_leaves_nothing(tmp_path: Path) -> None:
    class Undecided(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.sum((2, 3)) if x.sum() > 0 else x.mean((2, 3))

    loaded = analysis.LoadedModel(name="undecided", module=Undecided(), input_size=32)
    with pytest.raises(ValueError, match="undecided cannot be exported as export"):
        export_model(loaded, tmp_path / "u.pt2", format="export")
    with pytest.raises(ValueError, match=r"ends like a file of format onnx, not export"):
        format_of("a.onnx", "export")
    with pytest.raises(ValueError, match="format='tflite': expected one of onnx, torchscript, export"):
        format_of("a.onnx", "tflite")
    with pytest.raises(ValueError, match=r"expected a name that ends in \.onnx, \.pt, \.ts, \.pt2"):
        format_of("a.tflite")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".pt", ".pt2"])
def test_an_exported_network_without_a_head_is_still_no_classifier(tmp_path: Path, suffix: str) -> None:
    headless = analysis.LoadedModel(name="tiny", module=tiny_model(num_classes=0).float(), input_size=64)
    path = tmp_path / f"network{suffix}"
    export_model(headless, path, format=format_of(path))
    with pytest.raises(ValueError, match=r"features of each image and no class scores \(its num_classes is 0\)"):
        analysis.predict(analysis.load_model(str(path), trust=True), torch.zeros(1, 3, 64, 64))
