from pathlib import Path
from typing import Any

import pytest
import torch

import replknet
from replknet import PRESETS, CheckpointError
from tests.networks import TINY, same, tiny_model


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


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match=r"name='replknet_31x': expected one of replknet_31b"):
        replknet.create_model("replknet_31x")
    with pytest.raises(ValueError, match="kernels=3: no such setting"):
        replknet.create_model("replknet_31b", kernels=3)


def test_a_keyword_replaces_one_field_of_the_preset() -> None:
    with torch.device("meta"):
        model = replknet.create_model("replknet_31b", **{key: TINY[key] for key in ("channels",)})
    assert model.config.channels == TINY["channels"]
    assert model.config.layers == PRESETS["replknet_31b"].layers


def test_shipped_networks_need_no_network_connection() -> None:
    sizes = []
    for name in replknet.SHIPPED:
        model = replknet.create_model(name, pretrained=True)
        assert model.config.kernel_sizes == PRESETS[name].kernel_sizes
        again = replknet.create_model(name, pretrained=True).state_dict()
        assert all(torch.equal(value, again[key]) for key, value in model.state_dict().items())
        with replknet.shipped_weights(name) as file:
            sizes.append(file.stat().st_size)
    assert sum(sizes) < 4e6
    with pytest.raises(ValueError, match="expected None with pretrained=True"):
        replknet.create_model("replknet_nano_k3", pretrained=True, checkpoint="weights.pth")


@pytest.mark.parametrize("name", ["stages.0.blocks.0.large_kernel.lkb_origin.conv.weight", "head.bias"])
@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_numbers_that_are_no_weights_are_refused(tmp_path: Path, dtype: torch.dtype, name: str) -> None:
    path = tmp_path / "weights.pth"
    state = tiny_model().float().state_dict()
    torch.save(state | {name: state[name].to(dtype)}, path)
    said = f"1 of another type: {name} {str(dtype).removeprefix('torch.')} for float32"
    for load in (replknet.load_checkpoint, lambda path: replknet.create_model("replknet_31b", checkpoint=path, **TINY)):
        with pytest.raises(CheckpointError, match=said):
            load(path)
    assert said in replknet.inspect_checkpoint(path).problems[0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_floats_of_other_precisions_are_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    state = {key: value.to(dtype) for key, value in tiny_model().state_dict().items()}  # the counters, too
    torch.save(state, tmp_path / "weights.pth")
    loaded = replknet.load_checkpoint(tmp_path / "weights.pth").state_dict()
    assert all(torch.equal(loaded[key], value.to(loaded[key].dtype)) for key, value in state.items())
    assert {value.dtype for key, value in loaded.items() if key.endswith("num_batches_tracked")} == {torch.int64}
