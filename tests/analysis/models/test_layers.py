"""A layer's output is caught as the layer gave it, whatever the forward pass does to it afterwards."""

import copy
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

import analysis
import replknet
from analysis import ForwardError, LayerError, effective_receptive_field, extract_features, theoretical_receptive_field
from analysis.models.layers import fast_layout, layer_output, run


class Written(nn.Module):
    """`layer` is followed by something that writes into its output or its input."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.wide = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 9, padding=4)
        self.layer: nn.Module = nn.BatchNorm2d(4)
        if how == "the layer itself":
            self.layer = nn.ReLU(inplace=True)
        elif how == "its input":
            self.layer = nn.Identity()
        elif how == "one of several":
            self.layer = Pair()

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        z = self.layer(y)
        if self.how == "its input":
            return y.mul_(0).add_(self.wide(x)) + z
        if self.how == "one of several":
            z[1].zero_()
            return torch.relu_(z[0])
        if self.how == "a view":
            z[:, :2] += self.wide(x)[:, :2]
        elif self.how == "a sum":
            z += self.wide(x)
        elif self.how == "twice":
            z.relu_().add_(self.wide(x)).sigmoid_()
        else:
            torch.relu_(z)
        return z


class Pair(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 1, x * 2


class UpTo(nn.Module):
    """The part of `Written` up to the layer, out of place."""

    def __init__(self, whole: Written) -> None:
        super().__init__()
        self.conv, self.layer = copy.deepcopy(whole.conv), copy.deepcopy(whole.layer)
        if isinstance(self.layer, nn.ReLU):
            self.layer.inplace = False

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(self.conv(x))
        return out


@pytest.mark.parametrize("how", ["a sum", "a view", "an activation", "twice", "the layer itself", "its input"])
def test_every_capture_sees_the_layers_own_output(how: str) -> None:
    torch.manual_seed(0)
    whole = Written(how).eval()
    images = torch.randn(2, 3, 20, 20)
    expected = UpTo(whole).eval()
    features = extract_features(whole, images, ["layer"]).arrays["layer"]
    np.testing.assert_allclose(features, expected(images).detach().numpy(), rtol=1e-5, atol=1e-6)
    found = effective_receptive_field(whole, images, layer="layer", output_rule="identity")
    alone = effective_receptive_field(expected, images, output_rule="identity", layer="layer")
    np.testing.assert_allclose(found.mean_map, alone.mean_map, rtol=1e-5, atol=1e-9)
    # The wide convolution is in what is written, not in the layer.
    assert theoretical_receptive_field(whole, (20, 20), layer="layer").size == (3, 3)


def test_one_of_several_outputs_that_is_written_later() -> None:
    whole, images = Written("one of several").eval(), torch.randn(1, 3, 8, 8)
    first, second = layer_output(whole, images, "layer")
    torch.testing.assert_close(second, 2 * whole.conv(images))
    torch.testing.assert_close(first, whole.conv(images))


def test_batch_norms_of_a_resnet() -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet18").eval()
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
    plain = copy.deepcopy(model)
    for layer in plain.modules():
        if hasattr(layer, "inplace"):
            layer.inplace = False
    images = torch.randn(1, 3, 64, 64)
    stem = plain.bn1(plain.conv1(images))
    found = extract_features(model, images, ["bn1", "layer2.0.bn2"]).arrays
    assert found["bn1"].min() < -1
    np.testing.assert_allclose(found["bn1"], stem.detach().numpy(), rtol=1e-5, atol=1e-5)
    block = plain.layer2[0]
    inner = plain.layer1(plain.maxpool(plain.act1(stem)))
    inner = block.bn2(block.conv2(block.act1(block.bn1(block.conv1(inner)))))
    np.testing.assert_allclose(found["layer2.0.bn2"], inner.detach().numpy(), rtol=1e-4, atol=1e-5)
    # 7x7/2, pooling 3x3/2, four 3x3 at stride 4, then 3x3/2 and 3x3: without the shortcut around the last two.
    expected = 7 + 2 * 2 + 4 * 2 * 4 + 2 * 4 + 2 * 8
    assert theoretical_receptive_field(model, (64, 64), layer="layer2.0.bn2").size == (expected, expected)


class Fails(nn.Module):
    """Networks whose own code fails in all the ways of which users tell."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how, self.conv = how, nn.Conv2d(3, 4, 3)
        if how == "a lazy layer":
            self.lazy = nn.LazyLinear(4)

    def forward(self, x: Tensor, *other: Any) -> Any:
        if self.how == "an assertion":
            assert x.shape[-1] == 7, "Input height (16) doesn't match model (7)"
        if self.how == "an exit":
            raise SystemExit(7)
        if self.how == "a key":
            return {"a": x}["b"]
        if self.how == "two inputs":
            return x + other[0]
        if self.how == "an index":
            return [self.conv][len(x)](x)
        if self.how == "a lazy layer":
            return self.lazy(self.conv(x).flatten(1))
        if self.how == "no gradient":
            with torch.no_grad():
                return self.conv(x)
        return self.conv(x)


