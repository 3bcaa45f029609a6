"""The depthwise convolution against float64 conv2d, its gradients of any order, and every way of transforming it."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from replknet import DepthwiseConv2d, cost, depthwise, depthwise_conv2d, spectral

Method = Literal["auto", "direct", "fft"]
METHODS: tuple[Method, ...] = ("auto", "direct", "fft")


def reference(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.conv2d(x, weight, bias, padding=(weight.shape[2] // 2, weight.shape[3] // 2), groups=x.shape[1])


def random(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def with_gradients(function: Any, x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    out = function(x, weight)
    return (out.detach(), *torch.autograd.grad(out, (x, weight), grad))


def relative_error(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected).abs().max() / expected.abs().max().clamp_min(1e-300))


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
@pytest.mark.parametrize("shape", [(2, 2, 4, 5), (1, 3, 5, 4), (3, 1, 1, 1)])
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # PyTorch's own, when forward mode is first used
def test_gradients_of_first_and_second_order_in_both_modes(method: Method, shape: tuple[int, ...]) -> None:
    x, weight, bias = random(*shape), random(shape[1], 1, 5, 7, seed=1), random(shape[1], seed=2)
    inputs = tuple(tensor.requires_grad_() for tensor in (x, weight, bias))
    function = lambda x, weight, bias: depthwise_conv2d(x, weight, bias, method)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)
    # One gradient at a time: the other input is a constant.
    for position in range(3):
        some = tuple(tensor.detach().requires_grad_(i == position) for i, tensor in enumerate(inputs))
        assert torch.autograd.gradcheck(function, some, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, some)


def test_the_map_is_kept_only_for_the_weight_gradient() -> None:
    x = random(2, 3, 20, 20).requires_grad_()
    kept: list[torch.Size] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    for needs_weight in (False, True):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            depthwise_conv2d(x, random(3, 1, 9, 9).requires_grad_(needs_weight), method="fft")
        assert (x.shape in kept) == needs_weight


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


@pytest.mark.parametrize("method", METHODS)
def test_vmap_over_maps_kernels_and_both(method: Method) -> None:
    xs, weights, bias = random(3, 2, 4, 12, 12), random(4, 3, 1, 13, 13), random(4, seed=3)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return depthwise_conv2d(x, weight, bias, method)

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return function(x, weight).square().sum()

    def slow(function: Any, x_dim: int | None, weight_dim: int | None) -> list[Any]:
        return [
            function(xs[i] if x_dim is not None else xs[0], weights[:, i] if weight_dim is not None else weights[:, 0])
            for i in range(3)
        ]

    for x_dim, weight_dim in ((0, None), (None, 1), (0, 1)):
        inputs = (xs if x_dim is not None else xs[0], weights if weight_dim is not None else weights[:, 0])
        found = torch.vmap(function, (x_dim, weight_dim))(*inputs)
        torch.testing.assert_close(found, torch.stack(slow(function, x_dim, weight_dim)))
        with torch.no_grad():
            torch.testing.assert_close(torch.vmap(function, (x_dim, weight_dim))(*inputs), found)
        both = torch.func.grad(loss, (0, 1))
        per_sample = torch.vmap(both, (x_dim, weight_dim))(*inputs)
        for position in range(2):
            expected = torch.stack([gradients[position] for gradients in slow(both, x_dim, weight_dim)])
            torch.testing.assert_close(per_sample[position], expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("method", METHODS)
def test_forward_mode_of_torch_func_agrees_with_conv2d(method: Method) -> None:
    x, weight, bias = random(2, 2, 5, 4), random(2, 1, 7, 3), random(2, seed=3)

    def loss(convolution: Any) -> Any:
        return lambda x, weight: convolution(x, weight, bias).pow(3).sum()

    ours = loss(lambda x, weight, bias: depthwise_conv2d(x, weight, bias, method))
    found, expected = (torch.func.hessian(function, (0, 1))(x, weight) for function in (ours, loss(reference)))
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        inputs = (x, weight)
        found, expected = (torch.func.jvp(function, inputs, inputs)[1] for function in (ours, loss(reference)))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic: bool) -> None:
    layer = DepthwiseConv2d(4, 31, bias=True).double()
    bias = cast("Tensor", layer.bias)
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (24, 40):
        x = random(2, 4, size, size).requires_grad_()
        out = compiled(x)
        torch.testing.assert_close(out, reference(x, layer.weight, bias))
        found = torch.autograd.grad(out.square().sum(), (x, layer.weight, bias))
        expected = torch.autograd.grad(reference(x, layer.weight, bias).square().sum(), (x, layer.weight, bias))
        torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_operators_keep_their_contract() -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = random(2, 4, 9, 9).contiguous(memory_format=memory_format).requires_grad_()
        weight = random(4, 1, 13, 13).requires_grad_()
        for method in METHODS:
            torch.library.opcheck(torch.ops.replknet.depthwise_conv2d.default, (x, weight, None, method))
            arguments = (x.detach(), x.detach(), weight.detach(), True, False, method)
            torch.library.opcheck(torch.ops.replknet.depthwise_conv2d_backward.default, arguments)


def test_exports_as_a_plain_convolution() -> None:
    layer = DepthwiseConv2d(4, 31).eval()
    example = torch.randn(2, 4, 40, 40)
    program = torch.export.export(layer, (example,), dynamic_shapes=({0: torch.export.Dim("batch"), 2: None, 3: None},))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == ["aten.conv2d.default"]
    torch.testing.assert_close(program.module()(example), layer(example), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [20, 32, 48])
def test_a_layer_in_evaluation_takes_batches_of_any_length(dtype: torch.dtype, size: int) -> None:
    """Even and odd ones have spectra of another kind, at one length of the transform."""
    layer = DepthwiseConv2d(4, 31).eval().to(dtype)
    for num_images in (2, 1, 3, 4, 1, 2):
        x = random(num_images, 4, size, size, dtype=dtype)
        for out in (layer(x), depthwise._depthwise_conv2d(x, layer.weight, None, "fft", layer._spectra)):
            torch.testing.assert_close(out, reference(x, layer.weight), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(2, 1, 13, 7), (2, 1, 13, 4), (1, 1, 13, 7)])
def test_weight_gradient_of_one_channel_and_a_kernel_beyond_the_map(method: Method, shape: tuple[int, ...]) -> None:
    """Of kernels cropped to such maps, oneDNN's own weight gradient is wrong or ends the process."""
    for seed in range(10):
        x, grad = random(*shape, dtype=torch.float32, seed=seed), random(*shape, dtype=torch.float32, seed=seed + 100)
        weight = random(1, 1, 31, 31, dtype=torch.float32)
        found = with_gradients(lambda x, weight: depthwise_conv2d(x, weight, method=method), x, weight, grad)
        exact = with_gradients(reference, x.double(), weight.double(), grad.double())
        for tensor, expected in zip(found, exact, strict=True):
            assert relative_error(tensor, expected) < 1e-5


