from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import replknet
from replknet import PRESETS
from replknet.blocks import DropPath, RepLKBlock
from tests.conftest import Reference
from tests.networks import TINY, tiny_model

# Parameters and multiply-accumulates, training and merged form, counted independently from the layer shapes.
COUNTS = [
    ("replknet_31b", {}, 224, 79_864_168, 79_527_272, 15_431_298_048, 15_353_525_248),
    ("replknet_31b", {}, 384, 79_864_168, 79_527_272, 45_347_135_488, 45_118_578_688),
    ("replknet_31l", {}, 384, 172_671_016, 172_165_672, 96_332_255_232, 95_989_420_032),
    ("replknet_xl", {}, 320, 335_435_752, 335_399_656, 128_730_316_800, 128_730_316_800),
    (
        "replknet_31b",
        {"kernel_sizes": (3, 3, 3, 3), "small_kernel": None},
        224,
        71_906_408,
        71_894_376,
        12_938_654_720,
        12_938_654_720,
    ),
]


@pytest.mark.parametrize(("name", "overrides", "size", "params", "merged_params", "macs", "merged_macs"), COUNTS)
def test_published_parameter_and_mac_counts(
    name: str, overrides: dict[str, Any], size: int, params: int, merged_params: int, macs: int, merged_macs: int
) -> None:
    with torch.device("meta"):
        model = replknet.create_model(name, **overrides).eval()
    for form, expected_params, expected_macs in (
        (model, params, macs),
        (replknet.reparameterize(model, level="kernels"), merged_params, merged_macs),
    ):
        assert sum(parameter.numel() for parameter in form.parameters()) == expected_params
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            form(torch.empty(1, 3, size, size, device="meta"))
        assert counter.get_total_flops() == 2 * expected_macs  # the counter has two FLOPs per multiply-accumulate


@pytest.mark.parametrize("size", ["31B", "31L", "XL"])
@pytest.mark.parametrize("naming", ["official", "mmpretrain"])
def test_keys_and_shapes_match_the_published_lists(reference: Reference, naming: Any, size: str) -> None:
    with torch.device("meta"):
        model = replknet.create_model(f"replknet_{size.lower()}")
    state = replknet.convert_state_dict(model.state_dict(), to=naming)
    expected = [(key, tuple(shape)) for key, shape in reference.shapes(naming)[size]]
    assert sorted((key, tuple(value.shape)) for key, value in state.items()) == sorted(expected)


# Merged files hold weights that were rounded to float32 after the merge; the outputs of the training form are float64.
ROUNDED_TO_FLOAT32 = 1e-7


@pytest.mark.parametrize(
    ("file", "tolerance"),
    [
        ("tiny_official_flat", 1e-9),
        ("tiny_official_model", 1e-9),
        ("tiny_official_dataparallel", 1e-9),
        ("tiny_official_merged", ROUNDED_TO_FLOAT32),
    ],
)
def test_outputs_match_the_official_implementation(reference: Reference, file: str, tolerance: float) -> None:
    model = reference.load(f"{file}.pth")
    expected = reference.official
    images = torch.from_numpy(expected["images"]).double()
    with torch.no_grad():
        outputs = {"logits": model(images), "features": model.forward_features(images)}
        outputs |= {f"stage{stage}": maps for stage, maps in enumerate(model.forward_intermediates(images))}
    for name, output in outputs.items():
        np.testing.assert_allclose(output, expected[name], rtol=0, atol=tolerance * np.abs(expected[name]).max())


@pytest.mark.parametrize(
    ("file", "tolerance"), [("tiny_mmpretrain", 1e-9), ("tiny_mmpretrain_deploy", ROUNDED_TO_FLOAT32)]
)
def test_outputs_match_mmpretrain(reference: Reference, file: str, tolerance: float) -> None:
    model = reference.load(f"{file}.pth")
    expected = reference.mmpretrain
    images = torch.from_numpy(reference.official["images"]).double()
    with torch.no_grad():
        # mmpretrain's backbone applies the final norm, which is the classifier's in the official naming.
        outputs = {"logits": model(images), "features": model.norm(model.forward_features(images))}
    for name, output in outputs.items():
        np.testing.assert_allclose(output, expected[name], rtol=0, atol=tolerance * np.abs(expected[name]).max())


