"""Depthwise convolution by the fast Fourier transform, in blocks of channels: on a CPU, as many as fit the cache.

Every map of every image has a real transform of its own, so that what is in one map reaches no other: a NaN or an
infinity fills its image and channel and nothing else, and rounding errors are relative to the largest value there.

A map lies in a grid of zeros, (K - 1) // 2 rows and columns larger than itself, which holds all lags that are wanted
without wrapping. The grid is transformed row by row as one long line: a tap is so many rows and columns further along
it, and what leaves a row at either end meets zeros. A transform of a line that fits the first-level cache takes about
half the time of one in two dimensions, which only very large maps get, and none on a GPU.

Convolution means cross-correlation here, as in `torch.nn.functional.conv2d`. Nothing in this module is differentiable.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from replknet.convolution.layouts import Output, rows_of_pixels

BLOCK_BYTES = 3 * 2**20
"""Size of one block of maps: measured flat from 1 to 4 MiB, with 1 MiB of second-level cache per core."""
GPU_BLOCK_BYTES = 256 * 2**20
"""The same on a GPU, where some four times as much is in use at a time; smaller blocks take up to twice as long."""


@lru_cache(maxsize=1)
def _retain_freed_memory() -> None:
    """Let the C library keep the memory of blocks for the next block, where it is glibc; elsewhere this does nothing.

    glibc returns freed memory to the system beyond a limit that follows the largest block freed so far, up to 32 MiB.
    Pages fresh from the system for every block cost up to a quarter of the time of a convolution.
    """
    torch.empty(30 * 2**20, dtype=torch.uint8)


LARGEST_LINE = 12 * 1024
"""Points of the largest grid that is transformed as one line: measured with 48 KiB of first-level cache per core."""


@lru_cache(maxsize=1024)
def line_length(minimum: int) -> int:
    """The smallest fast length of at least `minimum` for a line: multiples of 16 without a prime factor above 7.

    As measured with MKL; others take up to twice as long per point.
    """
    length = -(-minimum // 16) * 16
    while not _is_smooth(length, 7):
        length += 16
    return length


@lru_cache(maxsize=1024)
def side_length(minimum: int) -> int:
    """The same for a side of a transform in two dimensions: 1, or multiples of 4 without a prime factor above 11."""
    if minimum <= 1:
        return 1
    length = -(-minimum // 4) * 4
    while not _is_smooth(length, 11):
        length += 4
    return length


def _is_smooth(number: int, largest: int) -> bool:
    """Whether it has no prime factor above `largest`."""
    for factor in range(2, largest + 1):
        while number % factor == 0:
            number //= factor
    return number == 1


@dataclass(frozen=True)
class Geometry:
    """Where maps and kernels lie in a grid, and how the grid is transformed.

    Attributes:
        height, width: Size of one map.
        reach: Largest vertical and horizontal lag.
        grid: Rows and columns of the grid.
        length: Of the transform: of one line that begins with the grid's rows, or of both sides of the grid.
    """

    height: int
    width: int
    reach: tuple[int, int]
    grid: tuple[int, int]
    length: tuple[int, ...]

    @property
    def points(self) -> int:
        """Of the transform."""
        return math.prod(self.length)

    @property
    def maps_at(self) -> tuple[slice, slice]:
        """The part of the grid where a map lies, so that lags up to the reach before it are in the grid as well."""
        up, left = self.reach
        return slice(up, up + self.height), slice(left, left + self.width)

    @property
    def results_at(self) -> tuple[slice, slice]:
        """The part where an output appears, and where a gradient lies."""
        return slice(0, self.height), slice(0, self.width)

    @property
    def kernels_at(self) -> tuple[slice, slice]:
        """The part where a kernel lies, and where its gradient appears."""
        return slice(0, 2 * self.reach[0] + 1), slice(0, 2 * self.reach[1] + 1)

    def channels_per_block(self, num_images: int, itemsize: int, block_bytes: int) -> int:
        channels = block_bytes // (itemsize * num_images * self.points)
        return max(1, channels - channels % 2)  # threads share the channels


@lru_cache(maxsize=1024)
def geometry(height: int, width: int, kernel_height: int, kernel_width: int, one_line: bool = False) -> Geometry:
    reach = (kernel_height // 2, kernel_width // 2)
    grid = (height + reach[0], width + reach[1])
    length: tuple[int, ...] = (line_length(grid[0] * grid[1]),)
    if length[0] > LARGEST_LINE and not one_line:
        grid = length = (side_length(grid[0]), side_length(grid[1]))
    return Geometry(height=height, width=width, reach=reach, grid=grid, length=length)


def correlate(x: Tensor, weight: Tensor, bias: Tensor | None, kept: list[Tensor] | None = None) -> Tensor:
    """Depthwise convolution with stride 1 and "same" zero padding.

    Args:
        x: Maps, shape (N, C, H, W), float32 or float64, in any layout; N, H and W at least 1.
        weight: Kernels, shape (C, 1, Kh, Kw), both sides odd, at most 2 H - 1 and 2 W - 1.
        bias: Shape (C,).
        kept: Gets the spectrum of each block of maps, for `gradients`.

    Returns:
        Shape (N, C, H, W), in the layout of `x`.
    """
    geom = geometry(*x.shape[2:], *weight.shape[2:], one_line=x.is_cuda)
    source, out = rows_of_pixels(x), Output(x)
    room = _zeros(x, geom)
    for block in _blocks(x, geom):
        spectra = _transform(source[:, block], geom, geom.maps_at, room)
        if kept is not None:
            kept.append(spectra)
        # Not conj(): inside a compiled graph its lazy flag can be lost.
        factor = _kernel_spectra(weight[block], geom).conj_physical_()
        product = spectra * factor if kept is not None else spectra.mul_(factor)
        out.put(block, _inverse(product, geom, geom.results_at), None if bias is None else bias[block])
    return out.result()


def gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    input_gradient: bool,
    weight_gradient: bool,
    kept: Sequence[Tensor] = (),
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `correlate` for its input and its kernels; both use one spectrum of the incoming gradient.

    Args:
        grad: Gradient of the output, shape (N, C, H, W).
        x: The input of `correlate`; looked at for its shape and layout only without `weight_gradient`.
        weight: The kernels; looked at for their shape only without `input_gradient`.
        input_gradient: Whether to compute the input's gradient; otherwise it is None.
        weight_gradient: The same for the kernels.
        kept: The spectra of the blocks of `x` that `correlate` kept; if empty, they are computed.
    """
    geom = geometry(*x.shape[2:], *weight.shape[2:], one_line=x.is_cuda)
    grad_input = Output(x) if input_gradient else None
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if weight_gradient else None
    incoming, room = rows_of_pixels(grad), _zeros(x, geom)
    computes_maps = weight_gradient and not kept
    source, room_of_maps = (rows_of_pixels(x), _zeros(x, geom)) if computes_maps else (x, room)
    for index, block in enumerate(_blocks(x, geom)):
        transformed = _transform(incoming[:, block], geom, geom.results_at, room)
        if grad_weight is not None:
            maps = _transform(source[:, block], geom, geom.maps_at, room_of_maps) if computes_maps else kept[index]
            product = torch.conj_physical(transformed).mul_(maps)
            total = product[0] if len(product) == 1 else product.sum(0)
            grad_weight[block, 0] = _inverse(total, geom, geom.kernels_at)
        if grad_input is not None:
            product = transformed.mul_(_kernel_spectra(weight[block], geom))
            grad_input.put(block, _inverse(product, geom, geom.maps_at), None)
    return None if grad_input is None else grad_input.result(), grad_weight


