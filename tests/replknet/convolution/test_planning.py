"""The choice of ways: a function of shapes, layout, data type, device and instruction set."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from replknet.convolution import planning
from replknet.convolution.planning import Plan, plan_of

SMALL = ((1, 64, 7, 7), (64, 1, 3, 3))
LARGE = ((8, 128, 56, 56), (128, 1, 31, 31))
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def plan(
    shape: tuple[int, ...],
    kernel: tuple[int, ...],
    memory_format: torch.memory_format = torch.contiguous_format,
    method: str = "auto",
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    needs: bool = True,
) -> Plan:
    x = torch.empty(shape, dtype=dtype, device=device).contiguous(memory_format=memory_format)
    return plan_of(x, torch.empty(kernel), method, input_gradient=needs, weight_gradient=needs)


@pytest.fixture
def forget() -> Iterator[None]:
    yield
    planning.processor.cache_clear()
    planning._plan.cache_clear()


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize("capability", ["AVX512", "AVX2", "DEFAULT"])
def test_large_kernels_leave_conv2d_on_large_maps_and_small_ones_never(
    monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    planning.processor.cache_clear()
    planning._plan.cache_clear()
    for memory_format in LAYOUTS:
        small, large = plan(*SMALL, memory_format), plan(*LARGE, memory_format)
        assert small.plain and not small.crops
        assert (large.output, large.input_gradient, large.weight_gradient) == ("fft", "fft", "fft")
        assert large.keeps_spectra and not large.plain


def test_other_devices_types_and_empty_maps_are_plain() -> None:
    for other in (
        plan(*LARGE, device="meta"),
        plan((0, 128, 56, 56), LARGE[1]),
        plan((8, 128, 56, 0), LARGE[1]),
        plan(*LARGE, dtype=torch.int64),
        plan(*LARGE, dtype=torch.complex64),
    ):
        assert other == Plan()


@pytest.mark.parametrize("method", ["fft", "direct"])
def test_a_method_insists_on_one_way(method: str) -> None:
    found = plan(*SMALL, method=method)
    assert (found.output, found.input_gradient, found.weight_gradient) == (method, method, method)
    assert not found.plain


def test_a_plan_is_for_what_the_call_needs() -> None:
    """Spectra are kept for a weight gradient only, and taps are cut where conv2d would multiply them by zeros."""
    assert not plan(*LARGE, needs=False).keeps_spectra
    beyond = ((1, 64, 7, 7), (64, 1, 31, 31))
    assert plan(*beyond).crops
    alone = plan(*beyond, torch.channels_last, needs=False)
    assert alone.plain and not alone.crops
    assert not plan((1, 64, 16, 16), beyond[1]).crops


def test_one_channel_never_takes_the_weight_gradient_that_is_unsafe() -> None:
    for size in (7, 20):
        for kernel in (3, 13, 31):
            assert plan((2, 1, size, size), (1, 1, kernel, kernel)).weight_gradient != "native"


@pytest.mark.parametrize("dtype", planning.HALF)
def test_wide_kernels_of_half_precision_are_never_onednns(dtype: torch.dtype) -> None:
    for memory_format in LAYOUTS:
        found = plan((1, 64, 14, 14), (64, 1, 27, 27), memory_format, dtype=dtype)
        assert "native" not in (found.output, found.input_gradient, found.weight_gradient)


def test_plans_are_looked_up_once() -> None:
    assert plan(*LARGE) is plan(*LARGE)
    assert plan(*LARGE) is not plan(*LARGE, needs=False)
    assert replace(plan(*LARGE), keeps_spectra=False) == plan(*LARGE, needs=False)


@pytest.mark.usefixtures("forget")
@pytest.mark.parametrize("capability", ["AVX512", "AVX2"])
def test_contiguous_maps_leave_conv2d_for_kernels_that_reach_far_sideways_only(
    monkeypatch: pytest.MonkeyPatch, capability: str
) -> None:
    """oneDNN names its kernels (ONEDNN_VERBOSE=1): jit_dw for 49 x 5, and a product of matrices for 5 x 49."""
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    planning.processor.cache_clear()
    planning._plan.cache_clear()
    tall, wide = (plan((8, 249, 28, 28), (249, 1, *sides)) for sides in ((49, 5), (5, 49)))
    assert tall.output == "native"
    assert wide.output != "native" and wide.arrangement is torch.channels_last
    for found in (tall, wide):  # where it multiplies every zero outside the map
        assert found.weight_gradient == "fft"


def test_taps_of_a_strip_are_cut_along_the_strip() -> None:
    for memory_format in LAYOUTS:
        assert plan((1, 499, 14, 14), (499, 1, 47, 5), memory_format).crops
        assert plan((1, 499, 14, 14), (499, 1, 5, 47), memory_format).crops
        assert not plan((1, 499, 14, 14), (499, 1, 27, 5), memory_format).crops


def test_what_an_output_promises_to_take_grows_with_the_kernel_and_the_images() -> None:
    x = torch.empty(2, 124, 56, 56)
    times = [planning.output_time(x, torch.Size((124, 1, *sides))) for sides in ((5, 5), (51, 5), (51, 51))]
    assert 0 < times[0] < times[1] < times[2]
    one = planning.output_time(x[:1], torch.Size((124, 1, 51, 5)))
    assert times[1] == pytest.approx(2 * one, rel=0.1)
