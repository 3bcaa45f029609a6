"""Which way of computing a depthwise convolution is fastest on this processor: a cost model; nothing is ever timed.

Every way is bound by arithmetic in the cache, so its time is a count (multiply-adds that meet the map, points of the
transforms, values moved between layouts) times a constant. The constants were measured per instruction set on one
processor (those of AVX2 with the processor restricted to it); between processors with one instruction set it is mostly
the clock that differs, which scales all ways alike and leaves the choice as it is. The model is a pure function of
shapes, layout, instruction set and number of threads, so the choice is the same in every call and every run, and costs
no first call.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import inf
from typing import Literal

import torch

from replknet.spectral import Geometry, geometry

Way = Literal["native", "direct", "fft"]
"""native: `conv2d` and its own gradients. direct: forward `conv2d`, arranged so that it computes the wanted direction
in its best layout. fft: `replknet.spectral`."""

MARGIN = 1.25
"""What another way than PyTorch's own must promise, to make good for the model's errors."""
DIRECT_OVERHEAD, FFT_OVERHEAD = 40e3, 220e3
"""Nanoseconds that a call loses by leaving PyTorch's own path."""
REAL_TRANSFORMS = 1.25
"""Time of an image by real transforms over that of one of a pair."""
LARGEST_KEPT_SPECTRUM = 64 * 2**20
"""Bytes of the largest kernel spectrum that a layer keeps between calls."""
LARGEST_SAVED_SPECTRUM = 16 * 2**20
"""The same between forward and backward: memory fresh from the system in every step costs more than the transform."""
LARGEST_SWAPPED_MAP = 64
"""Most pixels of a map for which forward `conv2d` computes the weight gradient: it adds up one term per pixel without
a break, so that its rounding errors grow with them."""


@dataclass(frozen=True)
class Processor:
    """Nanoseconds of one thread per multiply-add of conv2d, per point of the FFTs, per value moved.

    Attributes:
        blocked_reach: Largest reach (K // 2) for which oneDNN has a fast kernel for contiguous maps.
        slow_reach: A reach for which its kernel for channels_last maps is slow, if the channels come in 32s; the next
            larger one is faster.
        input_gradient_slow: Of the input gradient at that reach, which meets the zeros outside the map as well; on
            large maps it is less than `input_gradient` makes it.
    """

    contiguous: float
    contiguous_wide: float
    channels_last: float
    channels_last_slow: float
    input_gradient: float
    weight_gradient_3x3: float
    weight_gradient_channels_last: float
    weight_gradient: float
    blocked_reach: int
    slow_reach: int | None = None
    input_gradient_slow: float = inf
    fft: float = 9.0
    fft_channels_last: float = 10.0
    fft_kernel: float = 3.3
    moved: float = 0.6


AVX512 = Processor(
    contiguous=1 / 30,
    contiguous_wide=1 / 2.2,
    channels_last=1 / 36,
    channels_last_slow=1 / 12,
    input_gradient=1 / 19,
    weight_gradient_3x3=1 / 12,
    weight_gradient_channels_last=1 / 2.9,
    weight_gradient=1 / 1.1,
    blocked_reach=6,
    slow_reach=6,
    input_gradient_slow=1 / 25,
)
AVX2 = Processor(
    contiguous=1 / 26,
    contiguous_wide=1 / 2.1,
    channels_last=1 / 19,
    channels_last_slow=1 / 19,
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
    channels_last_slow=4.5,
    input_gradient=0.7,
    weight_gradient_3x3=1.0,
    weight_gradient_channels_last=4.5,
    weight_gradient=1.0,
    blocked_reach=10**9,
    fft=17.0,
    fft_channels_last=19.0,
    fft_kernel=6.5,
    moved=1.2,
)


HALF = (torch.bfloat16, torch.float16)


@lru_cache(maxsize=8)
def processor(dtype: torch.dtype) -> Processor:
    if dtype == torch.float64:
        return FLOAT64
    return AVX512 if "AVX512" in torch.backends.cpu.get_cpu_capability() else AVX2


def prefers_channels_last(reach: int, dtype: torch.dtype, channels_last: bool) -> bool:
    """Whether forward `conv2d` on maps that are (not) channels_last is faster after (before) conversion to it."""
    return reach > processor(dtype).blocked_reach or (channels_last and dtype != torch.float64)


