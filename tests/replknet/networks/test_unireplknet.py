"""UniRepLKNet against the official code's own outputs and counts, and against closed forms."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import replknet
from analysis.models.complexity import num_macs, num_parameters
from analysis.study.posthoc import Variant, apply_variant, default_variants, kernel_energy
from replknet import CheckpointError, UniRepLKNet, UniRepLKNetConfig
from replknet.checkpoints.describing import describe, infer_config
from replknet.networks import family_named
from replknet.networks.unireplknet import BRANCHES, DilatedReparamBlock, GlobalResponseNorm, UniRepLKBlock
from tests.networks import randomize_norms, tiny_unireplknet

FOLDER = Path(os.environ.get("REPLKNET_DATA", "../shared")) / "reference"
reference = pytest.mark.skipif(
    not (FOLDER / "tiny_unireplknet.pth").is_file(), reason="the references of the family are not here"
)
VARIANTS = ("A", "F", "P", "N", "T", "S", "B", "L", "XL")
CASES = ("square", "wide", "odd")


def expected(name: str) -> Tensor:
    with np.load(FOLDER / "tiny_unireplknet_expected.npz") as arrays:
        return torch.from_numpy(arrays[name]).double()


def difference(found: Tensor, wanted: Tensor) -> float:
    assert found.shape == wanted.shape
    return float((found - wanted).abs().max() / wanted.abs().max())


@reference
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("form", ["training", "merged"])
def test_the_official_outputs(case: str, form: str) -> None:
    file = {"training": "tiny_unireplknet.pth", "merged": "tiny_unireplknet_merged.pth"}[form]
    model: Any = replknet.load_checkpoint(FOLDER / file).double()
    if form == "merged":  # the file is in float64
        model.load_state_dict(replknet.load_state_dict(FOLDER / file))
    model.eval()
    images, prefix = expected(f"images_{case}"), "merged_" if form == "merged" else ""
    with torch.no_grad():
        features = model.forward_features(images)
        assert difference(model(images), expected(f"{prefix}{case}_logits")) < 1e-9
        assert difference(model.forward_head(features, pre_logits=True), expected(f"{prefix}{case}_pooled")) < 1e-9
        for stage, maps in enumerate(model.forward_intermediates(images)):
            assert difference(maps, expected(f"{case}_stage{stage}")) < 1e-9


@reference
@pytest.mark.parametrize("level", ["kernels", "full"])
def test_the_official_merge(level: Any) -> None:
    model = replknet.load_checkpoint(FOLDER / "tiny_unireplknet.pth").double().eval()
    merged = replknet.reparameterize(model, level=level)
    official = replknet.load_state_dict(FOLDER / "tiny_unireplknet_merged.pth")
    ours = merged.state_dict()
    assert set(ours) == set(official)
    assert all(difference(ours[key], official[key]) < 1e-12 for key in official)
    again = replknet.reparameterize(merged)
    assert all(torch.equal(value, ours[key]) for key, value in again.state_dict().items())


@reference
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_official_keys_and_shapes(variant: str) -> None:
    shapes = json.loads((FOLDER / "unireplknet_state_dict_shapes.json").read_text())
    with torch.device("meta"):
        model = replknet.create_model(f"unireplknet_{variant.lower()}").eval()
    for form, network in (("training", model), ("merged", replknet.reparameterize(model))):
        ours = {key: list(value.shape) for key, value in network.state_dict().items()}
        assert list(ours.items()) == [tuple(entry) for entry in shapes[form][variant]]
        assert infer_config(network.state_dict()) == model.config
        assert describe(network.state_dict()).startswith(f"The file looks like unireplknet_{variant.lower()} (")


@reference
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_counts(variant: str) -> None:
    counts = json.loads((FOLDER / "families_counts.json").read_text())["unireplknet"][variant]
    with torch.device("meta"):
        model = replknet.create_model(f"unireplknet_{variant.lower()}").eval()
    for form, network in (("training", model), ("merged", replknet.reparameterize(model))):
        assert num_parameters(network) == counts[form]["params"]
        sizes = [key for key in counts[form] if key.startswith("@")]
        assert {"@224", "@384"} <= set(sizes)
        for size in sizes:
            side = int(size[1:])
            assert num_macs(network, (side, side)) == counts[form][size]["macs"]


@pytest.mark.parametrize(("variant", "training", "merged"), [("s", 72483433, 71672713), ("xl", 431394193, 429232273)])
def test_heads_of_22k_classes(variant: str, training: int, merged: int) -> None:
    with torch.device("meta"):
        model = replknet.create_model(f"unireplknet_{variant}.in22k", num_classes=21841)
    assert (num_parameters(model), num_parameters(replknet.reparameterize(model))) == (training, merged)


def test_a_dilated_block_by_hand() -> None:
    """A 7x7 kernel and its three branches on one pixel: each tap comes out where its dilation puts it."""
    block: Any = DilatedReparamBlock(1, 7).double().eval()
    with torch.no_grad():
        for name, parameter in block.named_parameters():
            if "conv" in name or name == "lk_origin.weight":
                parameter.zero_()
        for layer in block.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eps = 0.0
        block.lk_origin.weight[0, 0, 0, 0] = 1
        block.get_parameter("dil_conv_k5_1.weight")[0, 0, 0, 4] = 10
        block.get_parameter("dil_conv_k3_2.weight")[0, 0, 0, 0] = 100
        block.get_parameter("dil_conv_k3_3.weight")[0, 0, 2, 1] = 1000
        block.get_buffer("dil_bn_k3_3.running_var").fill_(4)  # halves it
        block.get_buffer("origin_bn.running_mean").fill_(0.25)  # everywhere
    image = torch.zeros(1, 1, 9, 9, dtype=torch.double)
    image[0, 0, 4, 4] = 1
    wanted = torch.full((9, 9), -0.25, dtype=torch.double)
    for row, column, value in ((7, 7, 1), (6, 2, 10), (6, 6, 100), (1, 4, 500)):  # a tap's offset, reversed
        wanted[row, column] += value
    assert torch.allclose(block(image)[0, 0], wanted, rtol=0, atol=1e-12)
    block.reparameterize()
    assert list(block.state_dict()) == ["lk_origin.weight", "lk_origin.bias"]
    assert torch.allclose(block(image)[0, 0], wanted, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", sorted(BRANCHES))
def test_the_branches_summed_beforehand_give_output_and_gradients_of_the_branches(kernel: int) -> None:
    torch.manual_seed(0)
    block: Any = randomize_norms(DilatedReparamBlock(3, kernel)).double().eval()
    x = torch.randn(2, 3, 11, 14, dtype=torch.double, requires_grad=True)
    direct: Any = 0
    for conv, norm in list(zip(*[iter(block.children())] * 2, strict=True)):
        k, r = conv.weight.shape[-1], conv.dilation[0]
        out = nn.functional.conv2d(x, conv.weight, padding=r * (k - 1) // 2, dilation=r, groups=3)
        direct = direct + norm(out)
    found = block(x)
    assert torch.allclose(found, direct, rtol=1e-12, atol=1e-12)
    asked = [x, *block.parameters()]
    signal = torch.randn_like(found)
    ours, theirs = (torch.autograd.grad(out, asked, signal) for out in (found, direct))
    assert all(torch.allclose(a, b, rtol=1e-10, atol=1e-10) for a, b in zip(ours, theirs, strict=True))


def test_branches_with_hooks_are_computed_one_by_one() -> None:
    block = randomize_norms(DilatedReparamBlock(3, 9)).double().eval()
    x = torch.randn(1, 3, 12, 12, dtype=torch.double)
    summed, seen = block(x), []
    block.get_submodule("dil_conv_k5_2").register_forward_hook(lambda *call: seen.append(call[2].shape))
    assert torch.allclose(block(x), summed, rtol=1e-12, atol=1e-12)
    assert seen == [(1, 3, 12, 12)]


def test_training_normalises_each_branch_by_itself() -> None:
    torch.manual_seed(0)
    block = DilatedReparamBlock(2, 7).double().train()
    x = torch.randn(4, 2, 10, 10, dtype=torch.double)
    out = block(x)
    # Each of the four norms makes a zero mean and, but for its eps, a variance of one.
    assert out.mean((0, 2, 3)).abs().max() < 1e-12
    for name, conv in block.named_children():
        if "bn" not in name:
            mean = conv(x).mean((0, 2, 3))
            norm = name.replace("dil_conv", "dil_bn").replace("lk_origin", "origin_bn")
            assert torch.allclose(block.get_buffer(f"{norm}.running_mean"), 0.1 * mean, atol=1e-12)


def test_the_global_response_norm_by_hand() -> None:
    norm = GlobalResponseNorm(2).double()
    with torch.no_grad():
        norm.gamma.copy_(torch.tensor([1.0, 2.0]))
        norm.beta.copy_(torch.tensor([0.5, -0.5]))  # type: ignore[union-attr]
    x = torch.tensor([[[[3.0, 0.0], [4.0, 5.0]]]], dtype=torch.double)  # responses 5 and 5
    share = 5 / (5 + 1e-6)
    wanted = torch.tensor([[3 * (1 + share) + 0.5, -0.5], [4 * (1 + share) + 0.5, 5 * (1 + 2 * share) - 0.5]])
    assert torch.allclose(norm(x)[0, 0], wanted.double(), rtol=1e-6)


@pytest.mark.parametrize("layer_scale", [1e-6, None])
def test_merging_keeps_the_function(layer_scale: float | None) -> None:
    model = tiny_unireplknet(layer_scale=layer_scale)
    images = torch.randn(2, 3, 70, 52, dtype=torch.double)
    merged = replknet.reparameterize(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in merged.modules())
    with torch.no_grad():
        assert difference(merged(images), model(images)) < 1e-12
        assert difference(merged.forward_features(images), model.forward_features(images)) < 1e-12


@pytest.mark.parametrize("what", ["act", "pwconv2", "norm", "branch"])
def test_a_replaced_layer_stays_and_the_function_too(what: str) -> None:
    model: Any = tiny_unireplknet()
    block = model.stages[1][0]
    if what == "act":
        block.act[1] = nn.Tanh()
    elif what == "pwconv2":
        block.pwconv2[2] = nn.Sequential(block.pwconv2[2], nn.Tanh()).eval()
    elif what == "norm":
        block.norm = nn.GroupNorm(1, 16).double()
    else:
        block.dwconv.dil_conv_k5_1 = nn.AvgPool2d(3, 1, 1)
    images = torch.randn(1, 3, 64, 64, dtype=torch.double)
    with torch.no_grad():
        assert difference(replknet.reparameterize(model)(images), model(images)) < 1e-12


def test_what_merging_would_change_is_refused_where_somebody_looks() -> None:
    model: Any = tiny_unireplknet()
    block = model.stages[0][1]
    handle = block.act[1].register_forward_hook(lambda *_: None)
    with pytest.raises(ValueError, match=r"GlobalResponseNorm in stages\.0\.1 has hooks"):
        replknet.reparameterize(model)
    handle.remove()
    nn.utils.parametrizations.weight_norm(block.pwconv2[0])
    with pytest.raises(ValueError, match="parametrized"):
        replknet.reparameterize(model)


@pytest.mark.parametrize("form", ["training", "merged"])
def test_checkpoints_are_strict(tmp_path: Path, form: str) -> None:
    model = tiny_unireplknet()
    state = (model if form == "training" else replknet.reparameterize(model)).state_dict()
    torch.save({"model": state}, tmp_path / "wrapped.pth")
    loaded = replknet.load_checkpoint(tmp_path / "wrapped.pth")
    assert isinstance(loaded, UniRepLKNet)
    assert list(loaded.state_dict()) == list(state)
    bias = "stages.1.0.pwconv1.1.bias"
    for changed, words in (
        ({key: value for key, value in state.items() if key != bias}, rf"1 missing: {bias}"),
        (state | {"stages.1.0.dwconv.bias": torch.ones(16)}, r"1 unexpected: stages.1.0.dwconv.bias"),
        (state | {bias: torch.ones(63)}, rf"1 mis-shaped: {bias} \[63\] for \[64\]"),
    ):
        torch.save(changed, tmp_path / "wrong.pth")
        with pytest.raises(CheckpointError, match=words):
            replknet.load_checkpoint(tmp_path / "wrong.pth")
    with pytest.raises(CheckpointError, match="looks like a UniRepLKNet with layers"):
        replknet.create_model("replknet_31b", checkpoint=tmp_path / "wrapped.pth")
    with pytest.raises(ValueError, match="its code has no UniRepLKNet"):
        replknet.convert_checkpoint(tmp_path / "wrapped.pth", tmp_path / "other.pth", to="mmpretrain")


VALID: dict[str, Any] = {"layers": (1, 2), "channels": (8, 16), "kernel_sizes": (3, (7, 5))}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"channels": (8,)}, r"channels=\(8,\): expected 2 values"),
        ({"channels": (3, 8)}, r"channels=\(3, 8\): expected at least 4"),
        ({"kernel_sizes": None}, r"kernel_sizes=None: expected a kernel for each block, as layers=\(1, 2\)"),
        ({"kernel_sizes": (3,)}, r"kernel_sizes=.*expected 2 values, one per stage"),
        ({"kernel_sizes": (3, (7, 5, 5))}, r"kernel_sizes=\(7, 5, 5\): expected 2 values, one per block"),
        ({"kernel_sizes": (3, 19)}, "kernel_sizes=19: expected an odd number from 3 to 17"),
        ({"kernel_sizes": (4, 7)}, "kernel_sizes=4"),
        ({"kernel_sizes": "37"}, "kernel_sizes='37'"),
        ({"kernel_sizes": (True, 7)}, "kernel_sizes=True: expected a sequence"),
        ({"layer_scale": 0}, "layer_scale=0"),
        ({"drop_path_rate": 1}, "drop_path_rate=1"),
        ({"out_indices": (1, 0)}, "out_indices"),
    ],
)
def test_a_configuration_out_of_range_is_refused(override: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        UniRepLKNetConfig(**(VALID | override))


def test_one_number_is_for_all_blocks_and_the_published_layout_follows_from_the_depths() -> None:
    assert UniRepLKNetConfig(**VALID).kernel_sizes == ((3,), (7, 5))
    assert UniRepLKNetConfig(**(VALID | {"kernel_sizes": (3, 7)})).kernel_sizes == ((3,), (7, 7))
    third = {name: replknet.PRESETS[f"unireplknet_{name}"].kernel_sizes[2] for name in ("a", "n", "t", "s")}
    assert third == {"a": (13,) * 6, "n": (13,) * 8, "t": (13, 3) * 9, "s": (13, 3, 3) * 9}


def test_every_side_of_the_family_can_be_built_and_no_other() -> None:
    sides = family_named("unireplknet").sides
    assert sides == (3, 5, 7, 9, 11, 13, 15, 17)
    for side in sides:
        assert UniRepLKNetConfig.of_kernels((side,), layers=(1,), channels=(4,)).kernel_sizes == ((side,),)
    with pytest.raises(ValueError, match="kernel_sizes=19"):
        UniRepLKNetConfig.of_kernels((19,), layers=(1,), channels=(4,))


def test_backbones_give_normed_maps_and_heads_are_replaced() -> None:
    model = tiny_unireplknet(num_classes=0, out_indices=(1, 3), norm_intermediate_features=True)
    images = torch.randn(1, 3, 64, 64, dtype=torch.double)
    with torch.no_grad():
        second, fourth = model(images)
        other = tiny_unireplknet()
        other.load_state_dict(model.state_dict(), strict=False)
        plain = other.forward_intermediates(images, [1])[0]
    assert (second.shape, fourth.shape) == ((1, 16, 8, 8), (1, 32, 2, 2))
    assert torch.allclose(second, (plain - plain.mean(1, True)) / (plain.var(1, False, True) + 1e-6).sqrt())
    assert infer_config(model.state_dict()) == replace(model.config, out_indices=(0, 1, 2, 3))
    other.reset_classifier(3)
    assert other(images).shape == (1, 3)


def test_gradient_checkpointing_and_drop_path_rates() -> None:
    images = torch.randn(2, 3, 64, 64, dtype=torch.double)
    gradients = []
    for recompute in (False, True):
        model = tiny_unireplknet(gradient_checkpointing=recompute, drop_path_rate=0.2).train()
        torch.manual_seed(1)
        model(images).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    rates = [m.drop_path.rate for m in model.modules() if isinstance(m, UniRepLKBlock)]
    assert rates == pytest.approx([0.2 * place / 6 for place in range(7)])


def test_names_of_published_weights_have_their_heads() -> None:
    with torch.device("meta"):
        heads = [
            replknet.create_model(name).config.num_classes
            for name in ("unireplknet_s", "unireplknet_s.in1k_224", "unireplknet_s.in22k")
        ]
    assert heads == [1000, 1000, 21841]


@pytest.mark.parametrize(
    ("name", "address", "size", "crop"),
    [
        ("unireplknet_a.in1k_224", "unireplknet_a_in1k_224_acc77.03.pth", 224, 0.875),
        ("unireplknet_b.in22k_ft_in1k_384", "unireplknet_b_in22k_to_in1k_384_acc87.40.pth", 384, 1.0),
        ("unireplknet_l.in22k", "unireplknet_l_in22k_pretrain.pth", 192, 0.875),
    ],
)
def test_published_files(name: str, address: str, size: int, crop: float) -> None:
    entry = replknet.PUBLISHED[name]
    assert entry.url == f"https://huggingface.co/DingXiaoH/UniRepLKNet/resolve/main/{address}"
    assert (entry.image_size, entry.crop, entry.sha256) == (size, crop, "")


def test_cropping_is_the_crop_of_the_merged_kernel_and_dropping_leaves_the_large_one() -> None:
    model = tiny_unireplknet()
    images = torch.randn(1, 3, 64, 64, dtype=torch.double)
    merged = replknet.reparameterize(model)
    with torch.no_grad():
        for kernel in (1, 5, 9):
            first, second = (apply_variant(network, Variant(kernel=kernel))(images) for network in (model, merged))
            assert difference(first, second) < 1e-12
        dropped = apply_variant(model, Variant(without="dilated"))
        by_hand: Any = tiny_unireplknet()
        for block in by_hand.modules():
            if isinstance(block, DilatedReparamBlock):
                for layer, value in block.named_parameters():
                    if "dil_" in layer:
                        value.zero_()  # kernel, scale and shift
        assert difference(dropped(images), by_hand(images)) < 1e-12
    assert [variant.name for variant in default_variants(model, [5], by_stage=False)] == [
        "whole",
        "crop5",
        "whole_nodilated",
    ]
    with pytest.raises(ValueError, match="without='dilated': this network has no separate dilated kernels"):
        apply_variant(merged, Variant(without="dilated"))
    assert set(kernel_energy(model)["stage"]) == {2, 3, 4}  # the first has small kernels only


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_a_training_step_is_that_of_plain_convolutions(memory_format: Any) -> None:
    images = torch.randn(2, 3, 64, 64, dtype=torch.double).contiguous(memory_format=memory_format)
    gradients = []
    for plain in (False, True):
        model = tiny_unireplknet().train()
        if plain:
            for module in list(model.modules()):
                for name, layer in module.named_children():
                    if isinstance(layer, nn.Conv2d):
                        settings = (layer.stride, layer.padding, layer.dilation, layer.groups, layer.bias is not None)
                        other = nn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, *settings)  # type: ignore[arg-type]
                        other.weight, other.bias = layer.weight, layer.bias
                        setattr(module, name, other)
        model(images).square().sum().backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    scale = max(float(value.abs().max()) for value in gradients[1].values() if value is not None)
    for name, value in gradients[0].items():
        assert torch.allclose(value, gradients[1][name], rtol=1e-9, atol=1e-12 * scale), name  # type: ignore[arg-type]
