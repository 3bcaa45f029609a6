"""Layers of networks whose receptive fields are known: from Araujo et al. 2019, and by hand."""

import pytest
import torch
from torch import nn

from analysis.models.inspecting import describe_model, field_text, stride_text
from analysis.models.layers import ForwardError
from analysis.models.loaded import LoadedModel
from analysis.models.loading import load_model


def small() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.AdaptiveAvgPool2d(1),
        nn.Flatten(), nn.Linear(6, 5),
    )  # fmt: skip


def test_by_hand() -> None:
    module = small().train()
    found = describe_model(module, (32, 32))
    layers = {layer.name: layer for layer in found.layers}
    assert list(layers) == ["0", "1", "2", "3", "4", "5", "6"]
    assert [layers[name].shape for name in ("0", "2", "3", "6")] == [
        (1, 4, 32, 32), (1, 4, 16, 16), (1, 6, 14, 14), (1, 5),
    ]  # fmt: skip
    # 3; a pool of 2 adds 1; a kernel of 3 at stride 2 adds 4.
    assert [field_text(layers[name]) for name in ("0", "1", "2", "3", "6")] == ["3", "3", "4", "8", "-"]
    assert [stride_text(layers[name]) for name in ("0", "2", "3", "6")] == ["1", "2", "2", "-"]
    assert (found.last, found.num_outputs, found.free_size) == ("3", 5, True)
    assert found.num_parameters == 3 * 4 * 9 + 4 + 4 * 6 * 9 + 6 + 6 * 5 + 5
    assert found.num_macs == 3 * 4 * 9 * 32**2 + 4 * 6 * 9 * 14**2 + 6 * 5
    assert module.training


def test_published_fields() -> None:
    """ResNet-18 and VGG-16: 435 and 212 pixels (the stride of VGG's last convolution is 16)."""
    resnet = {layer.name: layer for layer in describe_model(fresh("timm:resnet18"), (64, 64)).layers}
    assert (field_text(resnet["layer4"]), stride_text(resnet["layer4"])) == ("435", "32")
    assert [field_text(resnet[f"stage {number}"]) for number in range(5)] == ["7", "43", "99", "211", "435"]
    vgg = {layer.name: layer for layer in describe_model(fresh("torchvision:vgg16"), (64, 64)).layers}
    assert (field_text(vgg["features.29"]), field_text(vgg["features"])) == ("196", "212")


def fresh(spec: str) -> LoadedModel:
    return load_model(spec, pretrained=False)


def test_a_size_that_is_fixed() -> None:
    """By a layer that counts its inputs; and an image that the network refuses is an error, not a description."""
    module = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(2 * 62 * 62, 3))
    found = describe_model(LoadedModel(name="net", module=module, input_size=64))
    assert not found.free_size
    assert set(found.taken) == {32, 96, 128}
    with pytest.raises(ForwardError, match="net cannot take images of shape"):
        describe_model(LoadedModel(name="net", module=module), (48, 48))


def test_stages_are_those_of_the_features() -> None:
    from analysis import extract_features

    loaded = load_model("replknet_nano_k3")
    found = describe_model(loaded)
    shapes = [layer.shape for layer in found.layers if not layer.kind]
    arrays = extract_features(loaded, torch.zeros(1, 3, 64, 64), [0, 1, 2, 3]).arrays
    assert shapes == [arrays[f"stage{number}"].shape for number in range(4)]
    assert (found.num_outputs, found.image_size) == (12, (64, 64))


def test_features_have_no_classes() -> None:
    found = describe_model(nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU()), (32, 32))
    assert (found.num_outputs, found.last) == (None, "")  # the network itself
