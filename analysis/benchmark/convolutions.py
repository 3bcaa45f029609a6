"""The convolution beside other libraries' and PyTorch's own."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, cast

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

import replknet
from analysis.benchmark.timing import Call, Case, Contender, seed_and_threads, without_gradients

Direction = Literal["forward", "input", "weight", "both"]
Shape = tuple[int, int, int, int | tuple[int, int]]
"""Images, channels, side of the maps, and that of the kernels or their height and width."""
HEADLINE = ((8, 128, 56, 31), (8, 256, 28, 29), (8, 512, 14, 27), (8, 1024, 7, 13), (32, 16, 32, 31), (1, 128, 256, 31))
WIDEST = ((8, 128, 56, 13), (8, 128, 56, 61))
"""Beside `HEADLINE`: what a very large kernel costs more than a moderate one."""
GRID_KERNELS = (3, 5, 7, 9, 13, 17, 21, 27, 31, 51)
GRID_SIZES = (7, 14, 28, 56, 112)
GRID_BATCHES = ((1, 64), (8, 64), (32, 16), (1, 512))
SINGLE: tuple[Direction, ...] = ("forward", "input", "weight")
PAPER_KERNELS = (3, 5, 7, 9, 13, 17, 21, 25, 27, 29, 31, 41, 51, 61)
GPU_HEADLINE: tuple[Shape, ...] = (
    (64, 128, 56, 31),
    (64, 256, 28, 29),
    (64, 512, 14, 27),
    (64, 1024, 7, 13),
    (1, 128, 256, 31),
    (32, 128, 56, 51),
    (64, 124, 56, (51, 5)),
    (64, 124, 56, (5, 51)),
    (64, 128, 56, 5),
    (64, 512, 14, 5),
)
GPU_EXACT: tuple[Shape, ...] = ((64, 128, 56, 31),)
"""In float32 as well."""
PAPER_LAYERS, PAPER_IMAGES, PAPER_CHANNELS = 24, 64, 384
PUBLISHED_KERNELS = (3, 5, 7, 9, 13, 17, 21, 27, 29, 31)
PUBLISHED_MS = {
    16: (
        (5.6, 11.0, 14.4, 17.6, 36.0, 57.2, 83.4, 133.5, 150.7, 171.4),
        (5.6, 6.5, 6.4, 6.9, 7.5, 8.4, 8.4, 8.4, 8.3, 8.4),
    ),
    32: (
        (21.9, 34.1, 54.8, 76.1, 141.2, 230.5, 342.3, 557.8, 638.6, 734.8),
        (21.9, 28.7, 34.6, 40.6, 52.5, 64.5, 73.9, 87.9, 92.7, 96.7),
    ),
    64: (
        (69.6, 141.2, 228.6, 319.8, 600.0, 977.7, 1454.4, 2371.1, 2698.4, 3090.4),
        (69.6, 112.6, 130.7, 152.6, 199.7, 251.5, 301.0, 378.2, 406.0, 431.7),
    ),
}
"""Of 24 layers on a GTX 2080Ti in float32, by side of the maps: PyTorch 1.9.0 with cuDNN 7.6.5, and the authors' own.

References:
    Ding et al. 2022, arXiv:2203.06717, table 1; read off the same table of Zhang, Ding and Yue 2024, arXiv:2410.08049.
