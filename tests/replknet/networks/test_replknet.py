import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import replknet
from replknet import PRESETS, RepLKNetConfig
from replknet.networks.blocks import DropPath
from tests.conftest import Reference
from tests.networks import tiny_model

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


# The configuration ----------------------------------------------------------------------------------------------------

VALID: dict[str, Any] = {"layers": (1, 2), "channels": (8, 16), "kernel_sizes": (7, 5), "small_kernel": 3}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"layers": ()}, "layers"),
        ({"layers": (0, 1)}, "layers"),
        ({"layers": "12"}, "layers"),
        ({"layers": 0.5}, "layers"),
        ({"channels": None}, "channels"),
        ({"channels": (8,)}, "channels"),
        ({"channels": (8, -1)}, "channels"),
        ({"kernel_sizes": (7, 5, 3)}, "kernel_sizes"),
        ({"kernel_sizes": (7, 4)}, "kernel_sizes"),
        ({"kernel_sizes": (7.0, 5)}, "kernel_sizes"),
        ({"small_kernel": 4}, "small_kernel"),
        ({"small_kernel": 7}, "small_kernel"),
        ({"small_kernel": 0}, "small_kernel"),
        ({"dw_ratio": 0}, "dw_ratio"),
        ({"dw_ratio": 0.01}, "dw_ratio"),
        ({"ffn_ratio": float("nan")}, "ffn_ratio"),
        ({"drop_path_rate": 1.0}, "drop_path_rate"),
        ({"in_channels": 0}, "in_channels"),
        ({"num_classes": -1}, "num_classes"),
        ({"out_indices": ()}, "out_indices"),
        ({"out_indices": (2,)}, "out_indices"),
        ({"out_indices": (1, 0)}, "out_indices"),
        ({"shortcut": 1}, "shortcut"),
        ({"norm_intermediate_features": "no"}, "norm_intermediate_features"),
        ({"gradient_checkpointing": None}, "gradient_checkpointing"),
    ],
)
def test_invalid_value_is_refused_by_name(override: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}="):
        RepLKNetConfig(**(VALID | override))


def test_sequences_become_tuples_and_the_config_is_frozen() -> None:
    config = RepLKNetConfig(**(VALID | {"layers": [1, 2], "out_indices": [0, 1]}))
    assert config.layers == (1, 2)
    assert config.out_indices == (0, 1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.layers = (3, 3)  # type: ignore[misc]


def test_drop_path_grows_linearly_over_the_pairs() -> None:
    config = RepLKNetConfig(**VALID, drop_path_rate=0.4)
    assert config.drop_path_rates == pytest.approx((0.0, 0.2, 0.4))
    assert RepLKNetConfig(layers=(1,), channels=(8,), kernel_sizes=(7,)).drop_path_rates == (0.0,)


def test_published_kernel_sizes() -> None:
    own = {name: config for name, config in PRESETS.items() if isinstance(config, RepLKNetConfig)}
    assert {name: config.kernel_sizes for name, config in own.items() if "nano" not in name} == {
        "replknet_31b": (31, 29, 27, 13),
        "replknet_31l": (31, 29, 27, 13),
        "replknet_xl": (27, 27, 27, 13),
    }
