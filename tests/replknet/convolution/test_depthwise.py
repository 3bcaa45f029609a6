"""The depthwise convolution and its gradients against conv2d in float64, every way it is computed."""

from typing import cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from replknet import DepthwiseConv2d, depthwise_conv2d
from replknet.convolution.planning import Method
from tests.replknet.convolution.reference import METHODS, random, reference, relative_error, with_gradients


def test_a_delta_kernel_shifts_the_map() -> None:
    x = random(2, 1, 4, 5)
    weight = torch.zeros(1, 1, 5, 5, dtype=torch.float64)
    weight[0, 0, 0, 3] = 1  # two rows up, one column right of the centre
    expected = torch.zeros_like(x)
    expected[..., 2:, :4] = x[..., :2, 1:]
    for method in METHODS:
        torch.testing.assert_close(depthwise_conv2d(x, weight, method=method), expected, rtol=0, atol=1e-14)


@settings(max_examples=120, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 5), st.integers(1, 9), st.integers(1, 20), st.integers(1, 20)),
    kernel=st.tuples(st.integers(0, 25), st.integers(0, 25)),
    layout=st.sampled_from(("contiguous", "channels_last", "strided")),
    method=st.sampled_from(METHODS),
)
def test_equals_conv2d_in_every_direction(
    shape: tuple[int, int, int, int], kernel: tuple[int, int], layout: str, method: Method
) -> None:
    x, grad = random(*shape), random(*shape, seed=1)
    if layout == "channels_last":
        x, grad = (tensor.contiguous(memory_format=torch.channels_last) for tensor in (x, grad))
    elif layout == "strided":
        x = x.transpose(2, 3).contiguous().transpose(2, 3)
        grad = random(2 * shape[0], *shape[1:])[::2]
    weight = random(shape[1], 1, 2 * kernel[0] + 1, 2 * kernel[1] + 1, seed=2)
    found = with_gradients(lambda x, weight: depthwise_conv2d(x, weight, method=method), x, weight, grad)
    for tensor, expected in zip(found, with_gradients(reference, x, weight, grad), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_float32_error_against_conv2d(method: Method) -> None:
    """Relative to the largest value: at most 3 times conv2d's; with FFTs on maps of at least K >= 27 at most half.

    conv2d's own error counts as no less than the rounding of the result. A 3x3 kernel is never given to FFTs by
    "auto"; forced, its error is twice conv2d's sum of nine terms, seldom up to 4 times.
    """
    generator = torch.Generator().manual_seed(4)
    for index in range(36):
        num_images, channels = (int(torch.randint(1, 4, (), generator=generator)) for _ in range(2))
        size = int(torch.randint(5, 60, (), generator=generator))
        kernel = (3, 5, 7, 9, 13, 17, 21, 27, 31, 35, 41, 51)[index % 12]
        x, grad = (random(num_images, 8 * channels, size, size, seed=index + i) for i in (0, 100))
        weight = random(8 * channels, 1, kernel, kernel, seed=index)
        exact = with_gradients(reference, x.float().double(), weight.float().double(), grad.float().double())
        ours = with_gradients(
            lambda x, weight: depthwise_conv2d(x, weight, method=method), x.float(), weight.float(), grad.float()
        )
        theirs = with_gradients(reference, x.float(), weight.float(), grad.float())
        for direction in range(3):
            error, theirs_error = (relative_error(result[direction], exact[direction]) for result in (ours, theirs))
            factor = 4.0 if method == "fft" and kernel == 3 else 3.0
            if method == "fft" and 27 <= kernel <= size and direction < 2:
                factor = 0.5
            assert error <= factor * max(theirs_error, 2**-24), (num_images, channels, size, kernel, direction)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_half_precision_is_as_exact_as_its_rounding(
    method: Method, dtype: torch.dtype, memory_format: torch.memory_format
) -> None:
    x, weight, grad = random(2, 4, 40, 40, dtype=dtype), random(4, 1, 31, 31, dtype=dtype), random(2, 4, 40, 40)
    x, grad = x.contiguous(memory_format=memory_format), grad.contiguous(memory_format=memory_format)
    found = with_gradients(lambda x, weight: depthwise_conv2d(x, weight, method=method), x, weight, grad.to(dtype))
    exact = with_gradients(reference, x.double(), weight.double(), grad.to(dtype).double())
    for tensor, expected in zip(found, exact, strict=True):
        assert tensor.dtype == dtype
        assert torch.isfinite(tensor).all()
        assert relative_error(tensor, expected) < 2 * torch.finfo(dtype).eps


def test_large_values_do_not_overflow_in_float16() -> None:
    x = torch.full((1, 1, 32, 32), 100.0, dtype=torch.float16)
    weight = torch.full((1, 1, 31, 31), 0.01, dtype=torch.float16)
    out = depthwise_conv2d(x, weight, method="fft")
    assert relative_error(out, reference(x.double(), weight.double())) < 1e-3


def test_autocast_gives_what_conv2d_gives() -> None:
    x, weight = random(2, 8, 30, 30, dtype=torch.float32), random(8, 1, 31, 31, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for method in METHODS:
            out = depthwise_conv2d(x, weight, method=method)
            assert out.dtype == reference(x, weight).dtype == torch.bfloat16
            exact = depthwise_conv2d(x.double(), weight.double(), method=method)
            assert exact.dtype == reference(x.double(), weight.double()).dtype == torch.float64
            assert relative_error(out, reference(x.double(), weight.double())) < 0.02


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [6, 40])
def test_layout_is_kept(method: Method, memory_format: torch.memory_format, size: int) -> None:
    x = random(2, 16, size, size, dtype=torch.float32).contiguous(memory_format=memory_format).requires_grad_()
    out = depthwise_conv2d(x, random(16, 1, 31, 31, dtype=torch.float32), method=method)
    grad = torch.autograd.grad(out, x, torch.randn_like(out))[0]
    assert out.is_contiguous(memory_format=memory_format)
    assert grad.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("num_images", [1, 2])
@pytest.mark.parametrize("size", [5, 40])
def test_the_result_may_be_changed_in_place(
    method: Method, memory_format: torch.memory_format, num_images: int, size: int
) -> None:
    for dtype in (torch.float32, torch.float64):
        x = random(num_images, 4, size, size, dtype=dtype).contiguous(memory_format=memory_format).requires_grad_()
        weight = random(4, 1, 31, 31, dtype=dtype).requires_grad_()
        out = depthwise_conv2d(x, weight, method=method).mul_(2)
        expected = 2 * reference(x, weight)
        torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)
        found = torch.autograd.grad(out.sum(), (x, weight))
        torch.testing.assert_close(found, torch.autograd.grad(expected.sum(), (x, weight)), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("method", METHODS)
def test_empty_batch(method: Method) -> None:
    x, weight = torch.zeros(0, 3, 8, 8, requires_grad=True), torch.ones(3, 1, 31, 31, requires_grad=True)
    out = depthwise_conv2d(x, weight, torch.zeros(3), method)
    torch.autograd.backward(out.sum())
    assert out.shape == (0, 3, 8, 8)
    assert weight.grad is not None and not weight.grad.any()


def test_state_dict_is_that_of_conv2d() -> None:
    ours = DepthwiseConv2d(6, 7, bias=True)
    theirs = torch.nn.Conv2d(6, 6, 7, padding=3, groups=6)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sides", [(13, 3), (3, 13)])
def test_a_layer_with_rectangular_kernels(sides: tuple[int, int]) -> None:
    ours = DepthwiseConv2d(6, sides, bias=True)
    theirs = torch.nn.Conv2d(6, 6, sides, padding=(sides[0] // 2, sides[1] // 2), groups=6)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 9, 11)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)
    assert ours.padding == theirs.padding


def test_other_devices_get_the_plain_convolution() -> None:
    layer = DepthwiseConv2d(6, 31).to("meta")
    assert layer(torch.empty(2, 6, 9, 9, device="meta")).shape == (2, 6, 9, 9)


BOTH = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("memory_format", BOTH)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_stays_in_its_image_and_channel(
    method: Method, memory_format: torch.memory_format, value: float
) -> None:
    """As conv2d has it, but that FFTs fill the map; the other maps are those of a call without it, to the bit."""
    x, grad = (
        random(4, 6, 20, 20, dtype=torch.float32, seed=seed).contiguous(memory_format=memory_format) for seed in (0, 1)
    )
    weight = random(6, 1, 13, 13, dtype=torch.float32)
    spoilt, spoilt_grad = x.clone(), grad.clone()
    spoilt[1, 2, 3, 4] = value
    spoilt_grad[2, 5, 0, 0] = value
    expected = depthwise_conv2d(x.requires_grad_(), weight, method=method)
    found = depthwise_conv2d(spoilt.requires_grad_(), weight, method=method)
    by_conv2d = reference(spoilt, weight)
    assert not (torch.isfinite(found) & ~torch.isfinite(by_conv2d)).any()
    assert not torch.isfinite(found[1, 2, 3:10, 4:11]).any()
    (grad_found,) = torch.autograd.grad(found, spoilt, spoilt_grad)
    (grad_expected,) = torch.autograd.grad(expected, x, grad)
    assert not torch.isfinite(grad_found[2, 5, :7, :7]).any()
    for spoilt_map, whole, place in ((found, expected, (1, 2)), (grad_found, grad_expected, (2, 5))):
        others = torch.ones(4, 6, dtype=torch.bool)
        others[place] = False
        assert torch.equal(spoilt_map[others], whole[others])


@pytest.mark.parametrize("method", METHODS)
def test_images_are_as_exact_alone_as_beside_one_that_is_far_larger(method: Method) -> None:
    x = random(2, 3, 30, 30, dtype=torch.float32)
    weight = random(3, 1, 31, 31, dtype=torch.float32)
    alone = depthwise_conv2d(x, weight, method=method)
    x[0] *= 1e30
    assert torch.equal(depthwise_conv2d(x, weight, method=method)[1], alone[1])
    expected = reference(x.double(), weight.double())
    for image in range(2):
        assert relative_error(depthwise_conv2d(x, weight, method=method)[image], expected[image]) < 2e-6


@pytest.mark.parametrize(
    ("x_shape", "weight_shape", "method", "message"),
    [
        ((1, 3, 8, 8), (3, 1, 4, 5), "auto", "odd Kh and Kw"),
        ((1, 3, 8, 8), (4, 1, 5, 5), "auto", "weight of shape"),
        ((3, 8, 8), (3, 1, 5, 5), "auto", "expected x of shape"),
        ((1, 3, 8, 8), (3, 1, 5, 5), "winograd", "method='winograd'"),
    ],
)
def test_refuses(x_shape: tuple[int, ...], weight_shape: tuple[int, ...], method: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        depthwise_conv2d(torch.zeros(x_shape), torch.zeros(weight_shape), method=cast("Method", method))
    with pytest.raises(ValueError, match="kernel_size=4"):
        DepthwiseConv2d(3, 4)
    with pytest.raises(ValueError, match=r"kernel_size=\(5, 4\)"):
        DepthwiseConv2d(3, (5, 4))
    with pytest.raises(ValueError, match="channels=0"):
        DepthwiseConv2d(0, 3)


@pytest.mark.parametrize("empty", [(2, 0, 4, 4), (2, 3, 0, 4), (2, 3, 4, 0)])
def test_maps_without_a_channel_or_a_pixel_are_refused_as_conv2d_does(empty: tuple[int, ...]) -> None:
    x, weight = torch.zeros(empty), torch.zeros(empty[1], 1, 3, 5)
    with pytest.raises(ValueError, match=r"x of shape \(2, .*at least one channel and pixel"):
        depthwise_conv2d(x, weight)
    assert depthwise_conv2d(torch.zeros(0, 3, 4, 4), torch.zeros(3, 1, 3, 5)).shape == (0, 3, 4, 4)


@pytest.mark.parametrize("kernel", [3, 31])
@pytest.mark.parametrize("channels", [1, 3])
def test_refuses_what_conv2d_refuses(kernel: int, channels: int) -> None:
    """Every bias and data type is accepted by both, or by neither."""
    x, weight = torch.zeros(2, channels, 40, 40), torch.zeros(channels, 1, kernel, kernel)
    biases = [
        torch.zeros(shape) for shape in [(), (1,), (2,), (channels,), (channels, 1), (1, channels), (channels, 1, 1)]
    ]
    biases += [torch.zeros(channels, dtype=dtype) for dtype in (torch.float64, torch.bfloat16, torch.int64)]
    biases.append(torch.zeros(channels, device="meta"))
    weights = [weight.to(dtype) for dtype in (torch.float64, torch.float16, torch.int32)] + [weight.to("meta")]
    for device in ("cpu", "meta"):
        with pytest.raises(
            ValueError, match=r"^weight of torch.float64 on \w+: expected torch.float32 on \w+, as x is"
        ):
            depthwise_conv2d(x.to(device), weight.double().to(device))
    calls = [(weight, bias) for bias in biases] + [(other, None) for other in weights]
    for own_weight, bias in calls:
        accepted = True
        try:
            reference(x, own_weight, bias)
        except (RuntimeError, NotImplementedError):
            accepted = False
        here = own_weight.device == x.device and (bias is None or bias.device == x.device)
        if accepted and here:  # conv2d takes a bias from the meta device
            depthwise_conv2d(x, own_weight, bias)
        else:
            with pytest.raises(ValueError, match=r"^(bias|weight) of "):
                depthwise_conv2d(x, own_weight, bias)