def test_spectra_follow_the_weights() -> None:
    layer = DepthwiseConv2d(3, 31).eval()
    x = random(2, 3, 64, 64, dtype=torch.float32)
    assert cost.plan(x.shape, layer.weight.shape, x.dtype, False, torch.get_num_threads()).output in ("direct", "fft")

    def check() -> None:
        expected = reference(x, layer.weight)
        found = depthwise._depthwise_conv2d(x, layer.weight, None, "fft", layer._spectra)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)

    check()
    kept = layer._spectra._entry
    check()
    assert kept is not None and layer._spectra._entry is kept
    with torch.no_grad():
        layer.weight.mul_(2)
    check()
    layer.weight.data.neg_()  # leaves the version counter as it was
    check()
    layer.weight.detach().numpy()[0, 0, 3, 3] = 5.0
    check()
    layer.load_state_dict({"weight": torch.randn(3, 1, 31, 31)})
    check()
    layer.double()
    x = x.double()
    check()


def test_copies_and_pickles_without_the_spectra() -> None:
    layer = DepthwiseConv2d(64, 31).eval()
    x = random(2, 64, 56, 56, dtype=torch.float32)
    out = layer(x)
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin._spectra._entry is None
        assert torch.equal(twin(x), out)


def test_threads_share_a_layer() -> None:
    layer = DepthwiseConv2d(4, 31).eval()
    inputs = [random(1, 4, size, size, dtype=torch.float32) for size in (40, 48, 56, 64) * 4]

    def run(x: Tensor) -> Tensor:
        return depthwise._depthwise_conv2d(x, layer.weight, None, "fft", layer._spectra)

    with torch.no_grad(), ThreadPoolExecutor(4) as pool:
        for x, out in zip(inputs, pool.map(run, inputs), strict=True):
            torch.testing.assert_close(out, reference(x, layer.weight), rtol=1e-4, atol=1e-4)


def test_state_dict_is_that_of_conv2d() -> None:
    ours = DepthwiseConv2d(6, 7, bias=True)
    theirs = torch.nn.Conv2d(6, 6, 7, padding=3, groups=6)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 9, 9)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-4, atol=1e-5)


def test_other_devices_get_the_plain_convolution() -> None:
    layer = DepthwiseConv2d(6, 31).to("meta")
    assert layer(torch.empty(2, 6, 9, 9, device="meta")).shape == (2, 6, 9, 9)


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


def test_transform_lengths_hold_the_lags_and_are_smooth() -> None:
    assert [spectral.transform_length(n) for n in (1, 2, 15, 27, 41, 43, 69, 86, 271)] == [
        *(1, 2, 16, 28, 42, 44, 72, 88, 280)
    ]


def test_the_plan_follows_the_instruction_set(monkeypatch: pytest.MonkeyPatch) -> None:
    """Large kernels on large maps leave conv2d; small ones never do, whatever the processor."""
    small = (torch.Size((1, 64, 7, 7)), torch.Size((64, 1, 3, 3)))
    large = (torch.Size((8, 128, 56, 56)), torch.Size((128, 1, 31, 31)))
    for capability in ("AVX512", "AVX2", "DEFAULT"):
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda value=capability: value)
        cost.processor.cache_clear()
        cost.plan.cache_clear()
        for channels_last in (False, True):
            native = cost.Plan("native", "native", "native", crops=False)
            assert cost.plan(*small, torch.float32, channels_last, 2) == native
            assert cost.plan(*large, torch.float32, channels_last, 2) == cost.Plan("fft", "fft", "fft", crops=False)
    monkeypatch.undo()
    cost.processor.cache_clear()
    cost.plan.cache_clear()
