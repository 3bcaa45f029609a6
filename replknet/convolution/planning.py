"""Which way each direction of a depthwise convolution is computed: the only place that decides.

Nothing is ever timed. On a CPU every way is bound by arithmetic in the cache, so its time is a count (multiply-adds
that meet the map, points of the transforms, values moved between layouts) times a constant. The constants were measured
per instruction set on one processor (those of AVX2 with the processor restricted to it); between processors with one
instruction set it is mostly the clock that differs, which scales all ways alike and leaves the choice as it is. A plan
is a pure function of shapes, layout, data type, device and number of threads: the same in every call and every run.

On a GPU it is counted likewise what PyTorch's own convolution multiplies, what `toeplitz` multiplies and `spectral`
transforms, with constants measured on a Hopper card; other cards have other speeds, but the ways differ by so much that
the choice is seldom another.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor

from replknet.convolution import toeplitz
from replknet.convolution.layouts import layout
from replknet.convolution.spectral import geometry
from replknet.convolution.tiles import multiply_adds, scratch_bytes

Method = Literal["auto", "direct", "fft", "toeplitz"]
METHODS = ("auto", "direct", "fft", "toeplitz")
Way = Literal["native", "direct", "fft", "toeplitz"]
"""native: `conv2d` and its own gradients. direct: `conv2d` arranged so that it computes the wanted direction in the
layout it is fastest in (`rearranged`). fft: `spectral`. toeplitz: `toeplitz`."""

MARGIN = 1.2
"""What another way than PyTorch's own must promise, to make good for the model's errors."""
DIRECT_OVERHEAD, FFT_OVERHEAD = 40e3, 100e3
"""Nanoseconds that a call loses by leaving PyTorch's own path."""
SCRATCH = 2**30
"""Bytes beside the maps that matrix products may always take; beyond, no more than four times as much as the maps."""
SHORT_LINE = 2048
HALF = (torch.bfloat16, torch.float16)
CUDNN_KERNEL = 7
"""The largest kernel that is left to cuDNN, which PyTorch takes for channels_last maps on a GPU; it has none for larger
ones: K = 31 on (64, 128, 56, 56) takes seconds."""


@dataclass(frozen=True)
class Processor:
    """Nanoseconds of one thread per multiply-add of conv2d, per point of the FFTs, per value moved.

    Attributes:
        blocked_reach: Largest horizontal reach (Kw // 2) for which oneDNN has a fast kernel for contiguous maps. It
            takes kernels of any height.
        channels_last_13x13: Of channels_last maps whose channels come in 32s, for kernels of reach 6.
        fft_short, fft_line, fft_plane: Of an image, there and back, for lines that leave the first-level cache room for
            others (`SHORT_LINE`), longer ones, and transforms in two dimensions.
        fft_kernel: Of a kernel.
        fft_channels_last: Of a value of channels_last maps, more.
    """

    contiguous: float
    contiguous_wide: float
    channels_last: float
    channels_last_13x13: float
    input_gradient: float
    weight_gradient_3x3: float
    weight_gradient_channels_last: float
    weight_gradient: float
    blocked_reach: int
    fft_short: float = 3.0
    fft_line: float = 4.2
    fft_plane: float = 5.6
    fft_kernel: float = 2.0
    fft_channels_last: float = 2.5
    moved: float = 0.6


AVX512 = Processor(
    contiguous=1 / 30,
    contiguous_wide=1 / 2.2,
    channels_last=1 / 36,
    channels_last_13x13=1 / 13,
    input_gradient=1 / 19,
    weight_gradient_3x3=1 / 12,
    weight_gradient_channels_last=1 / 2.2,
    weight_gradient=1 / 1.1,
    blocked_reach=6,
)
AVX2 = Processor(
    contiguous=1 / 26,
    contiguous_wide=1 / 2.1,
    channels_last=1 / 19,
    channels_last_13x13=1 / 19,
    input_gradient=1 / 23,
    weight_gradient_3x3=1 / 9,
    weight_gradient_channels_last=1 / 3.0,
    weight_gradient=1 / 1.0,
    blocked_reach=4,
)
# oneDNN has no float64: PyTorch's own loop, far slower on channels_last maps, and transforms at half the speed.
FLOAT64 = Processor(
    contiguous=1.2,
    contiguous_wide=1.2,
    channels_last=4.5,
    channels_last_13x13=4.5,
    input_gradient=0.7,
    weight_gradient_3x3=1.0,
    weight_gradient_channels_last=4.5,
    weight_gradient=1.0,
    blocked_reach=10**9,
    fft_short=6.0,
    fft_line=8.0,
    fft_plane=10.6,
    fft_kernel=4.0,
    fft_channels_last=3.0,
    moved=1.2,
)


