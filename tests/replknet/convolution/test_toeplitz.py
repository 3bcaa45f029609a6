"""Depthwise convolution by matrix products: its arithmetic under the interpreter, and on a GPU where there is one."""

import os
import subprocess
import sys
import warnings
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from replknet import DepthwiseConv2d, depthwise_conv2d
from replknet.convolution import planning, tiles, toeplitz
from replknet.convolution.tiles import KernelError, Tile, TooLargeError
from replknet.convolution.toeplitz import Precision
from tests.replknet.convolution.reference import random, reference, relative_error, with_gradients

triton = pytest.importorskip("triton", reason="Triton is not installed: PyTorch brings it on Linux")
ON_GPU = torch.cuda.is_available()
cuda = pytest.mark.skipif(not ON_GPU, reason="no CUDA device")

SHAPES = [
    # N, C, H, W, Kh, Kw
    (2, 2, 7, 7, 13, 13),
    (1, 3, 14, 14, 27, 27),
    (2, 1, 28, 28, 29, 29),
    (3, 1, 20, 56, 31, 31),
    (1, 1, 9, 100, 31, 31),
    (1, 1, 40, 9, 51, 5),
    (1, 2, 9, 70, 5, 51),
    (1, 2, 33, 33, 3, 3),
    (2, 3, 1, 9, 5, 5),
    (2, 3, 9, 1, 5, 7),
    (3, 2, 1, 1, 3, 3),
    (1, 1, 3, 40, 1, 151),
    (1, 5, 6, 5, 51, 51),
]
"""Every width of tile, maps of one row or column, kernels larger than the map, and such as are not square."""
BOUNDS = {torch.float16: 1e-3, torch.bfloat16: 8e-3, torch.float32: 1e-6}
"""Of the largest error over the largest value: the rounding of the result, which the interpreter cuts off."""


@pytest.fixture(scope="module")
def device() -> str:
    """A GPU, or the CPU under Triton's interpreter (conftest.py)."""
    return "cuda" if ON_GPU else "cpu"


