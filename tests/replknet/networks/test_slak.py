import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import replknet
from replknet import SLaK, SLaKConfig
from replknet.networks import slak
from replknet.networks.blocks import DropPath, ReparamLargeKernelConv
from replknet.networks.skeleton import ChannelNorm
from replknet.networks.slak import PRESETS, StripConv
from tests.networks import TINY_SLAK, randomize_norms, tiny_slak

SQUARE: dict[str, Any] = TINY_SLAK | {"width_factor": 1.0, "strip_width": None, "kernel_sizes": (31, 29, 27, 13)}
IMAGES = torch.randn(2, 3, 96, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def strips_of(model: nn.Module) -> list[StripConv]:
    return [module for module in model.modules() if isinstance(module, StripConv)]


# Counts and names -----------------------------------------------------------------------------------------------------

VARIANTS = {"T": "slak_t", "S": "slak_s", "B": "slak_b", "L": "slak_l", "T_31": "slak_t_31", "T_61": "slak_t_61"}
CONVNEXT: dict[str, Any] = {
    "width_factor": 1.0,
    "strip_width": None,
    "small_kernel": None,
    "kernel_sizes": (7, 7, 7, 7),
}
COUNTED = {
    "T kernels [31, 29, 27, 13, 5]": ("slak_t_31", {}),
    "T kernels [61, 59, 57, 13, 5]": ("slak_t_61", {}),
    "ConvNeXt-T form": ("slak_t", CONVNEXT),
} | {size: (VARIANTS[size], {}) for size in ("T", "S", "B", "L")}


def num_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def macs(model: nn.Module, size: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.empty(1, 3, size, size, device="meta"))
    return int(counter.get_total_flops()) // 2  # the counter has two FLOPs per multiply-accumulate


@pytest.mark.parametrize("case", COUNTED)
def test_parameters_and_multiply_accumulates_are_those_counted_from_the_official_code(shared: Path, case: str) -> None:
    counts = json.loads((shared / "reference" / "families_counts.json").read_text())["slak"][case]
    name, overrides = COUNTED[case]
    with torch.device("meta"):
        model = replknet.create_model(name, **overrides).eval()
    assert isinstance(model, SLaK)
    training = counts.get("training", counts)
    assert num_parameters(model) == training["params"]
    assert sum(p.numel() for p in model.parameters() if p.ndim in (2, 4)) == training.get(
        "maskable_params", sum(p.numel() for p in model.parameters() if p.ndim in (2, 4))
    )
    for key, expected in training.items():
        if key.startswith("@"):
            assert macs(model, int(key[1:])) == expected["macs"]
    if "dims" in training:
        assert model.config.widths == tuple(training["dims"])
        folded = replknet.reparameterize(model)
        assert num_parameters(folded) == counts["merged_bn_folded_DERIVED"]["params"]
        assert macs(folded, 224) == training["@224"]["macs"]
        for strip in strips_of(folded):  # into one kernel, which no file has
            strip.merged = nn.ParameterList(strip.whole())
            strip.LoRA1 = strip.LoRA2 = strip.small_conv = None
        assert num_parameters(folded) == counts["merged_single_kernel_DERIVED"]["params"]


@pytest.mark.parametrize("size", [*VARIANTS, "ConvNeXt-T form (7 7 7 7 100)"])
def test_keys_and_shapes_are_the_official_ones_in_their_order(shared: Path, size: str) -> None:
    listed = json.loads((shared / "reference" / "slak_state_dict_shapes.json").read_text())
    with torch.device("meta"):
        model = replknet.create_model(VARIANTS.get(size, "slak_t"), **({} if size in VARIANTS else CONVNEXT))
    forms = {"training": model}
    if size in VARIANTS:  # the form that runs ConvNeXt is listed as it is trained
        forms["merged_bn_folded_DERIVED"] = replknet.reparameterize(model)
    for form, network in forms.items():
        found = [[key, list(value.shape)] for key, value in network.state_dict().items()]
        assert found == [[key, list(shape)] for key, shape in listed[form][size]]


# Agreement with the official implementation ---------------------------------------------------------------------------


class Official:
    """A tiny network of the official implementation, run in float64."""

    def __init__(self, shared: Path, name: str, config: dict[str, Any]) -> None:
        folder = shared / "reference"
        self.expected = np.load(folder / f"{name}_expected.npz")
        self.images = np.load(folder / "tiny_slak_expected.npz")
        self.model = replknet.create_model("slak_t", checkpoint=folder / f"{name}.pth", **config).double().eval()
        self.cases = [key.removesuffix("_logits") for key in self.expected if key.count("_") == 1 and "logits" in key]

    def of(self, case: str) -> Tensor:
        return torch.from_numpy(self.images[f"images_{case}"]).double()

    def check(self, key: str, output: Tensor) -> None:
        expected = self.expected[key]
        np.testing.assert_allclose(output, expected, rtol=0, atol=1e-9 * np.abs(expected).max(), err_msg=key)


@pytest.fixture(
    scope="module", params=[("tiny_slak", TINY_SLAK), ("tiny_slak_square", SQUARE)], ids=lambda given: given[0]
)
def official(shared: Path, request: pytest.FixtureRequest) -> Official:
    return Official(shared, *request.param)


@torch.no_grad()
def test_outputs_match_the_official_implementation(official: Official) -> None:
    assert official.cases in (["square", "wide", "odd"], ["square", "odd"])
    for case in official.cases:
        images = official.of(case)
        official.check(f"{case}_logits", official.model(images))
        features = official.model.forward_features(images)
        official.check(f"{case}_pooled", official.model.forward_head(features, pre_logits=True))
        for stage, maps in enumerate(official.model.forward_intermediates(images)):
            if f"{case}_stage{stage}" in official.expected:
                official.check(f"{case}_stage{stage}", maps)


@torch.no_grad()
@pytest.mark.parametrize("level", ["full", "kernels"])
def test_reparameterized_outputs_match_the_official_and_the_derived_ones(official: Official, level: Any) -> None:
    model = replknet.reparameterize(official.model, level=level)
    for case in official.cases:
        form = "bn_folded" if strips_of(model) else "merged"
        official.check(f"{form}_{case}_logits", model(official.of(case)))


@torch.no_grad()
def test_the_whole_kernels_of_strips_give_the_derived_outputs(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official = Official(shared, "tiny_slak", TINY_SLAK)
    model = replknet.reparameterize(official.model)
    monkeypatch.setattr(StripConv, "forward", lambda self, x: replknet.depthwise_conv2d(x, *self.whole()))
    for case in official.cases:
        official.check(f"single_kernel_{case}_logits", model(official.of(case)))


# Re-parameterisation --------------------------------------------------------------------------------------------------

FORMS = [{}, {"small_kernel": None}, {"strip_width": None}, {"strip_width": 3, "small_kernel": 13}]


@torch.no_grad()
@pytest.mark.parametrize("level", ["full", "kernels"])
@pytest.mark.parametrize("overrides", FORMS)
def test_the_function_is_unchanged_in_float64(level: Any, overrides: dict[str, Any]) -> None:
    model = tiny_slak(**overrides)
    found = replknet.reparameterize(model, level=level)
    assert relative_error(found(IMAGES), model(IMAGES)) < 1e-12
    assert not any(isinstance(module, nn.BatchNorm2d) for module in found.modules())
    again = replknet.reparameterize(found, level=level)
    assert all(torch.equal(a, b) for a, b in zip(found.parameters(), again.parameters(), strict=True))


def test_the_whole_kernel_of_strips_is_a_plus() -> None:
    model = replknet.reparameterize(tiny_slak())
    weight = model.large_kernels()[0][0].dense_kernel()
    plus = torch.zeros(51, 51, dtype=torch.bool)
    plus[23:28] = plus[:, 23:28] = True
    assert weight.shape == (10, 51, 51)
    assert bool((weight[:, ~plus] == 0).all()) and bool((weight[:, plus] != 0).all())


@torch.no_grad()
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("overrides", FORMS[:2])
def test_a_folded_layer_takes_strips_or_the_whole_kernel_by_the_plan(
    monkeypatch: pytest.MonkeyPatch, overrides: dict[str, Any], whole: bool
) -> None:
    """Both give the output; which of them is taken changes nothing of the weights."""
    model = tiny_slak(**overrides)
    folded = replknet.reparameterize(model.float())
    kernels: list[torch.Size] = []

    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        kernels.append(weight.shape)
        return replknet.depthwise_conv2d(x, weight, bias)

    monkeypatch.setattr(slak, "depthwise_conv2d", convolve)
    monkeypatch.setattr(slak, "output_time", lambda x, kernel: (kernel[2] == kernel[3] > 13) != whole)
    before = {key: value.clone() for key, value in folded.state_dict().items()}
    assert relative_error(folded(IMAGES.float()), model.double()(IMAGES)) < 1e-5
    taken = [(10, 1, 51, 51)] * 2 + [(20, 1, 49, 49)] + [(31, 1, 47, 47)] * 2
    assert [shape for shape in kernels if shape[2] > 13] == (taken if whole else [])
    assert all(torch.equal(before[key], value) for key, value in folded.state_dict().items())


def test_layers_of_others_and_their_neighbours_stay() -> None:
    model = tiny_slak()
    strip = strips_of(model)[0]
    strip.LoRA1 = nn.Identity()  # type: ignore[assignment]
    expected = model(IMAGES)
    for level in ("kernels", "full"):
        found = replknet.reparameterize(model, level=level)
        assert isinstance(strips_of(found)[0].LoRA1, nn.Identity)
        assert relative_error(found(IMAGES), expected) < 1e-12


# The layers -----------------------------------------------------------------------------------------------------------


def identity_norms(module: nn.Module) -> None:
    for norm in module.modules():
        if isinstance(norm, nn.BatchNorm2d):
            norm.running_var.fill_(1 - norm.eps)  # type: ignore[union-attr]


@torch.no_grad()
def test_lora1_is_the_tall_strip_and_lora2_the_wide_one() -> None:
    """An impulse in the middle of a map comes out as the kernels turned by 180 degrees."""
    layer = StripConv(1, 7, 3, None).double().eval()
    identity_norms(layer)
    assert layer.LoRA1 is not None and layer.LoRA2 is not None
    tall, wide = torch.zeros(7, 3), torch.zeros(3, 7)
    tall[0, 1], tall[6, 2] = 2.0, 3.0  # 3 rows above the centre; 3 rows below it and a column to the right
    wide[1, 0], wide[2, 6] = 5.0, 7.0
    layer.LoRA1.conv.weight[0, 0], layer.LoRA2.conv.weight[0, 0] = tall, wide
    impulse = torch.zeros(1, 1, 9, 9, dtype=torch.float64)
    impulse[0, 0, 4, 4] = 1.0
    expected = torch.zeros(9, 9, dtype=torch.float64)
    expected[7, 4], expected[1, 3] = 2.0, 3.0
    expected[4, 7], expected[3, 1] = 5.0, 7.0
    torch.testing.assert_close(layer(impulse)[0, 0], expected)


@pytest.mark.parametrize("size", [(5, 7), (14, 14), (30, 17)])
def test_a_layer_and_its_gradients_are_those_of_conv2d_padded_by_half_of_each_side(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    layer = StripConv(6, 27, 5, 5).double().train()
    randomize_norms(layer)
    x = torch.randn(2, 6, *size, dtype=torch.float64, requires_grad=True)
    out, total = layer(x), torch.zeros(())
    branches = layer.parts()
    assert [branch.conv.weight.shape[2:] for branch in branches] == [(27, 5), (5, 27), (5, 5)]
    for branch, padding in zip(branches, [(13, 2), (2, 13), (2, 2)], strict=True):
        maps = F.conv2d(x, branch.conv.weight, padding=padding, groups=6)
        total = total + F.batch_norm(maps, None, None, branch.bn.weight, branch.bn.bias, training=True)  # type: ignore[arg-type]
    torch.testing.assert_close(out, total, rtol=0, atol=1e-10)
    with_respect_to = [x, *layer.parameters()]
    weights = torch.randn_like(out)
    for actual, expected in zip(
        torch.autograd.grad((out * weights).sum(), with_respect_to),
        torch.autograd.grad((total * weights).sum(), with_respect_to),
        strict=True,
    ):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-9 * expected.abs().max().item())


def test_a_channel_norm_is_over_the_channels_of_a_pixel() -> None:
    norm = ChannelNorm(5).double()
    x = torch.randn(2, 5, 3, 4, dtype=torch.float64)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), expected)