@lru_cache(maxsize=8)
def processor(dtype: torch.dtype) -> Processor:
    if dtype == torch.float64:
        return FLOAT64
    return AVX512 if "AVX512" in torch.backends.cpu.get_cpu_capability() else AVX2


@dataclass(frozen=True)
class Plan:
    """How a call is computed.

    Attributes:
        output, input_gradient, weight_gradient: The way of each direction.
        plain: Whether all directions that the call needs are `conv2d`'s own, on the tensors as they are.
        crops: Whether the kernels are first cut to the taps that can meet the map.
        arrangement: The layout of the maps in which "direct" computes.
        keeps_spectra: Whether those of the maps are kept for the weight gradient.
        precision: Of products of float32 in `toeplitz`.
        output_time: Nanoseconds that the output promises to take; 0 where nothing was counted.
    """

    output: Way = "native"
    input_gradient: Way = "native"
    weight_gradient: Way = "native"
    plain: bool = True
    crops: bool = False
    arrangement: torch.memory_format = torch.contiguous_format
    keeps_spectra: bool = False
    precision: toeplitz.Precision = "exact"
    output_time: float = 0.0


def plan_of(x: Tensor, weight: Tensor, method: str, *, input_gradient: bool, weight_gradient: bool) -> Plan:
    """The plan of a call: one lookup, once its like was seen.

    Args:
        x: Maps, shape (N, C, H, W).
        weight: Kernels, shape (C, 1, Kh, Kw).
        method: One of `METHODS`; all but "auto" insist on one way for all directions.
        input_gradient: Whether that of `x` will be or is asked for.
        weight_gradient: The same for the kernels.
    """
    channels_last = layout(x) is torch.channels_last
    needs = (input_gradient, weight_gradient)
    if x.is_cuda:
        usable, tf32 = toeplitz.is_usable(x.device), x.dtype is torch.float32 and _allows_tf32()
        return _plan_on_gpu(x.shape, weight.shape, x.dtype, usable, tf32, channels_last, method, needs)
    threads, device = torch.get_num_threads(), x.device.type
    return _plan(x.shape, weight.shape, x.dtype, device, channels_last, threads, method, needs)


def output_time(x: Tensor, kernel: torch.Size) -> float:
    """Nanoseconds that the output of maps on a CPU with kernels of shape (C, 1, Kh, Kw) promises to take."""
    channels_last, threads = layout(x) is torch.channels_last, torch.get_num_threads()
    return _plan(x.shape, kernel, x.dtype, x.device.type, channels_last, threads, "auto", (False, False)).output_time


def _allows_tf32() -> bool:
    matmul = torch.backends.cuda.matmul
    try:
        return bool(matmul.allow_tf32)
    except RuntimeError:  # set by its newer name
        return bool(matmul.fp32_precision == "tf32")


@lru_cache(maxsize=4096)
def _plan(
    shape: torch.Size,
    kernel: torch.Size,
    dtype: torch.dtype,
    device: str,
    channels_last: bool,
    threads: int,
    method: str,
    needs: tuple[bool, bool],
) -> Plan:
    if device != "cpu" or 0 in shape or not dtype.is_floating_point:
        return Plan()
    height, width = shape[2:]
    sides = (min(kernel[2], 2 * height - 1), min(kernel[3], 2 * width - 1))
    cpu, wide = processor(dtype), sides[1] // 2 > processor(dtype).blocked_reach
    arranged = wide or (channels_last and dtype != torch.float64)
    time = 0.0
    if method == "fft":
        ways: tuple[Way, Way, Way] = ("fft", "fft", "fft")
    elif method == "direct":
        ways = ("direct", "direct", "direct")
    elif method == "toeplitz":
        ways = ("toeplitz", "toeplitz", "toeplitz")
    else:
        ways, time = _fastest(shape, sides, dtype, channels_last, threads, cpu, wide, arranged)
    plain = all(way == "native" for way, needed in zip(ways, (True, *needs), strict=True) if needed)
    return Plan(
        *ways,
        plain=plain,
        # oneDNN skips such taps by itself for channels_last maps, but not in the weight gradient.
        crops=sides != (kernel[2], kernel[3]) and not (plain and channels_last and not needs[1]),
        arrangement=torch.channels_last if arranged else torch.contiguous_format,
        keeps_spectra=needs[1] and ways[0] == ways[2] == "fft",
        output_time=time,
    )