def errors(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: str,
    *,
    last: bool = False,
    precision: Precision = "exact",
    **tiles: Any,
) -> list[float]:
    """Of output, input gradient and weight gradient against conv2d in float64."""
    num_images, channels, height, width, *kernel = shape
    layout = torch.channels_last if last else torch.contiguous_format
    x, grad = (
        random(num_images, channels, height, width, dtype=dtype, seed=seed).to(device).contiguous(memory_format=layout)
        for seed in (0, 1)
    )
    weight = random(channels, 1, *kernel, dtype=dtype, seed=2).to(device)
    bias = random(channels, dtype=dtype, seed=3).to(device)
    found = (
        toeplitz.correlate(x, weight, bias, precision=precision, **tiles),
        toeplitz.correlate(grad, weight, precision=precision, flipped=True, **tiles),
        toeplitz.weight_gradient(grad, x, (kernel[0], kernel[1]), precision=precision, **tiles),
    )
    assert found[0].stride() == x.stride()
    assert found[1].stride() == x.stride()
    assert found[0].dtype == dtype
    exact = with_gradients(
        lambda x, weight: reference(x, weight, bias.double().cpu()),
        *(tensor.double().cpu().contiguous() for tensor in (x, weight, grad)),
    )
    return [relative_error(tensor.cpu(), expected) for tensor, expected in zip(found, exact, strict=True)]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_conv2d_in_every_direction(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> None:
    assert max(errors(shape, dtype, device)) < BOUNDS[dtype]


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", BOUNDS)
def test_channels_last_maps_give_channels_last_maps(dtype: torch.dtype, device: str) -> None:
    for shape in ((2, 3, 14, 14, 13, 13), (1, 66, 2, 3, 3, 3)):
        assert max(errors(shape, dtype, device, last=True)) < BOUNDS[dtype]


@pytest.mark.cuda
def test_tf32_is_what_it_says(device: str) -> None:
    found = errors((1, 2, 28, 28, 29, 29), torch.float32, device, precision="tf32")
    assert 1e-7 < min(found) <= max(found) < 1e-4


@pytest.mark.cuda
def test_values_far_from_one_keep_their_relative_error(device: str) -> None:
    """Products of three bfloat16 numbers lose nothing at either end of what float32 sums hold."""
    for scale in (1e-12, 1e12):
        x, weight = (random(1, 2, 12, 12) * scale).float(), random(2, 1, 9, 9, seed=1).float()
        found = toeplitz.correlate(x.to(device), weight.to(device)).cpu()
        assert relative_error(found, reference(x.double(), weight.double())) < 1e-6


@pytest.mark.cuda
def test_no_images_and_slices_of_other_tensors(device: str) -> None:
    empty = torch.zeros(0, 3, 9, 9, device=device)
    weight = random(3, 1, 5, 5, dtype=torch.float32).to(device)
    assert toeplitz.correlate(empty, weight).shape == empty.shape
    assert torch.equal(toeplitz.weight_gradient(empty, empty, (5, 5)).cpu(), torch.zeros(3, 1, 5, 5))
    x = random(2, 4, 9, 10, dtype=torch.float16).to(device)[:, 1:, :, 1:]  # no row is aligned
    found = toeplitz.correlate(x, weight.half())
    assert (
        relative_error(found.cpu(), reference(x.double().cpu(), weight.half().double().cpu())) < BOUNDS[torch.float16]
    )


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_nothing_beside_the_maps_is_read(dtype: torch.dtype, device: str) -> None:
    """Maps, gradients and kernels lie among NaNs, which a zero beside them would not hide."""

    def among_nans(*shape: int, seed: int) -> Tensor:
        values = random(*shape, dtype=dtype, seed=seed)
        memory = torch.full((values.numel() + 8192,), torch.nan, dtype=dtype, device=device)
        memory[4096:-4096] = values.flatten().to(device)
        return memory[4096:-4096].view(shape)

    for num_images, channels, height, width, *kernel in (
        (3, 2, 14, 14, 27, 27),
        (5, 1, 6, 40, 9, 31),
        (1, 1, 9, 70, 3, 5),
    ):
        x, grad = (among_nans(num_images, channels, height, width, seed=seed) for seed in (0, 1))
        weight = among_nans(channels, 1, *kernel, seed=2)
        for found in (
            toeplitz.correlate(x, weight),
            toeplitz.correlate(grad, weight, flipped=True),
            toeplitz.weight_gradient(grad, x, (kernel[0], kernel[1])),
        ):
            assert found.isfinite().all()


@pytest.mark.cuda
def test_biases_and_views_of_any_kind(device: str) -> None:
    """Strided, expanded, and with the sign that a view of an imaginary part keeps beside its memory."""
    x, weight = (random(*shape, dtype=torch.float32).to(device) for shape in ((1, 4, 5, 5), (4, 1, 3, 3)))
    for bias in (random(8, dtype=torch.float32).to(device)[::2], torch.tensor([2.0], device=device).expand(4)):
        expected = reference(*(tensor.double().cpu() for tensor in (x, weight, bias)))
        assert relative_error(toeplitz.correlate(x, weight, bias).cpu(), expected) < 1e-6
    for maps, kernels in ((torch.complex(x, x).conj().imag, weight), (x, torch.complex(weight, weight).conj().imag)):
        expected = -reference(x.double().cpu(), weight.double().cpu())
        assert relative_error(toeplitz.correlate(maps, kernels).cpu(), expected) < 1e-6


@pytest.mark.cuda
def test_what_is_not_finite_stays_in_its_map(device: str) -> None:
    x = random(2, 2, 12, 12, dtype=torch.float16).to(device)
    weight = random(2, 1, 9, 9, dtype=torch.float16, seed=1).to(device)
    expected = toeplitz.correlate(x, weight)
    x[1, 0, 3, 3] = torch.nan
    found = toeplitz.correlate(x, weight)
    assert found[1, 0, 3, 3].isnan()
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1, 1], expected[1, 1])