def test_new_weights_are_drawn_as_officially() -> None:
    model = SLaK(SLaKConfig(**TINY_SLAK))
    for name, parameter in model.named_parameters():
        if name.endswith("gamma"):
            assert parameter.tolist() == pytest.approx([1e-6] * len(parameter))
        elif name.endswith("bias"):
            assert not parameter.any()
        elif parameter.ndim > 1:
            assert 0.01 < parameter.std() < 0.03
    assert [module.rate for module in tiny_slak(drop_path_rate=0.5).modules() if isinstance(module, DropPath)] == (
        pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4, 0.5])
    )


# The network ----------------------------------------------------------------------------------------------------------


def test_kernels_are_whole_without_strips_and_alone_where_they_are_not_larger_than_the_small_one() -> None:
    model = tiny_slak(strip_width=None, kernel_sizes=(9, 7, 5, 3), small_kernel=5)
    layers = [module for module in model.modules() if isinstance(module, ReparamLargeKernelConv)]
    assert not strips_of(model)
    assert [layer.small_conv is not None for layer in layers] == [True, True, True, False, False, False]
    assert [layer.small_conv is None for layer in strips_of(tiny_slak(small_kernel=13))] == [False] * 5 + [True]


@torch.no_grad()
@pytest.mark.parametrize(
    ("kernel_sizes", "strips"),
    [((51, 13), 5), ((31, 3), 3), ((5, 5), None), ((3, 3), None), ((7, 7), 5)],
)
def test_strips_are_made_to_fit_the_smallest_kernel(kernel_sizes: tuple[int, ...], strips: int | None) -> None:
    config = SLaKConfig.of_kernels(kernel_sizes, layers=(1, 1), channels=(8, 16), small_kernel=3)
    assert (config.kernel_sizes, config.strip_width, config.small_kernel) == (kernel_sizes, strips, 3)