def _blocks(x: Tensor, geom: Geometry) -> Iterator[slice]:
    step = _channels_per_block(x, geom)
    return (slice(first, first + step) for first in range(0, x.shape[1], step))


def _channels_per_block(x: Tensor, geom: Geometry) -> int:
    return geom.channels_per_block(len(x), x.element_size(), GPU_BLOCK_BYTES if x.is_cuda else BLOCK_BYTES)


def _zeros(x: Tensor, geom: Geometry) -> Tensor:
    """Room for one block, (N, channels, *length); what is outside of the maps stays zero from block to block."""
    _retain_freed_memory()
    channels = min(x.shape[1], _channels_per_block(x, geom))
    return x.new_zeros((len(x), channels, *geom.length))


def _grid(lines: Tensor, geom: Geometry) -> Tensor:
    """The grids in what is transformed, as (..., rows, columns)."""
    if len(geom.length) == 2:
        return lines
    return lines[..., : math.prod(geom.grid)].view(*lines.shape[:-1], *geom.grid)


def _transform(maps: Tensor, geom: Geometry, place: tuple[slice, slice], room: Tensor) -> Tensor:
    """Spectra of maps (N, c, groups of rows, rows, W), which are put into `room`."""
    padded = room[:, : maps.shape[1]]
    inside = _grid(padded, geom)[..., place[0], place[1]]
    inside.view(*inside.shape[:2], *maps.shape[2:]).copy_(maps)
    return _spectra(padded, geom)


def _kernel_spectra(weight: Tensor, geom: Geometry) -> Tensor:
    """Of kernels (c, 1, Kh, Kw), (c, ...)."""
    padded = weight.new_zeros((len(weight), *geom.length))
    rows, columns = geom.kernels_at
    _grid(padded, geom)[..., rows, columns] = weight[:, 0]
    return _spectra(padded, geom)


def _spectra(padded: Tensor, geom: Geometry) -> Tensor:
    spectra: Tensor = torch.fft.rfftn(padded, dim=tuple(range(-len(geom.length), 0)))
    return spectra


def _inverse(spectra: Tensor, geom: Geometry, place: tuple[slice, slice]) -> Tensor:
    """What is at a place of the grid, (..., rows, columns); no other row is transformed to the end."""
    rows, columns = place
    if len(geom.length) == 2:
        spectra = torch.fft.ifft(spectra, dim=-2)[..., rows, :]
        rows = slice(None)
    lines = torch.fft.irfft(spectra, geom.length[-1])
    return _grid(lines, geom)[..., rows, columns]
