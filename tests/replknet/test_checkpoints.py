import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import replknet
from replknet import CheckpointError, checkpoints
from tests.conftest import Reference
from tests.networks import TINY, tiny_model


def same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return list(actual) == list(expected) and all(torch.equal(actual[key], expected[key]) for key in expected)


@pytest.mark.parametrize("wrap", ["flat", "model", "state_dict", "module", "compiled", "ema", "mm_ema", "argparse"])
def test_every_wrapping_gives_the_official_keys(tmp_path: Path, wrap: str) -> None:
    state = dict(tiny_model().state_dict())
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    content: dict[str, Any] = {
        "flat": state,
        "model": {"model": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        "state_dict": {"state_dict": state, "meta": {"seed": 1}},
        "module": {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        "compiled": {f"_orig_mod.module.{key}": value for key, value in state.items()},
        "ema": {"model": other, "model_ema": state},
        "mm_ema": {
            "state_dict": other,
            "ema_state_dict": {
                "steps": torch.tensor(5),
                **{f"module.{k}": v for k, v in replknet.convert_state_dict(state, to="mmpretrain").items()},
            },
        },
        "argparse": {"model": state, "args": argparse.Namespace(lr=0.1)},
    }[wrap]
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    assert same(replknet.load_state_dict(path), state)
    if "ema" in wrap:
        assert same(checkpoints.load_state_dict(path, use_ema=False), other)


def test_safetensors_whatever_the_suffix(tmp_path: Path) -> None:
    state = dict(tiny_model().state_dict())
    for name in ("weights.safetensors", "weights.bin"):
        save_file(state, tmp_path / name)
        loaded = replknet.load_state_dict(tmp_path / name)
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())


@pytest.mark.parametrize("level", [None, "kernels", "full"])
def test_every_form_can_be_saved_and_loaded_again(tmp_path: Path, level: Any) -> None:
    model = tiny_model()
    if level:
        replknet.reparameterize(model, level=level, inplace=True)
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    loaded = replknet.create_model("replknet_31b", checkpoint=tmp_path / "weights.pth", **TINY).double().eval()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    assert same(dict(loaded.double().state_dict()), {k: v.float().to(v.dtype) for k, v in model.state_dict().items()})
    assert loaded(images).shape == (1, 10)


@pytest.mark.parametrize("file", ["tiny_official_flat", "tiny_official_merged"])
def test_official_to_mmpretrain_and_back_is_exact(reference: Reference, file: str) -> None:
    state = replknet.load_state_dict(reference.path / f"{file}.pth")
    renamed = replknet.convert_state_dict(state, to="mmpretrain")
    assert all(key.startswith(("backbone.", "head.fc.")) for key in renamed)
    assert same(replknet.convert_state_dict(renamed, to="official"), state)


@pytest.mark.parametrize("file", ["tiny_mmpretrain", "tiny_mmpretrain_deploy"])
def test_mmpretrain_to_official_and_back_is_exact(reference: Reference, file: str) -> None:
    raw = torch.load(reference.path / f"{file}.pth", weights_only=True)["state_dict"]
    state = replknet.convert_state_dict(raw, to="official")
    assert "norm.weight" in state
    assert "head.weight" in state
    assert same(replknet.convert_state_dict(state, to="mmpretrain"), dict(raw))


def test_intermediate_norms_keep_their_names() -> None:
    backbone = tiny_model(out_indices=(0, 3), norm_intermediate_features=True, num_classes=0).state_dict()
    assert same(replknet.convert_state_dict(backbone, to="official"), dict(backbone))
    renamed = replknet.convert_state_dict(backbone, to="mmpretrain")
    assert same(replknet.convert_state_dict(renamed, to="official"), dict(backbone))
    both = tiny_model(norm_intermediate_features=True).state_dict()
    with pytest.raises(ValueError, match="to='mmpretrain'"):
        replknet.convert_state_dict(both, to="mmpretrain")
    with pytest.raises(ValueError, match="to='timm'"):
        replknet.convert_state_dict(both, to="timm")  # type: ignore[arg-type]


def test_22k_heads(tmp_path: Path) -> None:
    state = {
        key.replace("head.", "head.cls_22k."): value for key, value in tiny_model(num_classes=50).state_dict().items()
    }
    torch.save({"model": state}, tmp_path / "weights.pth")
    assert replknet.create_model(
        "replknet_31b", checkpoint=tmp_path / "weights.pth", **(TINY | {"num_classes": 50})
    ).head.weight.shape == (50, 32)


def test_a_head_of_another_size_says_how_to_ask_for_it(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(tiny_model().state_dict(), path)
    with pytest.raises(CheckpointError, match=r"10 classes, the model's 4; pass num_classes=10"):
        replknet.create_model("replknet_31b", checkpoint=path, **(TINY | {"num_classes": 4}))
    headless = replknet.create_model("replknet_31b", checkpoint=path, **(TINY | {"num_classes": 0}))
    headless.reset_classifier(4)
    assert headless(torch.zeros(1, 3, 64, 64)).shape == (1, 4)
    torch.save(headless.state_dict() | {"norm.bias": torch.zeros(32)}, path)
    maps = replknet.create_model("replknet_31b", checkpoint=path, **(TINY | {"num_classes": 0, "out_indices": (0,)}))
    assert not any(key.startswith("norm") for key in maps.state_dict())


def test_a_file_of_another_architecture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(tiny_model(kernel_sizes=(9, 9, 9, 9), layers=(2, 1, 1, 1)).state_dict(), path)
    with pytest.raises(CheckpointError) as caught:
        replknet.create_model("replknet_31b", checkpoint=path, **TINY)
    message = str(caught.value)
    assert "38 missing: stages.2.blocks.2.pw1.conv.weight" in message
    assert "and 28 more; " in message, message
    assert "unexpected: stages.0.blocks.2.pw1.conv.weight" in message
    assert "stages.0.blocks.0.large_kernel.lkb_origin.conv.weight [8, 1, 9, 9] for [8, 1, 13, 13]" in message
    assert "kernel_sizes=(9, 9, 9, 9), small kernel 5, num_classes=10" in message
    with torch.device("meta"):
        published = replknet.create_model("replknet_31l").state_dict()
    assert "looks like replknet_31l" in checkpoints.describe(published)
    assert "does not look like a RepLKNet" in checkpoints.describe({"conv1.weight": torch.zeros(1)})


@pytest.mark.parametrize("overrides", [{}, {"small_kernel": None, "dw_ratio": 1.5, "num_classes": 0}])
def test_the_architecture_is_inferred_from_the_shapes(overrides: dict[str, Any]) -> None:
    model = tiny_model(**overrides)
    assert checkpoints.infer_config(model.state_dict()) == model.config


@pytest.mark.parametrize("content", ["text", "pickle", "number", "empty"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "weights.pth"
    if content == "text":
        path.write_text("<html>not found</html>")
    else:
        torch.save({"pickle": {"model": Path}, "number": {"epoch": 3}, "empty": {}}[content], path)
    with pytest.raises(CheckpointError, match="checkpoint="):
        replknet.load_state_dict(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        replknet.load_state_dict(tmp_path / "absent.pth")


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    torch.save({"model": Attack()}, path)
    with pytest.raises(CheckpointError, match="not a readable weight file"):
        replknet.load_state_dict(path)
    assert not marker.exists()