def _fastest(
    shape: torch.Size,
    sides: tuple[int, int],
    dtype: torch.dtype,
    channels_last: bool,
    threads: int,
    cpu: Processor,
    wide: bool,
    arranged: bool,
) -> tuple[tuple[Way, Way, Way], float]:
    """The ways of output, input gradient and weight gradient that promise to take the least time; the output's time."""
    num_images, channels, height, width = shape
    geom = geometry(height, width, *sides)
    values = num_images * channels * height * width
    multiply_adds = values * _meeting_taps(height, geom.reach[0]) * _meeting_taps(width, geom.reach[1])
    with_zeros = values * sides[0] * sides[1]
    points = channels * geom.points

    of_channels_last = cpu.channels_last_13x13 if max(geom.reach) == 6 and channels % 32 == 0 else cpu.channels_last
    of_layout = of_channels_last if channels_last else cpu.contiguous_wide if wide else cpu.contiguous
    # oneDNN's weight gradient multiplies by the zeros outside the map as well.
    own_weight = with_zeros * (cpu.weight_gradient_channels_last if channels_last and not wide else cpu.weight_gradient)
    if not channels_last and max(height, width) <= 14:
        own_weight /= 1.5
    if max(sides) <= 3:
        own_weight = with_zeros * cpu.weight_gradient_3x3
    direct = multiply_adds * (of_channels_last if arranged else cpu.contiguous)
    direct += 2 * values * cpu.moved * (arranged != channels_last)
    of_point = cpu.fft_plane if len(geom.length) == 2 else cpu.fft_line if geom.points > SHORT_LINE else cpu.fft_short
    fft = num_images * points * of_point + points * cpu.fft_kernel + values * cpu.fft_channels_last * channels_last

    # oneDNN's large kernels of half precision do not always return; "direct" computes in float32.
    unsafe = dtype in HALF and max(geom.reach) > cpu.blocked_reach

    def fastest(native: float, direct: float, safe: bool = True) -> tuple[Way, float]:
        native, direct = native / threads, direct / threads + DIRECT_OVERHEAD
        spectral = fft / threads + FFT_OVERHEAD
        if safe and not unsafe and min(direct, spectral) > native / MARGIN:
            return "native", native
        return ("direct", direct) if direct <= spectral else ("fft", spectral)

    output, time = fastest(multiply_adds * of_layout, direct)
    input_gradient, _ = fastest(multiply_adds * cpu.input_gradient, direct)
    # Not oneDNN's own for one channel (`rearranged.plain_gradients`).
    weight_gradient, _ = fastest(own_weight, own_weight, safe=channels > 1)
    return (output, input_gradient, weight_gradient), time


def _meeting_taps(size: int, reach: int) -> float:
    """Mean number of taps, of a kernel with lags up to `reach`, that meet a row of `size` pixels."""
    return 2 * reach + 1 - reach * (reach + 1) / size


