"""TorchScript and programs of torch.export are code: what is loaded, and on which word."""

import io
import json
import pickle
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from analysis import effective_receptive_field, load_model
from analysis.models.files import load_file
from replknet.checkpoints.programs import program_in

pytestmark = pytest.mark.filterwarnings(
    "ignore:`torch.jit.*:FutureWarning", "ignore:.*TorchScript:DeprecationWarning", "ignore:.*torch.jit:FutureWarning"
)


@pytest.fixture(scope="module")
def network() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1)).eval()


@pytest.fixture(scope="module")
def programs(network: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("programs")
    images = torch.rand(2, 3, 32, 32)
    torch.jit.trace(network, images).save(str(folder / "traced.pt"))  # type: ignore[no-untyped-call]
    program = torch.export.export(
        network, (images,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC, 2: torch.export.Dim.DYNAMIC},)
    )
    torch.export.save(program, folder / "program.pt2")
    return folder


@pytest.mark.parametrize("name", ["traced.pt", "program.pt2"])
def test_a_program_that_is_trusted_is_the_network_that_it_was_made_of(
    network: nn.Module, programs: Path, name: str
) -> None:
    images = torch.rand(2, 3, 32, 32)
    loaded = load_model(str(programs / name), trust=True)
    assert loaded.name == Path(name).stem
    assert loaded.architecture == "Sequential" or name == "program.pt2"
    found: Any = effective_receptive_field(loaded.module, images)
    expected: Any = effective_receptive_field(network, images)
    np.testing.assert_allclose(found.mean_map, expected.mean_map, rtol=1e-5)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pt2", ".ts", ".onnx", ".safetensors", ".bin", ".png", ""])
@pytest.mark.parametrize(("name", "kind"), [("traced.pt", "TorchScript"), ("program.pt2", "torch.export")])
def test_a_program_is_known_by_its_content_and_refused(
    programs: Path, tmp_path: Path, name: str, kind: str, suffix: str
) -> None:
    path = tmp_path / f"other{suffix}"
    shutil.copy(programs / name, path)
    with pytest.raises(ValueError, match=rf"{kind}.*, which may run code and write files; .*trust=True"):
        load_model(str(path))
    assert load_file(path, trust=True).module(torch.rand(1, 3, 32, 32)).shape == (1, 2, 32, 32)
    for option in ("replknet_nano_k3", "replknet_31b"):
        with pytest.raises(ValueError, match=rf"{kind}.*, not weights alone"):
            load_model(option, checkpoint=path)


