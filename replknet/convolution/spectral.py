"""Depthwise convolution by the fast Fourier transform, in blocks of channels that fit the cache.

Every map of every image has a real transform of its own, so that what is in one map reaches no other: a NaN or an
infinity fills its image and channel and nothing else, and rounding errors are relative to the largest value there.
Only lags up to (K - 1) // 2 are wanted, so a transform of length H + (K - 1) // 2 holds all of them without wrapping.

Convolution means cross-correlation here, as in `torch.nn.functional.conv2d`. Nothing in this module is differentiable.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from replknet.convolution.layouts import Output, rows_of_pixels

BLOCK_BYTES = 3 * 2**20
"""Size of one block of maps: measured flat from 1 to 4 MiB, with 1 MiB of second-level cache per core."""


@lru_cache(maxsize=1)
def _retain_freed_memory() -> None:
    """Let the C library keep the memory of blocks for the next block, where it is glibc; elsewhere this does nothing.

    glibc returns freed memory to the system beyond a limit that follows the largest block freed so far, up to 32 MiB.
    Pages fresh from the system for every block cost up to a quarter of the time of a convolution.
    """
    torch.empty(30 * 2**20, dtype=torch.uint8)


@lru_cache(maxsize=1024)
def transform_length(minimum: int) -> int:
    """The smallest fast length of at least `minimum` (1 for a single pixel).

    Fast are, as measured with MKL, multiples of 4 without a prime factor above 11 and small even numbers without one
    above 7; a multiple of 2 alone costs about a quarter more per point.
    """
    if minimum <= 1:
        return 1
    length = minimum + minimum % 2
    while not (_is_smooth(length, 11) if length % 4 == 0 else length <= 42 and _is_smooth(length, 7)):
        length += 2
    return length


def _is_smooth(number: int, largest: int) -> bool:
    """Whether it has no prime factor above `largest`."""
    for factor in range(2, largest + 1):
        while number % factor == 0:
            number //= factor
    return number == 1


@dataclass(frozen=True)
class Geometry:
    """How long the transforms of maps are.

    Attributes:
        height, width: Size of one map.
        reach: Largest vertical and horizontal lag.
        length: Vertical and horizontal length of the transform.
    """

    height: int
    width: int
    reach: tuple[int, int]
    length: tuple[int, int]

    def channels_per_block(self, num_images: int, itemsize: int) -> int:
        channels = BLOCK_BYTES // (itemsize * num_images * self.length[0] * self.length[1])
        return max(1, channels - channels % 2)  # threads share the channels


@lru_cache(maxsize=1024)
def geometry(height: int, width: int, kernel_height: int, kernel_width: int) -> Geometry:
    reach = (kernel_height // 2, kernel_width // 2)
    length = (transform_length(height + reach[0]), transform_length(width + reach[1]))
    return Geometry(height=height, width=width, reach=reach, length=length)


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
    geom = geometry(*x.shape[2:], *weight.shape[2:])
    source, out = rows_of_pixels(x), Output(x)
    room = _zeros(x, geom)
    for block in _blocks(x, geom):
        spectra = _transform(source[:, block], geom, room)
        if kept is not None:
            kept.append(spectra)
        factor = _kernel_spectrum(weight[block], geom)
        product = spectra * factor if kept is not None else spectra.mul_(factor)
        out.put(block, _inverse(product, geom), None if bias is None else bias[block])
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
    geom = geometry(*x.shape[2:], *weight.shape[2:])
    grad_input = Output(x) if input_gradient else None
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if weight_gradient else None
    incoming, room = rows_of_pixels(grad), _zeros(x, geom)
    source = rows_of_pixels(x) if weight_gradient and not kept else x
    for index, block in enumerate(_blocks(x, geom)):
        transformed = _transform(incoming[:, block], geom, room)
        if grad_weight is not None:
            of_input = kept[index] if kept else _transform(source[:, block], geom, room)
            product = torch.conj_physical(of_input).mul_(transformed)
            grad_weight[block, 0] = _lags(product[0] if len(product) == 1 else product.sum(0), geom)
        if grad_input is not None:
            # Not conj(): inside a compiled graph its lazy flag can be lost.
            product = transformed.mul_(torch.conj_physical(_kernel_spectrum(weight[block], geom)))
            grad_input.put(block, _inverse(product, geom), None)
    return None if grad_input is None else grad_input.result(), grad_weight


def _blocks(x: Tensor, geom: Geometry) -> Iterator[slice]:
    step = geom.channels_per_block(len(x), x.element_size())
    return (slice(first, first + step) for first in range(0, x.shape[1], step))


def _zeros(x: Tensor, geom: Geometry) -> Tensor:
    """Room for one block, (N, channels, *length); the margins stay zero from block to block."""
    _retain_freed_memory()
    channels = min(x.shape[1], geom.channels_per_block(len(x), x.element_size()))
    return x.new_zeros((len(x), channels, *geom.length))


def _transform(maps: Tensor, geom: Geometry, room: Tensor) -> Tensor:
    """Spectra of maps (N, c, groups of rows, rows, W), which are put into `room`."""
    padded = room[:, : maps.shape[1]]
    inside = padded[..., : geom.height, : geom.width]
    inside.view(*inside.shape[:2], *maps.shape[2:]).copy_(maps)
    spectra: Tensor = torch.fft.rfft2(padded)
    return spectra


def _kernel_spectrum(weight: Tensor, geom: Geometry) -> Tensor:
    """Conjugate spectrum of kernels of shape (c, 1, Kh, Kw): the factor of a map's spectrum, (c, ...)."""
    taps = weight[:, 0].flip(1, 2)
    up, left = geom.reach
    rolled = taps.new_zeros((taps.shape[0], *geom.length))
    rows = ((slice(0, up + 1), slice(up, None)), (slice(geom.length[0] - up, None), slice(0, up)))
    columns = ((slice(0, left + 1), slice(left, None)), (slice(geom.length[1] - left, None), slice(0, left)))
    for row_to, row_from in rows:
        for column_to, column_from in columns:
            rolled[:, row_to, column_to] = taps[:, row_from, column_from]
    spectra: Tensor = torch.fft.rfft2(rolled)
    return spectra


def _inverse(spectra: Tensor, geom: Geometry) -> Tensor:
    """The maps of spectra, (N, c, H, W); rows beyond H are left out before the second transform."""
    rows = torch.fft.ifft(spectra, dim=2)[:, :, : geom.height]
    maps: Tensor = torch.fft.irfft(rows, geom.length[1])[..., : geom.width]
    return maps


def _lags(total: Tensor, geom: Geometry) -> Tensor:
    """The kernels' gradient (c, Kh, Kw) from conj(map) * gradient, summed over the images.

    The value at -d is the gradient of the tap with lag d.
    """
    up, left = geom.reach
    rows = _centred(torch.fft.ifft(total, dim=1), 1, up)
    return _centred(torch.fft.irfft(rows, geom.length[1]), 2, left).flip(1, 2)


def _centred(lags: Tensor, axis: int, reach: int) -> Tensor:
    """The lags -reach..reach of circular lags along an axis."""
    length = lags.shape[axis]
    return torch.cat([lags.narrow(axis, length - reach, reach), lags.narrow(axis, 0, reach + 1)], axis)