"""


def convolution(
    library: str,
    shape: Shape,
    direction: Direction,
    channels_last: bool,
    threads: int,
    *,
    device: str = "cpu",
    dtype: str = "float32",
    layers: int = 1,
    compiled: bool = False,
) -> Call:
    """One depthwise convolution, or its gradients; or the output of several, one after the other."""
    num_images, channels, size, kernel = shape
    seed_and_threads(threads)
    if device == "cpu":
        # Which freed memory glibc keeps depends on the largest block so far; FFTs here see to that, and all shall have
        # it.
        torch.empty(30 * 2**20, dtype=torch.uint8)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    as_asked: Any = {"device": device, "dtype": getattr(torch, dtype)}
    x = torch.randn(num_images, channels, size, size, **as_asked).contiguous(memory_format=layout)
    grad = torch.randn(num_images, channels, size, size, **as_asked).contiguous(memory_format=layout)
    weight = torch.randn(channels, 1, *sides, **as_asked)
    function = _convolution_of(library, channels, sides)
    if compiled:
        function = torch.compile(function)
    if layers > 1:
        weights = [torch.randn_like(weight) / (sides[0] * sides[1]) ** 0.5 for _ in range(layers)]  # no overflow
        return without_gradients(lambda: _stack(function, x, weights))
    if direction == "forward":
        return without_gradients(lambda: function(x, weight))
    x.requires_grad_(direction in ("input", "both"))
    weight.requires_grad_(direction in ("weight", "both"))
    wanted = [tensor for tensor in (x, weight) if tensor.requires_grad]
    if direction == "both":
        return lambda: torch.autograd.grad(function(x, weight), wanted, grad)
    out = function(x, weight)
    return lambda: torch.autograd.grad(out, wanted, grad, retain_graph=True)


def _stack(function: Callable[[Tensor, Tensor], Tensor], x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    for weight in weights:
        x = function(x, weight)
    return x


def _convolution_of(library: str, channels: int, sides: tuple[int, int]) -> Callable[[Tensor, Tensor], Tensor]:
    padding = (sides[0] // 2, sides[1] // 2)
    if library == "replknet":
        return replknet.depthwise_conv2d
    if library == "conv2d":
        return lambda x, weight: F.conv2d(x, weight, padding=padding, groups=channels)
    if library == "torch-fftconv":
        from torch_fftconv import fft_conv2d
    else:
        from fft_conv_pytorch import fft_conv as fft_conv2d

    def by_fft(x: Tensor, weight: Tensor) -> Tensor:  # which cuFFT has for half precision in powers of two only
        out = fft_conv2d(x.float(), weight.float(), padding=padding, groups=channels)
        return cast("Tensor", out.to(x.dtype))

    return by_fft


def convolution_cases(
    suite: str, threads: int, *, device: str = "cpu", dtype: str | None = None, compiled: bool = False
) -> Iterator[Case]:
    """The cases of "headline", "grid" (each direction alone) or "paper" (forward).

    Args:
        suite: On a CPU, "headline" has forward and backward together and "paper" one layer for one image; on a GPU
            "headline" has each direction alone and "paper" the 24 layers and 64 images of the paper.
        threads: Of every library.
        device: Where all compute.
        dtype: Of maps and kernels on a GPU; by default float32, and in the headline bfloat16 and for one shape both.
            float32 on a CPU.
        compiled: Have `conv2d` by `torch.compile` as well, where the output is computed.
    """
    common: Any = {"threads": threads, "device": device, "compiled": compiled}
    libraries: tuple[str, ...] = ("replknet", "conv2d", "torch-fftconv")
    shape: Shape
    if suite == "grid":
        for num_images, channels in GRID_BATCHES:
            for size in GRID_SIZES:
                for kernel in GRID_KERNELS:
                    for direction in SINGLE:
                        shape = (num_images, channels, size, kernel)
                        yield _convolution_case(shape, direction, libraries, dtype=dtype or "float32", **common)
    elif suite == "headline" and device == "cpu":
        for shape in HEADLINE + WIDEST:
            libraries = (*libraries[:3], "fft-conv-pytorch")
            yield _convolution_case(shape, "both", libraries, dtype=dtype or "float32", **common)
    elif suite == "headline":
        chosen = [(shape, dtype or "bfloat16") for shape in GPU_HEADLINE]
        chosen += [(shape, "float32") for shape in GPU_EXACT if dtype is None]
        for shape, own in chosen:
            for direction in SINGLE:
                yield _convolution_case(shape, direction, libraries, dtype=own, **common)
    elif device == "cpu":
        for size in (16, 32, 64):
            for kernel in PAPER_KERNELS:
                shape = (1, 384, size, kernel)
                yield _convolution_case(shape, "forward", ("replknet", "conv2d"), dtype=dtype or "float32", **common)
    else:
        for size in PUBLISHED_MS:
            for kernel in PUBLISHED_KERNELS:
                shape = (PAPER_IMAGES, PAPER_CHANNELS, size, kernel)
                yield _convolution_case(
                    shape, "forward", ("replknet", "conv2d"), dtype=dtype or "float32", layers=PAPER_LAYERS, **common
                )


def _convolution_case(
    shape: Shape,
    direction: Direction,
    libraries: Sequence[str],
    *,
    threads: int,
    device: str,
    dtype: str,
    compiled: bool,
    layers: int = 1,
) -> Case:
    contenders = []
    own: dict[str, Any] = {"shape": shape, "direction": direction, "threads": threads}
    if device != "cpu":
        own |= {"device": device, "dtype": dtype, "layers": layers}
    for library in libraries:
        both = library in ("replknet", "conv2d")
        for channels_last in (False, True) if both and layers == 1 else (False,):
            # The vendor's convolution takes 29 s for one of these.
            risky = library == "conv2d" and channels_last and device != "cpu"
            name = f"{library}, channels_last" if channels_last else library
            name += ", in float32" * (not both and dtype != "float32")
            arguments = {"library": library, "channels_last": channels_last, **own}
            trials = _trials(shape) if risky else ()
            contenders.append(Contender(name, library, convolution, arguments, trials))
    if compiled and direction in (
        "forward",
        "both",
    ):  # what it compiles has no gradient of one and the same graph twice
        arguments = {"library": "conv2d", "channels_last": False, **own, "compiled": True}
        contenders.append(Contender("conv2d, torch.compile", "torch.compile", convolution, arguments))
    labels: dict[str, Any] = dict(zip(("images", "channels", "size", "kernel"), shape, strict=True))
    if not isinstance(shape[3], int):
        labels["kernel"] = f"{shape[3][0]}x{shape[3][1]}"
    if device != "cpu":
        labels["dtype"] = dtype
    return Case({**labels, "direction": direction}, contenders)


def network_convolutions(threads: int, device: str) -> Iterator[Case]:
    """The convolutions of RepLKNet-31B in training and inference on 64 images and in an ERF at 1024 px, ours alone."""
    for channels, size, kernel in ((128, 56, 31), (256, 28, 29), (512, 14, 27), (1024, 7, 13)):
        common: Any = {"threads": threads, "device": device, "compiled": False}
        for own in (kernel, 5, 3):
            for direction in SINGLE:
                yield _convolution_case((64, channels, size, own), direction, ("replknet",), dtype="bfloat16", **common)
        for direction in SINGLE[:2]:
            yield _convolution_case(
                (1, channels, size * 32 // 7, kernel), direction, ("replknet",), dtype="float32", **common
            )


def _trials(shape: Shape) -> list[tuple[Mapping[str, Any], float]]:
    """One image of few channels, one image, some images."""
    num_images, channels, *rest = shape
    parts = dict.fromkeys([(1, min(channels, 8)), (1, channels), (min(num_images, 8), channels)])
    parts.pop((num_images, channels), None)
    return [({"shape": (*part, *rest)}, part[0] * part[1] / (num_images * channels)) for part in parts]


def with_sums(table: pd.DataFrame) -> pd.DataFrame:
    """A table of single directions, and behind those of a case the sum of their times for each contender.

    Medians are added, and so are the shortest and the longest times.

    Args:
        table: Of `compare`, for `convolution_cases`.
    """
    labels = [label for label in table.columns[: list(table.columns).index("contender")] if label != "direction"]
    parts = []
    for _, rows in table.groupby(labels, sort=False):
        parts.append(rows)
        timed = rows.dropna(subset=["median_ms"]) if "median_ms" in rows else rows.iloc[:0]
        sums = []
        for _, own in timed.groupby("contender", sort=False):
            if set(own["direction"]) == set(SINGLE):
                total = own[["median_ms", "min_ms", "max_ms"]].sum()
                sums.append({**own.iloc[0][[*labels, "contender"]], "direction": "sum", **total})
        if sums:
            first = sums[0] if sums[0]["contender"] == rows["contender"].iloc[0] else {}
            parts.append(
                pd.DataFrame([row | {"ratio": row["median_ms"] / first.get("median_ms", float("nan"))} for row in sums])
            )
    return pd.concat(parts, ignore_index=True)[list(table.columns)]


def with_published(table: pd.DataFrame) -> pd.DataFrame:
    """The table of the suite "paper" on a GPU with the published times of the same layers beside it.

    Args:
        table: Of `compare`, for `convolution_cases`.
    """
    for column, name in enumerate(("published_2080ti_pytorch_ms", "published_2080ti_own_ms")):
        found = [
            PUBLISHED_MS[size][column][PUBLISHED_KERNELS.index(kernel)]
            for size, kernel in zip(table["size"], table["kernel"], strict=True)
        ]
        table = table.assign(**{name: found})
    return table
