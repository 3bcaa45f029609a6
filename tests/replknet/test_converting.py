from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import replknet
from analysis.models.files import save_network
from analysis.models.loading import load_model
from replknet import CheckpointError
from tests.networks import tiny_model


@pytest.fixture
def source(tmp_path: Path) -> Path:
    torch.save(tiny_model().float().state_dict(), tmp_path / "source.pth")
    return tmp_path / "source.pth"


def outputs(path: Path) -> torch.Tensor:
    model = replknet.load_checkpoint(path).eval()
    with torch.no_grad():
        found = model(torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1)))
    assert isinstance(found, torch.Tensor)
    return found


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("to", ["official", "mmpretrain"])
def test_there_and_back_gives_the_same_tensors(source: Path, tmp_path: Path, suffix: str, to: Any) -> None:
    there, back = tmp_path / f"there{suffix}", tmp_path / "back.pth"
    assert replknet.convert_checkpoint(source, there, to=to).difference == 0
    info = replknet.inspect_checkpoint(there)
    assert info.naming == to
    assert info.format == ("safetensors" if suffix == ".safetensors" else "torch")
    assert info.wrapper == ("state_dict" if to == "mmpretrain" and suffix != ".safetensors" else "")
    replknet.convert_checkpoint(there, back)
    before, after = torch.load(source), torch.load(back)
    assert set(before) == set(after)
    assert all(torch.equal(before[key], after[key]) for key in before)


@pytest.mark.parametrize(("level", "form"), [("kernels", "merged"), ("full", "folded")])
def test_a_reparameterised_file_gives_the_same_outputs(source: Path, tmp_path: Path, level: Any, form: str) -> None:
    merged = tmp_path / "merged.safetensors"
    done = replknet.convert_checkpoint(source, merged, level=level)
    assert 0 < done.difference < 1e-5
    assert done.num_parameters == replknet.inspect_checkpoint(merged).num_parameters < done.num_parameters_before
    assert replknet.inspect_checkpoint(merged).form == form
    assert torch.allclose(outputs(merged), outputs(source), rtol=1e-4, atol=1e-5)
    # Once more changes nothing, and neither does another format.
    again = tmp_path / "again.pth"
    replknet.convert_checkpoint(merged, again, level=level)
    assert torch.equal(outputs(again), outputs(merged))


def test_a_merged_file_is_what_the_official_code_loads(reference: Any, tmp_path: Path) -> None:
    merged = tmp_path / "merged.pth"
    replknet.convert_checkpoint(reference.path / "tiny_official_flat.pth", merged, level="kernels")
    expected = replknet.load_state_dict(reference.path / "tiny_official_merged.pth")
    found = torch.load(merged)
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert torch.allclose(found[key], value, rtol=1e-5, atol=1e-6), key


def test_a_study_file_keeps_its_description(tmp_path: Path) -> None:
    model = tiny_model(shortcut=False).float()
    path, merged = tmp_path / "network.safetensors", tmp_path / "merged.safetensors"
    save_network(path, model, classes=[f"c{i}" for i in range(10)], input_size=48)
    replknet.convert_checkpoint(path, merged, level="full")
    loaded = load_model(str(merged))
    assert loaded.classes[3] == "c3"
    assert loaded.input_size == 48
    assert not loaded.module.config.shortcut  # type: ignore[union-attr]
    images = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(loaded.module(images), model.eval()(images), atol=1e-5)
    # The shapes do not tell that there is no shortcut, so no other format may drop the description.
    with pytest.raises(CheckpointError, match=r"differs by .*an architecture that the shapes do not tell"):
        replknet.convert_checkpoint(path, tmp_path / "lost.pth")
    assert not (tmp_path / "lost.pth").exists()


def test_nothing_is_overwritten_or_left_half_written(source: Path, tmp_path: Path) -> None:
    target = tmp_path / "target.pth"
    target.write_text("mine")
    with pytest.raises(FileExistsError, match="exists already"):
        replknet.convert_checkpoint(source, target)
    assert target.read_text() == "mine"
    with pytest.raises(ValueError, match="no place for folded batch norms"):
        replknet.convert_checkpoint(source, target, to="mmpretrain", level="full", overwrite=True)
    assert target.read_text() == "mine"
    with pytest.raises(ValueError, match=r"expected a name that ends in \.safetensors, \.pth, \.pt"):
        replknet.convert_checkpoint(source, tmp_path / "target.onnx")
    replknet.convert_checkpoint(source, target, overwrite=True)
    assert torch.equal(outputs(target), outputs(source))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source.pth", "target.pth"]


def test_info_names_what_is_wrong(tmp_path: Path) -> None:
    state = tiny_model().float().state_dict()
    torch.save({"state_dict": {f"module.{key}": value for key, value in state.items()}}, tmp_path / "good.pth")
    good = replknet.inspect_checkpoint(tmp_path / "good.pth")
    assert good.problems == ()
    assert (good.architecture, good.form, good.naming, good.wrapper) == (
        "a RepLKNet with layers=(1, 1, 2, 1), channels=(8, 16, 24, 32)",
        "training",
        "official",
        "state_dict",
    )
    parameters = sum(parameter.numel() for parameter in tiny_model().parameters())
    assert good.num_parameters == parameters
    assert good.dtypes == ("float32", "int64")
    assert good.published is None

    state["norm.weight"][0] = float("nan")
    state["stem.1.bn.running_var"][0] = -1
    del state["norm.bias"]
    save_file(state, tmp_path / "bad.safetensors")
    problems = " ".join(replknet.inspect_checkpoint(tmp_path / "bad.safetensors").problems)
    assert "NaN in 1 of" in problems
    assert "norm.weight" in problems
    assert "negative variances in 1 batch norms, the first is stem.1.bn.running_var" in problems
    assert "1 missing: norm.bias" in problems

    save_file({"fc.weight": torch.ones(2)}, tmp_path / "other.safetensors")
    other = replknet.inspect_checkpoint(tmp_path / "other.safetensors")
    assert other.config is None
    assert "not a RepLKNet" in other.problems[0]
    with pytest.raises(CheckpointError, match="does not look like a RepLKNet"):
        replknet.load_checkpoint(tmp_path / "other.safetensors")


@pytest.mark.parametrize(("number", "reason"), [(float("nan"), "NaN in 1 of"), (1e38, "its numbers are too large")])
def test_outputs_that_cannot_be_compared(tmp_path: Path, number: float, reason: str) -> None:
    state = tiny_model().float().state_dict()
    state["norm.weight"][:] = number
    torch.save(state, tmp_path / "source.pth")
    with pytest.raises(CheckpointError, match=rf"its own outputs for a random image are not finite \({reason}"):
        replknet.convert_checkpoint(tmp_path / "source.pth", tmp_path / "converted.pth")
    assert [path.name for path in tmp_path.iterdir()] == ["source.pth"]