def test_out_indices_give_stage_maps_and_the_norms_of_dense_prediction() -> None:
    plain = tiny_slak(out_indices=(1, 3), num_classes=0)
    assert [tuple(maps.shape) for maps in plain(IMAGES)] == [(2, 20, 12, 8), (2, 41, 3, 2)]
    assert not any(key.startswith(("norm", "head.")) for key in plain.state_dict())
    normed = tiny_slak(out_indices=(0, 3), num_classes=0, norm_intermediate_features=True)
    assert {key for key in normed.state_dict() if key.startswith("norm")} == {
        f"norm{stage}.{part}" for stage in range(4) for part in ("weight", "bias")
    }
    normed.load_state_dict(plain.state_dict(), strict=False)
    for maps, bare in zip(normed(IMAGES), plain.forward_intermediates(IMAGES, (0, 3)), strict=True):
        torch.testing.assert_close(maps, F.layer_norm(bare.movedim(1, -1), bare.shape[1:2], eps=1e-6).movedim(-1, 1))


def test_sizes_are_rounded_down() -> None:
    maps = tiny_slak().forward_intermediates(IMAGES[..., :75, :53])
    assert [tuple(item.shape[2:]) for item in maps] == [(18, 13), (9, 6), (4, 3), (2, 1)]


def test_the_head_norms_after_pooling_and_can_be_replaced() -> None:
    model = tiny_slak()
    features = model.forward_features(IMAGES)
    pooled = F.layer_norm(features.mean((2, 3)), (41,), model.norm.weight, model.norm.bias, 1e-6)  # type: ignore[arg-type]
    torch.testing.assert_close(model.forward_head(features, pre_logits=True), pooled)
    model.reset_classifier(7)
    assert model(IMAGES).shape == (2, 7) and model.config.num_classes == 7
    model.reset_classifier(0)
    torch.testing.assert_close(model(IMAGES), pooled)
    with pytest.raises(ValueError, match="num_classes=3"):
        tiny_slak(out_indices=(0,), num_classes=0).reset_classifier(3)


