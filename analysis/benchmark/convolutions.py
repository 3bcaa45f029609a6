"""The convolution beside other libraries' and PyTorch's own."""

from collections.abc import Callable, Iterator, Sequence
from typing import Literal, cast

import torch
from torch import Tensor
from torch.nn import functional as F

import replknet
from analysis.benchmark.timing import Call, Case, Contender, seed_and_threads, without_gradients

Direction = Literal["forward", "input", "weight", "both"]
HEADLINE = ((8, 128, 56, 31), (8, 256, 28, 29), (8, 512, 14, 27), (8, 1024, 7, 13), (32, 16, 32, 31), (1, 128, 256, 31))
WIDEST = ((8, 128, 56, 13), (8, 128, 56, 61))
"""Beside `HEADLINE`: what a very large kernel costs more than a moderate one."""
GRID_KERNELS = (3, 5, 7, 9, 13, 17, 21, 27, 31, 51)
GRID_SIZES = (7, 14, 28, 56, 112)
GRID_BATCHES = ((1, 64), (8, 64), (32, 16), (1, 512))
SINGLE: tuple[Direction, ...] = ("forward", "input", "weight")
PAPER_KERNELS = (3, 5, 7, 9, 13, 17, 21, 25, 27, 29, 31, 41, 51, 61)


def convolution(
    library: str, shape: tuple[int, int, int, int], direction: Direction, channels_last: bool, threads: int
) -> Call:
    """One depthwise convolution of `shape` (N, C, H = W, K), or its gradients."""
    num_images, channels, size, kernel = shape
    seed_and_threads(threads)
    # Which freed memory glibc keeps depends on the largest block so far; FFTs here see to that, and all shall have it.
    torch.empty(30 * 2**20, dtype=torch.uint8)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(num_images, channels, size, size).contiguous(memory_format=layout)
    grad = torch.randn(num_images, channels, size, size).contiguous(memory_format=layout)
    weight = torch.randn(channels, 1, kernel, kernel)
    function = _convolution_of(library, channels, kernel)
    if direction == "forward":
        return without_gradients(lambda: function(x, weight))
    x.requires_grad_(direction in ("input", "both"))
    weight.requires_grad_(direction in ("weight", "both"))
    wanted = [tensor for tensor in (x, weight) if tensor.requires_grad]
    if direction == "both":
        return lambda: torch.autograd.grad(function(x, weight), wanted, grad)
    out = function(x, weight)
    return lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True)


def _convolution_of(library: str, channels: int, kernel: int) -> Callable[[Tensor, Tensor], Tensor]:
    if library == "replknet":
        return replknet.depthwise_conv2d
    if library == "conv2d":
        return lambda x, weight: F.conv2d(x, weight, padding=kernel // 2, groups=channels)
    if library == "torch-fftconv":
        from torch_fftconv import fft_conv2d
    else:
        from fft_conv_pytorch import fft_conv as fft_conv2d
    return lambda x, weight: cast("Tensor", fft_conv2d(x, weight, padding=kernel // 2, groups=channels))


def convolution_cases(suite: str, threads: int) -> Iterator[Case]:
    """The cases of "headline" (forward+backward), "grid" (each direction alone) or "paper" (24 layers, forward)."""
    if suite == "headline":
        for shape in HEADLINE + WIDEST:
            libraries = ("replknet", "conv2d", "torch-fftconv", "fft-conv-pytorch")
            yield _convolution_case(shape, "both", threads, libraries)
    elif suite == "grid":
        for num_images, channels in GRID_BATCHES:
            for size in GRID_SIZES:
                for kernel in GRID_KERNELS:
                    for direction in SINGLE:
                        shape = (num_images, channels, size, kernel)
                        yield _convolution_case(shape, direction, threads, ("replknet", "conv2d", "torch-fftconv"))
    else:
        for size in (16, 32, 64):
            for kernel in PAPER_KERNELS:
                yield _convolution_case((1, 384, size, kernel), "forward", threads, ("replknet", "conv2d"))


def _convolution_case(
    shape: tuple[int, int, int, int], direction: Direction, threads: int, libraries: Sequence[str]
) -> Case:
    contenders = []
    for library in libraries:
        for channels_last in (False, True) if library in ("replknet", "conv2d") else (False,):
            name = f"{library}, channels_last" if channels_last else library
            arguments = {"library": library, "shape": shape, "direction": direction, "channels_last": channels_last}
            contenders.append(Contender(name, library, convolution, {**arguments, "threads": threads}))
    labels = dict(zip(("images", "channels", "size", "kernel"), shape, strict=True))
    return Case({**labels, "direction": direction}, contenders)