@dataclass(frozen=True)
class GraphicsProcessor:
    """Nanoseconds of a Hopper card per value and multiply-add of PyTorch's own convolution, and of the other ways.

    Attributes:
        native: Of the output, the input gradient and the weight gradient, per multiply-add, those with zeros included.
        native_value: The same for each value of the maps.
        cudnn_value: Of the three directions by cuDNN, for each value of channels_last maps of half precision, with
            kernels up to 5x5.
        product: Of output or input gradient, and of the weight gradient, per multiply-add of the matrix products.
        value: For each value of the maps, and another time for each number of half precision that it is split into.
        point: Of the transforms for output, input gradient and weight gradient, per point of the grid of an image.
        kernel_point: Of the transform of a kernel.
        overhead, fft_overhead: Of starting the kernels.
    """

    native: tuple[float, float, float] = (0.30e-3, 0.55e-3, 1.35e-3)
    native_value: float = 8e-3
    cudnn_value: tuple[float, float, float] = (4.0e-3, 7.0e-3, 4.7e-3)
    product: tuple[float, float, float] = (3.0e-6, 3.0e-6, 6.0e-6)
    value: float = 1.5e-3
    point: tuple[float, float, float] = (24e-3, 20e-3, 14e-3)
    kernel_point: float = 30e-3
    overhead: float = 30e3
    fft_overhead: float = 150e3


HOPPER = GraphicsProcessor()


@lru_cache(maxsize=4096)
def _plan_on_gpu(
    shape: torch.Size,
    kernel: torch.Size,
    dtype: torch.dtype,
    usable: bool,
    tf32: bool,
    channels_last: bool,
    method: str,
    needs: tuple[bool, bool],
) -> Plan:
    if 0 in shape or not dtype.is_floating_point or method == "direct":
        return Plan()
    height, width = shape[2:]
    sides = (min(kernel[2], 2 * height - 1), min(kernel[3], 2 * width - 1))
    precision: toeplitz.Precision = "tf32" if tf32 else "exact"
    usable = usable and dtype is not torch.float64
    if method == "fft":
        ways: tuple[Way, Way, Way] = ("fft", "fft", "fft")
    elif method == "toeplitz":
        ways = ("toeplitz", "toeplitz", "toeplitz")
    else:
        by_cudnn = channels_last and dtype in HALF and max(kernel[2:]) <= 5
        ways = _fastest_on_gpu(shape, sides, dtype, usable, precision, channels_last, by_cudnn)
    needed = [way for way, wanted in zip(ways, (True, *needs), strict=True) if wanted]
    return Plan(
        *ways,
        plain=set(needed) == {"native"} and not channels_last,  # PyTorch may return another layout
        # What plans later, without Triton or under vmap, may take FFTs, which hold such kernels alone.
        crops=set(needed) != {"native"} and sides != (kernel[2], kernel[3]),
        keeps_spectra=needs[1] and ways[0] == ways[2] == "fft",
        precision=precision,
    )


def _fastest_on_gpu(
    shape: torch.Size,
    sides: tuple[int, int],
    dtype: torch.dtype,
    usable: bool,
    precision: toeplitz.Precision,
    channels_last: bool,
    by_cudnn: bool,
) -> tuple[Way, Way, Way]:
    num_images, channels, height, width = shape
    values = num_images * channels * height * width
    planes = toeplitz.num_planes(dtype, precision)
    points = channels * geometry(height, width, *sides, one_line=True).points
    double = 2 if dtype is torch.float64 else 1

    def fastest(direction: int, *, spectra_are_kept: bool = False) -> Way:
        native = double * values * (HOPPER.native_value + sides[0] * sides[1] * HOPPER.native[direction])
        if by_cudnn:
            native = values * HOPPER.cudnn_value[direction]
        times: dict[Way, float] = {"native": native}
        scratch = scratch_bytes(shape, sides, planes, weight_gradient=direction == 2)
        if usable and scratch <= max(SCRATCH, 4 * values * dtype.itemsize):
            products = multiply_adds(shape, sides, planes, weight_gradient=direction == 2)
            times["toeplitz"] = HOPPER.overhead + products * HOPPER.product[direction]
            times["toeplitz"] += values * HOPPER.value * (2 + (planes + channels_last) * (planes > 1 or channels_last))
        if dtype not in HALF or (usable and "toeplitz" not in times):
            of_points = num_images * (
                HOPPER.point[direction] + HOPPER.point[2] * (direction == 2 and not spectra_are_kept)
            )
            times["fft"] = HOPPER.fft_overhead + double * points * (of_points + HOPPER.kernel_point)
        best = min(times, key=lambda way: times[way])
        return best if times[best] < native / MARGIN else "native"

    output = fastest(0)
    return output, fastest(1), fastest(2, spectra_are_kept=output == "fft")