def is_slow(reach: int, channels: int, dtype: torch.dtype) -> bool:
    """Whether a border of zeros round the kernels makes `conv2d` faster on channels_last maps."""
    return reach == processor(dtype).slow_reach and channels % 32 == 0


def meeting_taps(size: int, reach: int) -> float:
    """Mean number of taps, of a kernel with lags up to `reach`, that meet a row of `size` pixels."""
    return 2 * reach + 1 - reach * (reach + 1) / size


def keeps_spectrum(geom: Geometry, channels: int, dtype: torch.dtype, largest: int = LARGEST_KEPT_SPECTRUM) -> bool:
    """Whether the spectrum of the kernels is small enough to be kept."""
    return 2 * dtype.itemsize * channels * geom.num_frequencies <= largest


@dataclass(frozen=True)
class Plan:
    """The way chosen for each direction."""

    output: Way
    input_gradient: Way
    weight_gradient: Way
    crops: bool
    """Whether there are taps that never meet the map."""


@lru_cache(maxsize=4096)
def plan(
    shape: torch.Size, kernel: torch.Size, dtype: torch.dtype, channels_last: bool, threads: int, kept: bool = False
) -> Plan:
    """The fastest ways for maps of `shape` (N, C, H, W), none of them 0, and kernels of shape (C, 1, Kh, Kw)."""
    num_images, channels, height, width = shape
    sides = (min(kernel[2], 2 * height - 1), min(kernel[3], 2 * width - 1))
    geom = geometry(num_images, height, width, *sides)
    cpu, reach = processor(dtype), max(geom.reach)
    values = num_images * channels * height * width
    multiply_adds = values * meeting_taps(height, geom.reach[0]) * meeting_taps(width, geom.reach[1])
    with_zeros = values * sides[0] * sides[1]
    lags = num_images * channels * sides[0] * sides[1]
    points = channels * geom.length[0] * geom.length[1]

    wide = reach > cpu.blocked_reach
    slow = is_slow(reach, channels, dtype)
    own_output = multiply_adds
    if channels_last:
        own_output *= cpu.channels_last_slow if slow else cpu.channels_last
    else:
        own_output *= cpu.contiguous_wide if wide else cpu.contiguous
    own_input = multiply_adds * cpu.input_gradient
    if channels_last and slow:
        own_input = min(own_input, with_zeros * cpu.input_gradient_slow)
    # oneDNN's weight gradient multiplies by the zeros outside the map as well.
    own_weight = with_zeros * (cpu.weight_gradient_channels_last if channels_last and not wide else cpu.weight_gradient)
    if not channels_last and max(height, width) <= 14:
        own_weight /= 1.5
    if reach <= 1:
        own_weight = with_zeros * cpu.weight_gradient_3x3
    wanted = prefers_channels_last(reach, dtype, channels_last)
    direct = multiply_adds * (cpu.channels_last if wanted else cpu.contiguous)
    if wanted and slow:
        direct *= ((2 * reach + 3) / (2 * reach + 1)) ** 2
    direct += 2 * values * cpu.moved * (wanted != channels_last)
    # The weight gradient as a forward convolution: every map of every image is a channel, its gradient the kernel.
    swapped = inf
    if height * width <= LARGEST_SWAPPED_MAP:
        swapped = multiply_adds * (cpu.channels_last if wide else cpu.contiguous)
        swapped += 2 * (values + lags) * cpu.moved * (2.0 if wide else 1.4 if channels_last else 0.8)
    fft = num_images / 2 * points * (cpu.fft_channels_last if channels_last else cpu.fft)
    if not geom.pairs:
        fft *= REAL_TRANSFORMS
    if not (kept and keeps_spectrum(geom, channels, dtype)):
        fft += points * cpu.fft_kernel

    def fastest(native: float, direct: float) -> Way:
        native, direct = native / threads, direct / threads + DIRECT_OVERHEAD
        spectral = fft / threads + FFT_OVERHEAD
        if wide and dtype in HALF:
            native = inf  # oneDNN's wide kernels of half precision do not always return
        if min(direct, spectral) > native / MARGIN:
            return "native"
        return "direct" if direct <= spectral else "fft"

    return Plan(
        output=fastest(own_output, direct),
        input_gradient=fastest(own_input, direct),
        # oneDNN's for one channel is not safe (`replknet.correlation`).
        weight_gradient=fastest(inf if channels == 1 else own_weight, swapped),
        crops=sides != (kernel[2], kernel[3]),
    )
