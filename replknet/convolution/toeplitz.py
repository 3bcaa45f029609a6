"""Depthwise convolution on a GPU as products with banded Toeplitz matrices.

For one channel and one row ky of its kernel, the sum over kx is a product,

    out[(n, y), x] += in[(n, y + ky - p), x'] T[x', x]    with    T[x', x] = w[ky, x' - x + p].

Rows of the product are (image, block of R rows, block of BN columns), so one large map fills the tensor cores as many
small ones do; S input rows go together, so that small maps do, too. Wider maps than one block meet the same matrices in
every block, in parts of J input columns. The input gradient is the same with the kernel turned round. The weight
gradient is the product of the maps with the gradients over all rows, whose diagonals are summed.

Half precision is multiplied as it is and summed in float32. Values of float32 are split into bfloat16 numbers, three of
which hold them whole: six products of these are as exact as float32, three of the first two better than TF32. A
value that is not finite fills its image and channel at most.

Ding et al. 2022, arXiv:2203.06717, have products for each channel with images as rows. The kernels are in
`toeplitz_kernels`, which needs Triton. Nothing in this module is differentiable.
"""

import importlib.util
import math
import warnings
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor

from replknet.convolution.layouts import layout
from replknet.convolution.tiles import (
    KernelError,
    Tile,
    TooLargeError,
    at_least,
    cut_map,
    fitting,
    summed_at_a_time,
    tiles_for,
)

Precision = Literal["exact", "tf32"]


def correlate(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    precision: Precision = "exact",
    flipped: bool = False,
    tile: Tile | None = None,
) -> Tensor:
    """Depthwise convolution with stride 1 and "same" zero padding.

    Args:
        x: Maps, shape (N, C, H, W), float16, bfloat16 or float32, in any layout, on a GPU; on a CPU under Triton's
            interpreter.
        weight: Kernels, shape (C, 1, Kh, Kw), both sides odd, of any size; in the data type of `x`.
        bias: Shape (C,).
        precision: Of float32: "exact", or "tf32", a relative error of some 1e-5 at half the cost.
        flipped: Turn the kernels round, as the input gradient does.
        tile: By default the one that is known to be fast.

    Returns:
        Shape, data type and layout of `x`.

    Raises:
        KernelError: If there is no Triton here, or it fails.
    """
    if not x.numel():
        return torch.empty_like(x, memory_format=layout(x))
    planes = num_planes(x.dtype, precision)
    return _correlate(_arranged(x, planes, aligned=False), x, weight, bias, planes, flipped, tile)


def weight_gradient(
    grad: Tensor,
    x: Tensor,
    kernel_size: tuple[int, int],
    *,
    precision: Precision = "exact",
    tile: Tile | None = None,
) -> Tensor:
    """Gradient of `correlate` for its kernels, shape (C, 1, Kh, Kw), in float32.

    Args:
        grad: Gradient of the output, shape (N, C, H, W).
        x: The maps, in the same data type.
        kernel_size: Kh and Kw, both odd.
        precision: See `correlate`.
        tile: By default the one that is known to be fast.

    Raises:
        KernelError: If there is no Triton here, or it fails.
    """
    if not x.numel():
        return x.new_zeros((x.shape[1], 1, *kernel_size), dtype=torch.float32)
    planes = num_planes(x.dtype, precision)
    incoming, maps = (_arranged(tensor, planes, aligned=True) for tensor in (grad, x))
    return _weight_gradient(incoming, maps, kernel_size, planes, tile)