@pytest.mark.parametrize("level", ["kernels", "full"])
def test_a_merge_in_float64_matches_the_official_outputs(reference: Reference, level: Any) -> None:
    model = replknet.reparameterize(reference.load("tiny_official_flat.pth"), level=level)
    expected = reference.official["logits"]
    with torch.no_grad():
        logits = model(torch.from_numpy(reference.official["images"]).double())
    np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-9 * np.abs(expected).max())


def test_out_indices_give_stage_maps() -> None:
    model = tiny_model(out_indices=(1, 3), num_classes=0)
    maps = model(torch.randn(2, 3, 64, 96, dtype=torch.float64))
    assert [tuple(item.shape) for item in maps] == [(2, 16, 8, 12), (2, 32, 2, 3)]
    assert not any(key.startswith(("norm.", "head.")) for key in model.state_dict())


def test_normalised_intermediate_features_have_the_statistics_of_a_batch_norm() -> None:
    model = tiny_model(out_indices=(0, 2), norm_intermediate_features=True).train()
    for stage in model.stages:
        nn.init.ones_(stage.get_parameter("norm.weight"))
        nn.init.zeros_(stage.get_parameter("norm.bias"))
    for item in model(torch.randn(4, 3, 64, 64, dtype=torch.float64)):
        torch.testing.assert_close(item.mean((0, 2, 3)), torch.zeros(item.shape[1], dtype=torch.float64))
        torch.testing.assert_close(
            item.var((0, 2, 3), correction=0), torch.ones(item.shape[1], dtype=torch.float64), rtol=1e-2, atol=0
        )
    assert "stages.3.norm.weight" in model.state_dict()


def test_no_head_gives_pooled_normalised_features() -> None:
    model = tiny_model(num_classes=0)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    expected = model.norm(model.forward_features(images)).mean((2, 3))
    torch.testing.assert_close(model(images), expected)
    torch.testing.assert_close(model.forward_head(model.forward_features(images), pre_logits=True), expected)


def test_gradient_checkpointing_changes_neither_outputs_nor_gradients() -> None:
    plain, frugal = tiny_model(), tiny_model(gradient_checkpointing=True)
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    for model in (plain, frugal):
        model(images).square().sum().backward()
    for expected, actual in zip(plain.parameters(), frugal.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad)


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25)
    out = layer(torch.ones(4000, 2, 3, 3))
    per_image = out.flatten(1)
    assert per_image.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(per_image.min(1).values, per_image.max(1).values)
    assert out.mean().item() == pytest.approx(1, abs=0.04)
    assert torch.equal(layer.eval()(torch.ones(3, 2, 1, 1)), torch.ones(3, 2, 1, 1))


def test_a_pair_shares_one_drop_path_rate() -> None:
    model = tiny_model(drop_path_rate=0.4)
    rates = [module.rate for module in model.modules() if isinstance(module, DropPath)]
    assert rates == pytest.approx([0.0, 0.0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3, 0.4, 0.4])


def test_reset_classifier() -> None:
    model = tiny_model()
    images = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    model.reset_classifier(7)
    assert model(images).shape == (1, 7)
    assert model.config.num_classes == 7
    model.reset_classifier(0)
    assert model(images).shape == (1, 32)
    folded = replknet.reparameterize(tiny_model())
    with pytest.raises(ValueError, match="num_classes=3"):
        folded.reset_classifier(3)
    assert folded.config.num_classes == 10


@pytest.mark.parametrize("indices", [(), (4,), (-1,)])
def test_stage_numbers_are_checked(indices: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="indices="):
        tiny_model().forward_intermediates(torch.zeros(1, 3, 64, 64, dtype=torch.float64), indices)


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


def test_block_without_shortcut_lacks_its_input() -> None:
    torch.manual_seed(0)
    block = RepLKBlock(8, 8, 5, 3, drop_path=0.3)
    without = RepLKBlock(8, 8, 5, 3, drop_path=0.3, shortcut=False)
    without.load_state_dict(block.state_dict())
    x = torch.randn(2, 8, 12, 12)
    with torch.no_grad():
        assert torch.allclose(block.eval()(x), x + without.eval()(x), atol=1e-6)
    model = tiny_model(shortcut=False)
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(replknet.reparameterize(model)(images), model(images), rtol=1e-9)
        assert not torch.allclose(tiny_model()(images), model(images), rtol=1e-3)


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