@pytest.mark.cuda
@pytest.mark.parametrize("limit", [99 * 1024, 64 * 1024, 32 * 1024])
def test_less_shared_memory_takes_smaller_tiles(limit: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[Tile] = []
    fitting = tiles.fitting

    def record(tile: Tile, needs: Any, device: torch.device, compute: Any) -> Tensor:
        def note(tile: Tile) -> Tensor:
            used.append(tile)
            assert needs(tile) <= limit
            return cast("Tensor", compute(tile))

        return fitting(tile, needs, device, note)

    place = torch.device("cuda", torch.cuda.current_device()) if ON_GPU else torch.device("cpu")
    monkeypatch.setitem(tiles._SHARED_MEMORY, place, limit)
    monkeypatch.setattr(toeplitz, "fitting", record)
    for shape in ((2, 1, 14, 14, 13, 13), (8, 1, 12, 56, 13, 13), (1, 1, 9, 100, 13, 13)):
        for dtype in (torch.bfloat16, torch.float32):
            assert max(errors(shape, dtype, device)) < BOUNDS[dtype]
    assert used


def test_a_kernel_that_turns_out_too_large_is_tried_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cpu")
    monkeypatch.setitem(tiles._SHARED_MEMORY, device, 1000)
    tried: list[int] = []

    def compute(tile: Tile) -> Tensor:
        tried.append(tile.stages)
        if tile.stages > 1:
            raise TooLargeError
        return torch.ones(1)

    tile = Tile(4, 16, 2, 16, 64, 4, 4)
    assert tiles.fitting(tile, lambda tile: 100 * tile.stages, device, compute) == 1
    assert tried == [4, 3, 2, 1]
    assert tiles.shared_memory(device) == 199
    with pytest.raises(KernelError, match="no tile fits the 199 bytes"):
        tiles.fitting(tile, lambda tile: 200, device, compute)


@pytest.mark.cuda
def test_gradients_of_every_order(device: str) -> None:
    """Both maps are bilinear, so finite differences of any width are exact but for rounding."""

    def function(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return depthwise_conv2d(x, weight, bias, method="toeplitz")

    inputs = [
        random(*shape, dtype=torch.float32, seed=seed).to(device).requires_grad_()
        for seed, shape in enumerate([(1, 1, 3, 2), (1, 1, 3, 3), (1,)])
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that float64 would be better
        assert torch.autograd.gradcheck(function, inputs, eps=0.5, atol=1e-4, rtol=1e-4)
        assert torch.autograd.gradgradcheck(function, inputs, eps=0.5, atol=1e-3, rtol=1e-3)


@pytest.mark.cuda
def test_under_the_transforms_of_torch_func(device: str) -> None:
    x, weight = random(3, 2, 2, 5, 5, dtype=torch.float32), random(2, 1, 3, 3, dtype=torch.float32)
    found = torch.func.vmap(lambda x: depthwise_conv2d(x, weight.to(device), method="toeplitz"))(x.to(device))
    for one, maps in zip(found, x, strict=True):
        assert relative_error(one.cpu(), reference(maps.double(), weight.double())) < 1e-6


def test_what_cannot_be_insisted_on_is_refused() -> None:
    x, weight = random(1, 1, 5, 5), random(1, 1, 3, 3)
    with pytest.raises(ValueError, match=r"method='toeplitz' for torch\.float64: expected float32"):
        depthwise_conv2d(x, weight, method="toeplitz")
    program = "import torch, replknet; replknet.depthwise_conv2d(*torch.ones(2, 1, 1, 3, 3), method='toeplitz')"
    plain = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", program], env=plain, capture_output=True, text=True, timeout=120)
    assert "KernelError: Triton cannot run arrange on cpu" in done.stderr


def test_where_kernels_fail_conv2d_takes_over_with_one_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU whose Triton finds no compiler; the plan is that of a GPU, the tensors are the CPU's."""
    monkeypatch.setattr(toeplitz, "_FAILED", set())

    def plan_of(x: Tensor, weight: Tensor, method: str, **needs: bool) -> planning.Plan:
        way: planning.Way = "native" if x.device in toeplitz._FAILED else "toeplitz"
        return planning.Plan(way, way, way, plain=False)

    def fail(*_: Any, **__: Any) -> None:
        raise KernelError("Triton cannot run arrange on cpu (RuntimeError: no compiler)")

    monkeypatch.setattr("replknet.convolution.applying.plan_of", plan_of)
    monkeypatch.setattr("replknet.convolution.depthwise.plan_of", plan_of)
    monkeypatch.setattr(toeplitz, "_launch", fail)
    x, weight, grad = random(2, 3, 9, 9), random(3, 1, 5, 5, seed=1), random(2, 3, 9, 9, seed=2)
    with pytest.warns(UserWarning, match="no compiler") as caught:
        for _ in range(2):
            found = with_gradients(depthwise_conv2d, x, weight, grad)
    assert len(caught) == 1
    for tensor, expected in zip(found, with_gradients(reference, x, weight, grad), strict=True):
        torch.testing.assert_close(tensor, expected, rtol=1e-11, atol=1e-11)


def test_kernels_beyond_the_map_are_cut_before_any_way_that_may_take_ffts() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        plan = gpu_plan((16, 256, 14, 14), 31, dtype)
        assert plan.output == "toeplitz"
        assert plan.crops
        assert not gpu_plan((16, 256, 14, 14), 27, dtype).crops


def test_matrices_that_would_fill_the_memory_are_not_made() -> None:
    assert set(ways(gpu_plan((1, 64, 512, 512), 61))) == {"toeplitz"}
    for dtype in (torch.float32, torch.bfloat16):
        assert "toeplitz" not in ways(gpu_plan((1, 256, 512, 512), 511, dtype))


def test_without_triton_or_a_card_that_it_knows_it_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    device = torch.device("cuda", 0)
    monkeypatch.setattr(toeplitz, "_FAILED", set())
    monkeypatch.setattr(toeplitz, "_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    assert toeplitz.is_usable(device)
    assert not toeplitz.is_usable(torch.device("cpu"))
    monkeypatch.setattr(toeplitz, "_capability", lambda _: (7, 5))
    assert not toeplitz.is_usable(device)
    monkeypatch.setattr(toeplitz, "_capability", lambda _: (8, 0))
    monkeypatch.setattr(toeplitz, "_has_triton", lambda: False)
    assert not toeplitz.is_usable(device)


def gpu_plan(
    shape: tuple[int, ...],
    kernel: int,
    dtype: torch.dtype = torch.bfloat16,
    *,
    usable: bool = True,
    last: bool = False,
    method: str = "auto",
) -> planning.Plan:
    weight = torch.Size((shape[1], 1, kernel, kernel))
    return planning._plan_on_gpu(torch.Size(shape), weight, dtype, usable, False, last, method, (True, True))


def ways(plan: planning.Plan) -> tuple[str, str, str]:
    return plan.output, plan.input_gradient, plan.weight_gradient


def test_plans_for_a_gpu() -> None:
    for shape, kernel in (
        ((64, 128, 56, 56), 31),
        ((64, 512, 14, 14), 27),
        ((64, 1024, 7, 7), 13),
        ((64, 128, 56, 56), 5),
    ):
        assert ways(gpu_plan(shape, kernel)) == ("toeplitz",) * 3
    for kernel, way in ((3, "native"), (5, "native"), (7, "toeplitz"), (31, "toeplitz")):  # cuDNN is fast up to 5x5
        assert ways(gpu_plan((64, 128, 56, 56), kernel, last=True)) == (way,) * 3
    assert "toeplitz" in ways(gpu_plan((4096, 1024, 3, 3), 31, last=True))  # of which 5x5 taps meet the map
    assert ways(gpu_plan((64, 128, 56, 56), 31, torch.float32)) == ("fft",) * 3
    assert gpu_plan((64, 128, 56, 56), 31, torch.float32).keeps_spectra
    assert ways(gpu_plan((64, 512, 14, 14), 27, torch.float32)) == ("toeplitz",) * 3
    assert ways(gpu_plan((64, 128, 56, 56), 31, torch.float64)) == ("fft",) * 3
    assert gpu_plan((1, 4, 8, 8), 3).plain
    without = gpu_plan((64, 128, 56, 56), 31, usable=False)
    assert ways(without) == ("native",) * 3
    assert without.plain
    assert not gpu_plan((64, 128, 56, 56), 31, usable=False, last=True).plain  # never by cuDNN
    assert ways(gpu_plan((64, 128, 56, 56), 31, method="fft")) == ("fft",) * 3
    assert gpu_plan((2, 8, 5, 5), 31, torch.float32, method="fft").crops


@pytest.mark.cuda
@cuda
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("last", [False, True])
def test_the_layer_on_a_gpu(dtype: torch.dtype, last: bool) -> None:
    layout = torch.channels_last if last else torch.contiguous_format
    bounds = {torch.bfloat16: 8e-3, torch.float32: 2e-6, torch.float64: 1e-13}
    for num_images, channels, size, kernel in ((8, 64, 28, 29), (2, 16, 64, 31), (16, 32, 9, 3), (1, 3, 5, 31)):
        layer = DepthwiseConv2d(channels, kernel).to("cuda", dtype)
        x, grad = (
            random(num_images, channels, size, size, dtype=dtype, seed=seed).cuda().contiguous(memory_format=layout)
            for seed in (0, 1)
        )
        found = with_gradients(depthwise_conv2d, x, layer.weight, grad)
        assert torch.equal(layer(x), found[0])
        exact = with_gradients(reference, *(t.double().cpu().contiguous() for t in (x, layer.weight, grad)))
        assert found[0].stride() == x.stride()
        for tensor, expected in zip(found, exact, strict=True):
            assert relative_error(tensor.cpu(), expected) < bounds[dtype]


@pytest.mark.cuda
@cuda
def test_two_runs_give_the_same_bits() -> None:
    torch.use_deterministic_algorithms(True)
    try:
        x, grad = (random(8, 64, 28, 28, dtype=torch.float32, seed=seed).cuda() for seed in (0, 1))
        weight = random(64, 1, 29, 29, dtype=torch.float32, seed=2).cuda()
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            runs = [with_gradients(depthwise_conv2d, *(t.to(dtype) for t in (x, weight, grad))) for _ in range(2)]
            assert all(torch.equal(*pair) for pair in zip(*runs, strict=True))
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.cuda
@cuda
def test_autocast_compile_and_cuda_graphs_on_a_gpu() -> None:
    layer = DepthwiseConv2d(64, 29).cuda()
    x = random(8, 64, 28, 28, dtype=torch.float32).cuda()
    compiled = torch.compile(layer, fullgraph=True)
    for maps in (x.contiguous(memory_format=torch.channels_last), x):
        with torch.autocast("cuda", torch.bfloat16):
            found, expected = compiled(maps), layer(maps)
        assert expected.dtype is torch.bfloat16
        assert found.stride() == maps.stride()
        assert torch.equal(found, expected)
        found.sum().backward()
    assert layer.weight.grad is not None
    half, weight = x.bfloat16(), layer.weight.detach().bfloat16()
    with torch.no_grad():
        depthwise_conv2d(half, weight)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            out = depthwise_conv2d(half, weight)
        half.mul_(2)
        graph.replay()
    assert relative_error(out.cpu(), 2 * expected.double().cpu()) < 1e-6


@pytest.mark.cuda
@cuda
def test_tf32_is_used_where_it_is_allowed() -> None:
    x, weight = (
        random(8, 64, 28, 28, dtype=torch.float32).cuda(),
        random(64, 1, 29, 29, dtype=torch.float32, seed=1).cuda(),
    )
    exact = reference(x.double().cpu(), weight.double().cpu())
    allowed = torch.backends.cuda.matmul.allow_tf32
    try:
        torch.backends.cuda.matmul.allow_tf32 = False
        assert relative_error(depthwise_conv2d(x, weight).cpu(), exact) < 1e-6
        torch.backends.cuda.matmul.allow_tf32 = True
        assert 1e-6 < relative_error(depthwise_conv2d(x, weight).cpu(), exact) < 1e-4
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed
