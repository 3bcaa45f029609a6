import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import replknet
from replknet.networks import folding
from tests.networks import randomize_norms, tiny_model

IMAGES = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def batch_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())


@pytest.mark.parametrize("level", ["kernels", "full"])
@pytest.mark.parametrize("overrides", [{}, {"small_kernel": None}, {"dw_ratio": 1.5, "small_kernel": 3}])
def test_the_function_is_unchanged_in_float64(level: Any, overrides: dict[str, Any]) -> None:
    model = tiny_model(**overrides)
    before = copy.deepcopy(model.state_dict())
    fast = replknet.reparameterize(model, level=level)
    with torch.no_grad():
        assert relative_error(fast(IMAGES), model(IMAGES)) < 1e-10
    assert list(before) == list(model.state_dict())
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert not fast.training


def test_full_level_leaves_no_batch_norm_and_one_kernel_per_block() -> None:
    fast = replknet.reparameterize(tiny_model())
    assert batch_norms(fast) == 0
    assert sum(isinstance(module, nn.Conv2d) for module in fast.modules()) == 4 + 5 * 3 + 5 * 2 + 3 * 2
    assert "stages.0.blocks.0.large_kernel.lkb_reparam.bias" in fast.state_dict()


def test_kernel_level_is_the_official_deploy_form(reference: Any) -> None:
    model = reference.load("tiny_official_flat.pth").float()
    merged = replknet.reparameterize(model, level="kernels").state_dict()
    official = replknet.load_state_dict(reference.path / "tiny_official_merged.pth")
    assert set(merged) == set(official)
    for key, value in official.items():
        torch.testing.assert_close(merged[key], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("level", ["kernels", "full"])
def test_a_second_call_changes_nothing(level: Any) -> None:
    once = replknet.reparameterize(tiny_model(), level=level)
    twice = replknet.reparameterize(once, level=level)
    assert list(once.state_dict()) == list(twice.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(once.parameters(), twice.parameters(), strict=True))


def test_full_after_kernels_after_a_merged_checkpoint(reference: Any) -> None:
    merged = reference.load("tiny_official_merged.pth")
    fast = replknet.reparameterize(merged)
    with torch.no_grad():
        assert relative_error(fast(IMAGES), merged(IMAGES)) < 1e-10
    assert batch_norms(fast) == 0


def test_in_place_and_switch_to_deploy() -> None:
    model = tiny_model()
    expected = model(IMAGES)
    assert replknet.reparameterize(model, level="kernels", inplace=True) is model
    model.switch_to_deploy()
    assert batch_norms(model) == 0
    assert relative_error(model(IMAGES), expected) < 1e-10


def test_synchronised_batch_norm_is_folded_too() -> None:
    model = tiny_model()
    convert: Callable[[nn.Module], nn.Module] = nn.SyncBatchNorm.convert_sync_batchnorm
    synchronised = convert(copy.deepcopy(model)).eval()
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synchronised.modules())
    assert relative_error(replknet.reparameterize(synchronised)(IMAGES), model(IMAGES)) < 1e-10


def test_a_network_inside_another_module_is_found() -> None:
    wrapped = nn.Sequential(nn.Identity(), tiny_model())
    fast = replknet.reparameterize(wrapped)
    assert batch_norms(fast) == 0
    assert relative_error(fast(IMAGES), wrapped(IMAGES)) < 1e-10


def test_norms_with_nothing_to_fold_into_stay_and_keep_working() -> None:
    maps = tiny_model(out_indices=(0, 3), norm_intermediate_features=True, num_classes=0)
    for actual, expected in zip(replknet.reparameterize(maps)(IMAGES), maps(IMAGES), strict=True):
        assert relative_error(actual, expected) < 1e-10
    pooled = tiny_model(num_classes=0)
    fast = replknet.reparameterize(pooled)
    assert batch_norms(fast) == 1
    assert relative_error(fast(IMAGES), pooled(IMAGES)) < 1e-10


def test_frozen_weights_stay_frozen_and_the_dtype_stays() -> None:
    model = tiny_model().to(torch.bfloat16).requires_grad_(False)
    fast = replknet.reparameterize(model)
    assert {parameter.dtype for parameter in fast.parameters()} == {torch.bfloat16}
    assert not any(parameter.requires_grad for parameter in fast.parameters())
    assert all(parameter.requires_grad for parameter in replknet.reparameterize(tiny_model()).parameters())


def test_unknown_level_and_missing_statistics_are_refused() -> None:
    with pytest.raises(ValueError, match="level='half'"):
        replknet.reparameterize(tiny_model(), level="half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="running statistics"):
        folding.batch_norm_affine(nn.BatchNorm2d(3, track_running_stats=False))


def test_a_strip_is_embedded_in_the_middle_of_a_square() -> None:
    strip = torch.arange(1.0, 7.0).view(1, 1, 3, 2)[..., :1]  # 1, 3, 5 from above
    expected = torch.zeros(5, 5)
    expected[1:4, 2] = torch.tensor([1.0, 3.0, 5.0])
    torch.testing.assert_close(folding.embed_kernel(strip, 5)[0, 0], expected)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 5), st.sampled_from([3, 5, 9]), st.sampled_from([1, 3]), st.booleans(), st.integers(0, 2**31 - 1))
def test_pure_functions_on_random_layers(channels: int, size: int, small: int, affine: bool, seed: int) -> None:
    torch.manual_seed(seed)
    x = torch.randn(2, channels, 7, 6, dtype=torch.float64)
    bn = nn.BatchNorm2d(channels, affine=affine).double().eval()
    if affine:
        randomize_norms(bn, seed)
    scale, shift = folding.batch_norm_affine(bn)
    weight = torch.randn(channels, 1, size, size, dtype=torch.float64)
    folded = folding.fold_norm_after(weight, None, scale, shift)
    conv = F.conv2d(x, weight, padding=size // 2, groups=channels)
    torch.testing.assert_close(F.conv2d(x, *folded, padding=size // 2, groups=channels), bn(conv))
    pointwise = torch.randn(4, channels, 1, 1, dtype=torch.float64)
    bias = torch.randn(4, dtype=torch.float64)
    before = folding.fold_norm_before(pointwise, bias, scale, shift)
    torch.testing.assert_close(F.conv2d(x, *before), F.conv2d(bn(x), pointwise, bias))
    kernel = torch.randn(channels, 1, small, small, dtype=torch.float64)
    torch.testing.assert_close(
        F.conv2d(x, folding.embed_kernel(kernel, size), padding=size // 2, groups=channels),
        F.conv2d(x, kernel, padding=small // 2, groups=channels),
    )