def test_gradient_checkpointing_changes_neither_outputs_nor_gradients() -> None:
    plain, frugal = tiny_slak(), tiny_slak(gradient_checkpointing=True)
    for model in (plain, frugal):
        model(IMAGES).square().sum().backward()
    for expected, actual in zip(plain.parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad)


@pytest.mark.parametrize("indices", [(), (4,), (-1,)])
def test_stage_numbers_are_checked(indices: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="indices="):
        tiny_slak().forward_intermediates(IMAGES, indices)


# The configuration ----------------------------------------------------------------------------------------------------

VALID: dict[str, Any] = {"layers": (1, 2), "channels": (8, 16), "kernel_sizes": (7, 5)}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"layers": ()}, "layers"),
        ({"layers": (0, 1)}, "layers"),
        ({"layers": "12"}, "layers"),
        ({"channels": None}, "channels"),
        ({"channels": (8,)}, "channels"),
        ({"channels": (8, -1)}, "channels"),
        ({"kernel_sizes": (7, 5, 3)}, "kernel_sizes"),
        ({"kernel_sizes": (7, 4)}, "kernel_sizes"),
        ({"width_factor": 0}, "width_factor"),
        ({"width_factor": 0.1}, "width_factor"),
        ({"width_factor": float("nan")}, "width_factor"),
        ({"width_factor": True}, "width_factor"),
        ({"strip_width": 4}, "strip_width"),
        ({"strip_width": 7}, "strip_width"),
        ({"strip_width": False}, "strip_width"),
        ({"small_kernel": 100}, "small_kernel"),
        ({"small_kernel": 0}, "small_kernel"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"in_channels": 0}, "in_channels"),
        ({"num_classes": -1}, "num_classes"),
        ({"out_indices": ()}, "out_indices"),
        ({"out_indices": (2,)}, "out_indices"),
        ({"norm_intermediate_features": "no"}, "norm_intermediate_features"),
        ({"gradient_checkpointing": None}, "gradient_checkpointing"),
    ],
)
def test_invalid_value_is_refused_by_name(override: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}="):
        SLaKConfig(**(VALID | override))


def test_widths_are_truncated_products_and_the_config_is_frozen() -> None:
    assert {name: config.widths for name, config in PRESETS.items()} == {
        "slak_t": (124, 249, 499, 998),
        "slak_s": (124, 249, 499, 998),
        "slak_b": (166, 332, 665, 1331),
        "slak_l": (249, 499, 998, 1996),
        "slak_t_31": (124, 249, 499, 998),
        "slak_t_61": (124, 249, 499, 998),
    }
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["slak_t"].layers = (3, 3)  # type: ignore[misc]