def test_weights_whose_file_is_called_like_a_part_of_a_program_are_weights(tmp_path: Path) -> None:
    for name in ("code.pth", "archive_format.pth", "constants.pkl.pth", "models.pth"):
        torch.save({"weight": torch.ones(3)}, tmp_path / name)
        assert program_in(tmp_path / name) == ""


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], tuple[str, bytes]]) -> None:
    """Copy an archive as PyTorch reads it, each member changed."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for item in old.infolist():
            new.writestr(*change(item.filename, old.read(item)))


def test_torchscript_is_known_by_all_that_pytorch_takes_it_for(programs: Path, tmp_path: Path) -> None:
    upper = tmp_path / "upper.pt"
    rewritten(programs / "traced.pt", upper, lambda name, data: (name.replace("code/", "CODE/"), data))
    assert program_in(upper) == "TorchScript program"
    only = tmp_path / "only.pt"
    with zipfile.ZipFile(only, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps({}))
        archive.writestr("a/constants.pkl", pickle.dumps(()))  # by which torch.load takes it for TorchScript
    assert program_in(only) == "TorchScript program"


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def hostile(program: Path, target: Path, where: str, marker: Path) -> None:
    """A program with a pickle that runs code in one of the places where torch.export.load unpickles."""
    saved = io.BytesIO()
    torch.save({"weight": Planted(marker)}, saved)
    member = {
        "weights": "data/weights/weight_0",
        "constants": "data/constants/tensor_0",
        "opaque objects": "data/constants/opaque_obj_0",
        "custom objects": "data/constants/custom_obj_0",
        "sample inputs": "data/sample_inputs/model.pt",
        "weights of former versions": "data/weights/model.pt",
        "constants of former versions": "data/constants/model.pt",
    }[where]
    content = pickle.dumps(Planted(marker)) if where == "opaque objects" else saved.getvalue()
    config = {"weights": "weights", "constants": "constants"}.get(where, "constants" if "objects" in where else "")

    def change(name: str, data: bytes) -> tuple[str, bytes]:
        if config and name.endswith(f"model_{config}_config.json"):
            entry = {"path_name": Path(member).name, "is_param": False, "use_pickle": True, "tensor_meta": None}
            data = json.dumps({"config": json.loads(data)["config"] | {"0.weight": entry}}).encode()
        return name, content if name.endswith(member) else data

    rewritten(program, target, change)
    with zipfile.ZipFile(target) as archive:
        names = archive.namelist()
    if not any(name.endswith(member) for name in names):
        with zipfile.ZipFile(target, "a") as archive:
            archive.writestr(f"{names[0].partition('/')[0]}/{member}", content)


PLACES = (
    "weights",
    "constants",
    "opaque objects",
    "custom objects",
    "sample inputs",
    "weights of former versions",
    "constants of former versions",
)


@pytest.mark.parametrize("where", PLACES)
def test_pickles_in_a_program_are_refused_by_name_even_if_it_is_trusted(
    programs: Path, tmp_path: Path, where: str
) -> None:
    marker, path = tmp_path / "ran", tmp_path / "hostile.pt2"
    hostile(programs / "program.pt2", path, where, marker)
    with pytest.raises(ValueError, match="may run code"):
        load_model(str(path))
    with pytest.raises(ValueError, match=r"its member 'data/.*' is a pickle that holds more than tensors"):
        load_model(str(path), trust=True)
    assert not marker.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("where", [place for place in PLACES if place != "custom objects"])
def test_those_pickles_are_what_pytorch_itself_would_run(programs: Path, tmp_path: Path, where: str) -> None:
    marker, path = tmp_path / "ran", tmp_path / "hostile.pt2"
    hostile(programs / "program.pt2", path, where, marker)
    try:
        torch.export.load(path)
    except Exception:  # whatever becomes of the program
        assert marker.exists()
    assert marker.exists()


def test_programs_of_former_versions_are_known_and_their_pickles_refused(tmp_path: Path) -> None:
    marker, path, saved = tmp_path / "ran", tmp_path / "former.pt2", io.BytesIO()
    torch.save((Planted(marker),), saved)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("version", "8.9")
        archive.writestr("serialized_exported_program.json", "{}")
        for part in ("state_dict", "constants", "example_inputs"):
            archive.writestr(f"serialized_{part}.pt", saved.getvalue())
    assert program_in(path) == "program of torch.export"
    with pytest.raises(ValueError, match=r"'serialized_state_dict\.pt' is a pickle that holds more than tensors"):
        load_model(str(path), trust=True)
    assert not marker.exists()


def test_compiled_code_in_a_program_is_refused(programs: Path, tmp_path: Path) -> None:
    path = tmp_path / "compiled.pt2"
    shutil.copy(programs / "program.pt2", path)
    with zipfile.ZipFile(path, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/data/aotinductor/model/code.so", b"\x7fELF")
    with pytest.raises(ValueError, match=r"its member 'data/aotinductor/model/code.so' is compiled code"):
        load_model(str(path), trust=True)


def test_what_is_no_program_is_no_program(tmp_path: Path) -> None:
    path = tmp_path / "broken.pt2"
    path.write_text("nothing")
    with pytest.raises(ValueError, match="not a readable weight file"):
        load_model(str(path), trust=True)


@pytest.mark.parametrize("text", ["", "[]", "1", "{", '{"mean": 1}', "[" * 100_000])
def test_what_a_program_says_of_its_preprocessing_is_checked(programs: Path, tmp_path: Path, text: str) -> None:
    path = tmp_path / "told.pt2"
    shutil.copy(programs / "program.pt2", path)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(f"{archive.namelist()[0].partition('/')[0]}/extra/replknet.json", text)
    if not text:
        assert "names no preprocessing" in load_model(str(path), trust=True).notes[0]
        return
    with pytest.raises(ValueError, match="its description does not fit"):
        load_model(str(path), trust=True)