def gradients(
    grad: Tensor, x: Tensor, weight: Tensor, *, input_gradient: bool, weight_gradient: bool, precision: Precision
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients of `correlate`, the first in the layout of `grad`; None for one that is not asked for."""
    planes = num_planes(grad.dtype, precision)
    incoming = _arranged(grad, planes, aligned=weight_gradient)
    of_x = of_weight = None
    if input_gradient:
        of_x = _correlate(incoming, grad, weight, None, planes, True, None)
    if weight_gradient:
        maps = _arranged(x, planes, aligned=True)
        of_weight = _weight_gradient(incoming, maps, (weight.shape[2], weight.shape[3]), planes, None)
    return of_x, of_weight


def num_planes(dtype: torch.dtype, precision: str) -> int:
    """Numbers of half precision that a value is split into."""
    return 1 if dtype is not torch.float32 else 2 if precision == "tf32" else 3


@dataclass(frozen=True)
class _Maps:
    """Contiguous maps (planes, N, C, H, row) of `shape`, with zeros after the values of each row."""

    values: Tensor
    shape: torch.Size
    row: int


def _arranged(x: Tensor, planes: int, *, aligned: bool) -> _Maps:
    """Maps as the kernels read them: contiguous half precision as it is, others copied to rows of whole 16 bytes.

    With `aligned`, which pays for weight gradients, these are copied as well if their rows are not.
    """
    x = x.resolve_neg()  # Triton reads the memory as it is
    if planes == 1 and x.is_contiguous() and not (aligned and x.shape[3] % 8):
        return _Maps(x, x.shape, x.shape[3])
    row = -(-x.shape[3] // 8) * 8
    last = layout(x) is torch.channels_last
    dtype = x.dtype if planes == 1 else torch.bfloat16
    target = torch.empty((planes, *x.shape[:3], row), dtype=dtype, device=x.device)
    _copy(x if last else x.contiguous(), target, row, from_last=last, to_last=False, planes=planes)
    return _Maps(target, x.shape, row)


def _copy(source: Tensor, target: Tensor, row: int, *, from_last: bool, to_last: bool, planes: int) -> None:
    num_images, channels, height, width = source.shape
    pixels = 64 if from_last or to_last else min(1024, at_least(height * row))
    group = 64 if from_last or to_last else 1024 // pixels
    unit = math.gcd(row, 8)
    _launch(
        "arrange", num_images * -(-height * row // pixels) * -(-channels // group),
        (source, target, num_images, channels, height, width, row // unit), num_warps=4, num_stages=1,
        UNIT=unit, FROM_LAST=from_last, TO_LAST=to_last, PAD=row != width, PLANES=planes, BP=pixels, BC=group,
    )  # fmt: skip


def _correlate(
    maps: _Maps, like: Tensor, weight: Tensor, bias: Tensor | None, planes: int, flipped: bool, tile: Tile | None
) -> Tensor:
    num_images, channels, height, width = maps.shape
    kernel = (weight.shape[2], weight.shape[3])

    def with_tile(tile: Tile) -> Tensor:
        cut = cut_map(height, width, kernel, tile)
        rows = num_images * cut.row_blocks * cut.column_blocks
        block = min(tile.block, max(16, at_least(rows)))
        lines = cut.steps * tile.down + tile.rows - 1
        group = max(1, 2048 // (tile.across * tile.columns))
        size = (planes, channels, lines, cut.across, tile.across, tile.columns)
        matrices = torch.empty(size, dtype=maps.values.dtype, device=weight.device)
        shape = {"NX": cut.across, "J": tile.across, "BN": tile.columns, "PLANES": planes}
        up = cut.up - kernel[0] // 2 + tile.rows - 1
        _launch(
            "matrices", channels * -(-lines // group),
            (weight.resolve_neg().contiguous(), matrices, channels, lines, *kernel, up, cut.left + kernel[1] // 2,
             int(flipped)),
            num_warps=4, num_stages=1, LINES=group, **shape,
        )  # fmt: skip
        out = torch.empty(maps.shape, dtype=like.dtype, device=like.device)
        offsets = matrices if bias is None else bias.resolve_neg().contiguous()
        unit, out_unit, programs = math.gcd(maps.row, 8), math.gcd(width, 8), -(-rows // block)
        _launch(
            "correlate", channels * programs,
            (maps.values, matrices, offsets, out, num_images, channels, height,
             maps.row // unit, width // out_unit, cut.steps, cut.up, cut.row_blocks, cut.column_blocks, programs),
            num_warps=tile.warps, num_stages=tile.stages, UNIT=unit, OUT_UNIT=out_unit, R=tile.rows, S=tile.down,
            LEFT=cut.left, BM=block, BIAS=bias is not None, **shape,
        )  # fmt: skip
        return out

    def needs(tile: Tile) -> int:
        contracted, wide = tile.down * tile.across, tile.rows * tile.columns
        loads = 2 * planes * tile.stages * contracted * (tile.block + wide)
        return max(loads, (4 if planes > 1 else 2) * tile.block * wide)

    chosen = tile or tiles_for(maps.shape, kernel).of(False, planes)
    out = fitting(chosen, needs, maps.values.device, with_tile)
    if layout(like) is torch.contiguous_format:
        return out
    back = torch.empty_like(like, memory_format=torch.channels_last)
    _copy(out, back, width, from_last=False, to_last=True, planes=1)
    return back


def _weight_gradient(grad: _Maps, maps: _Maps, kernel: tuple[int, int], planes: int, tile: Tile | None) -> Tensor:
    num_images, channels, height, width = maps.shape

    def with_tile(tile: Tile) -> Tensor:
        cut = cut_map(height, width, kernel, tile)
        # Of all groups of rows, those that meet a row of the map from some block of rows.
        first_step = max(0, cut.up - (cut.row_blocks - 1) * tile.rows) // tile.down
        steps = min(cut.steps, (height - 1 + cut.up) // tile.down + 1) - first_step
        first_line = kernel[0] // 2 - cut.up + first_step * tile.down - (tile.rows - 1)
        first_column = cut.left + kernel[1] // 2 - (tile.columns - 1)
        lags_y = at_least(tile.down + tile.rows - 1)
        lags_x = at_least(min(tile.across + tile.columns - 1, kernel[1]))
        rows, images, columns = summed_at_a_time(num_images, cut, tile.block)
        groups = -(-num_images // images) * -(-cut.row_blocks // rows) * -(-cut.column_blocks // columns)
        # A few hundred programs at least.
        splits = max(1, min(256 // (channels * steps * cut.across), groups // 4))
        programs = channels * steps * cut.across * splits
        parts = torch.empty((programs, lags_y, lags_x), dtype=torch.float32, device=maps.values.device)
        shape = {"R": tile.rows, "BN": tile.columns, "S": tile.down, "J": tile.across, "NX": cut.across}
        shape |= {"LAGS_Y": lags_y, "LAGS_X": lags_x}
        unit = math.gcd(maps.row, grad.row, 8)
        _launch(
            "weight_gradient", programs,
            (maps.values, grad.values, parts, num_images, channels, height, maps.row // unit, grad.row // unit, steps,
             first_step, cut.up, cut.row_blocks, cut.column_blocks, first_column, splits),
            num_warps=tile.warps, num_stages=tile.stages, UNIT=unit, LEFT=cut.left, BLOCK_ROWS=rows, IMAGES=images,
            BLOCK_COLUMNS=columns, WHOLE=num_images % images == 0, PLANES=planes, **shape,
        )  # fmt: skip
        out = torch.empty((channels, 1, *kernel), dtype=torch.float32, device=maps.values.device)
        taps = min(128, at_least(kernel[1]))
        _launch(
            "collect", channels * kernel[0] * -(-kernel[1] // taps),
            (parts, out, *kernel, steps, first_line, first_column, splits), num_warps=1, num_stages=1, BK=taps, **shape,
        )  # fmt: skip
        return out

    def needs(tile: Tile) -> int:
        tall, wide = tile.down * tile.across, tile.rows * tile.columns
        return max(2 * planes * tile.stages * tile.block * (tall + wide), 4 * tall * wide)

    chosen = tile or tiles_for(maps.shape, kernel).of(True, planes)
    return fitting(chosen, needs, maps.values.device, with_tile)


_FAILED: set[torch.device] = set()


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def is_usable(device: torch.device) -> bool:
    """Whether there is Triton for this device, and it has not failed there.

    Before capability 8.0 Triton compiles, but for no tensor cores, which takes longer than PyTorch's own convolution.
    """
    if device.type != "cuda" or device in _FAILED or torch.version.hip or not _has_triton():
        return False
    return _capability(device) >= (8, 0)


@cache
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def give_up(device: torch.device, error: KernelError) -> None:
    """Note that kernels fail on a device, and say so once."""
    if device not in _FAILED:
        _FAILED.add(device)
        warnings.warn(
            f"large kernels are computed by PyTorch's own convolution on {device}, which is slower: {error}",
            stacklevel=2,
        )


@cache
def _kernels() -> ModuleType:
    from replknet.convolution import toeplitz_kernels

    return toeplitz_kernels


def _launch(name: str, programs: int, arguments: tuple[Any, ...], **constants: Any) -> None:
    device = arguments[0].device
    try:
        kernel = getattr(_kernels(), name)[(programs,)]
        if device.type != "cuda" or device.index == torch.cuda.current_device():
            kernel(*arguments, **constants)
        else:
            with torch.cuda.device(device):
                kernel(*arguments, **constants)
    except Exception as error:  # of a compiler, its files, or the driver
        if type(error).__name__ == "OutOfResources":
            raise TooLargeError from error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise KernelError(f"Triton cannot run {name} on {device} ({type(error).__name__}: {reason})") from error