FAILURES = ["an assertion", "a key", "an exit", "two inputs", "an index", "a lazy layer"]


@pytest.mark.parametrize("how", [*FAILURES, "no gradient"])
def test_what_fails_in_a_model_names_it_in_one_line(how: str) -> None:
    model, images = Fails(how), torch.rand(1, 3, 16, 16)
    with pytest.raises(ForwardError, match="Fails") as caught:
        effective_receptive_field(model, images)
    assert "\n" not in str(caught.value)
    if how in FAILURES:
        for measured in (extract_features, analysis.predict):
            with pytest.raises(ForwardError, match="Fails"):
                measured(model, images)
        with pytest.raises(ForwardError, match="Fails"):
            analysis.num_macs(model, (16, 16))


def test_weights_of_inference_mode_and_complex_ones() -> None:
    with torch.inference_mode():
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    images = torch.rand(1, 3, 16, 16)
    with pytest.raises(ForwardError, match="Inference tensors cannot be saved for backward"):
        effective_receptive_field(model, images)
    assert extract_features(model, images, ["0"]).arrays["0"].shape == (1, 4, 14, 14)

    class Filtered(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.filter = nn.Parameter(torch.ones(3, 8, 5, dtype=torch.complex64))
            self.conv = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.conv(x + torch.fft.irfft2(torch.fft.rfft2(x) * self.filter))
            return out

    assert theoretical_receptive_field(Filtered(), (8, 8)).size == (float("inf"), float("inf"))
    assert effective_receptive_field(Filtered(), torch.rand(1, 3, 8, 8)).grid == (8, 8)


def test_what_enters_a_head_that_is_called_by_keyword() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Any:
            return self.fc(input=x.mean((2, 3)))

    images = torch.rand(2, 3, 8, 8)
    np.testing.assert_allclose(extract_features(Named(), images).arrays["pooled"], images.mean((2, 3)), rtol=1e-6)


def test_a_layer_that_is_not_run_or_gives_no_map() -> None:
    model = nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3), "spare": nn.Conv2d(3, 4, 3)})
    model.forward = lambda x: model["conv"](x)
    with pytest.raises(LayerError, match="layer='spare': the forward pass does not run this module"):
        theoretical_receptive_field(model, (16, 16), layer="spare")
    with pytest.raises(LayerError, match="no such module"):
        effective_receptive_field(model, torch.rand(1, 3, 16, 16), layer="nope")


def test_a_wrong_number_of_channels_is_one_line() -> None:
    with pytest.raises(ForwardError, match=r"Conv2d cannot take images of shape \(1, 4, 16, 16\)"):
        run(nn.Conv2d(3, 4, 3), torch.rand(1, 4, 16, 16))


@pytest.mark.parametrize(
    ("layer", "on_gpu"),
    [
        (nn.Conv2d(8, 8, 31, padding=15, groups=8), torch.contiguous_format),
        (nn.Conv2d(8, 16, (5, 51), groups=8), torch.contiguous_format),
        (nn.Conv2d(8, 8, 7, padding=3, groups=8), torch.channels_last),
        (nn.Conv2d(8, 8, 31, groups=4), torch.channels_last),
        (nn.Conv2d(1, 8, 31), torch.channels_last),
        (replknet.DepthwiseConv2d(8, 31), torch.channels_last),
    ],
    ids=str,
)
def test_channels_last_but_where_a_gpu_would_be_slow(layer: nn.Module, on_gpu: torch.memory_format) -> None:
    """cuDNN has no large depthwise kernels; PyTorch's own, of contiguous maps, and replknet's are fast."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), layer)
    assert fast_layout(network, torch.device("cuda", 1)) == on_gpu
    assert fast_layout(network, torch.device("cpu")) == torch.channels_last
    assert fast_layout(network, torch.device("mps")) == torch.contiguous_format
