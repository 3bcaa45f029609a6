"""Depthwise convolution by the fast Fourier transform, in blocks of channels that fit the cache.

The images of an even batch are paired and packed into one complex map, z = a + ib: a depthwise convolution is linear
and its kernel real, so the real and the imaginary part of the result are the two results, and one complex transform
serves both without any untangling. An odd batch goes through real transforms, which take some 1.2 times as long for
each image. Only lags up to (K - 1) // 2 are wanted, so a transform of length H + (K - 1) // 2 holds all of them without
wrapping.

Convolution means cross-correlation here, as in `torch.nn.functional.conv2d`. Nothing in this module is differentiable.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from replknet.layout import Output, rows_of_pixels

BLOCK_BYTES = 3 * 2**20
"""Size of one block of packed maps: measured flat from 1 to 4 MiB, with 1 MiB of second-level cache per core."""


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
    """How a batch of maps is packed and how long its transforms are.

    Attributes:
        height, width: Size of one map.
        reach: Largest vertical and horizontal lag.
        pairs: Whether two images make one complex map.
        length: Vertical and horizontal length of the transform.
        num_images: In the batch.
    """

    height: int
    width: int
    reach: tuple[int, int]
    pairs: bool
    length: tuple[int, int]
    num_images: int

    @property
    def num_packed(self) -> int:
        """Packed maps per channel."""
        return self.num_images // 2 if self.pairs else self.num_images

    @property
    def num_frequencies(self) -> int:
        """Values in the spectrum of a packed map; that of a real one is half as wide."""
        return self.length[0] * (self.length[1] if self.pairs else self.length[1] // 2 + 1)

    def channels_per_block(self, itemsize: int) -> int:
        channels = BLOCK_BYTES // (itemsize * self.num_images * self.length[0] * self.length[1])
        return max(1, channels - channels % 2)  # threads share the channels


@lru_cache(maxsize=1024)
def geometry(num_images: int, height: int, width: int, kernel_height: int, kernel_width: int) -> Geometry:
    reach = (kernel_height // 2, kernel_width // 2)
    return Geometry(
        height=height,
        width=width,
        reach=reach,
        pairs=num_images % 2 == 0,
        length=(transform_length(height + reach[0]), transform_length(width + reach[1])),
        num_images=num_images,
    )


def kernel_spectrum(weight: Tensor, geom: Geometry) -> Tensor:
    """Conjugate spectrum of kernels of shape (C, 1, Kh, Kw): the factor of a packed map's spectrum, (C, ...)."""
    taps = weight[:, 0].flip(1, 2)
    up, left = geom.reach
    rolled = taps.new_zeros((taps.shape[0], *geom.length))
    rows = ((slice(0, up + 1), slice(up, None)), (slice(geom.length[0] - up, None), slice(0, up)))
    columns = ((slice(0, left + 1), slice(left, None)), (slice(geom.length[1] - left, None), slice(0, left)))
    for row_to, row_from in rows:
        for column_to, column_from in columns:
            rolled[:, row_to, column_to] = taps[:, row_from, column_from]
    # `torch.fft.fft2` would make them complex first and take twice the time.
    spectrum: Tensor = torch.ops.aten._fft_r2c(rolled, (1, 2), 0, not geom.pairs)
    return spectrum


def correlate(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    spectrum: Tensor | None = None,
    kept: list[Tensor] | None = None,
) -> Tensor:
    """Depthwise convolution with stride 1 and "same" zero padding.

    Args:
        x: Maps, shape (N, C, H, W), float32 or float64, in any layout; N, H and W at least 1.
        weight: Kernels, shape (C, 1, Kh, Kw), both sides odd, at most 2 H - 1 and 2 W - 1.
        bias: Shape (C,).
        spectrum: The result of `kernel_spectrum`, when it is known already.
        kept: Gets the spectrum of each block of maps, for `gradients`.

    Returns:
        Shape (N, C, H, W), in the layout of `x`.
    """
    geom = geometry(x.shape[0], *x.shape[2:], *weight.shape[2:])
    source, out = rows_of_pixels(x), Output(x)
    room = _zeros(x, geom)
    for block in _blocks(x, geom):
        factor = kernel_spectrum(weight[block], geom) if spectrum is None else spectrum[block]
        product = _transform(source[:, block], geom, room)
        if kept is not None:
            kept.append(product)
        product = product.mul_(factor) if kept is None else product * factor
        for images, maps in _inverse(product, geom):
            out.put(images, block, maps, None if bias is None else bias[block])
    return out.result()


def gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    *,
    input_gradient: bool,
    weight_gradient: bool,
    spectrum: Tensor | None = None,
    kept: Sequence[Tensor] = (),
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `correlate` for its input and its kernels; both use one spectrum of the incoming gradient.

    Args:
        grad: Gradient of the output, shape (N, C, H, W).
        x: The input of `correlate`; looked at for its shape and layout only without `weight_gradient`.
        weight: The kernels; looked at for their shape only without `input_gradient`.
        input_gradient: Whether to compute the input's gradient; otherwise it is None.
        weight_gradient: The same for the kernels.
        spectrum: As for `correlate`.
        kept: The spectra of the blocks of `x` that `correlate` kept; if empty, they are computed.
    """
    geom = geometry(x.shape[0], *x.shape[2:], *weight.shape[2:])
    grad_input = Output(x) if input_gradient else None
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if weight_gradient else None
    incoming, room = rows_of_pixels(grad), _zeros(x, geom)
    source = rows_of_pixels(x) if weight_gradient and not kept else x
    for index, block in enumerate(_blocks(x, geom)):
        transformed = _transform(incoming[:, block], geom, room)
        if grad_weight is not None:
            of_input = kept[index] if kept else _transform(source[:, block], geom, room)
            product = torch.conj_physical(of_input).mul_(transformed)
            total = product[0] if len(product) == 1 else product.sum(0)
            grad_weight[block, 0] = _lags(total, geom)
        if grad_input is not None:
            factor = kernel_spectrum(weight[block], geom) if spectrum is None else spectrum[block]
            # Not conj(): inside a compiled graph its lazy flag can be lost.
            product = transformed.mul_(torch.conj_physical(factor))
            for images, maps in _inverse(product, geom):
                grad_input.put(images, block, maps, None)
    return None if grad_input is None else grad_input.result(), grad_weight


def _blocks(x: Tensor, geom: Geometry) -> Iterator[slice]:
    step = geom.channels_per_block(x.element_size())
    return (slice(first, first + step) for first in range(0, x.shape[1], step))


def _zeros(x: Tensor, geom: Geometry) -> Tensor:
    """Room for one packed block, (images or pairs, channels, *length); the margins stay zero from block to block."""
    _retain_freed_memory()
    channels = min(x.shape[1], geom.channels_per_block(x.element_size()))
    dtype = x.dtype.to_complex() if geom.pairs else x.dtype
    return torch.zeros((geom.num_packed, channels, *geom.length), dtype=dtype)


def _transform(maps: Tensor, geom: Geometry, room: Tensor) -> Tensor:
    """Spectra of maps (N, c, groups of rows, rows, W), which are packed into `room`."""
    packed = room[:, : maps.shape[1]]
    inside = packed[..., : geom.height, : geom.width]
    inside = inside.view(*inside.shape[:2], *maps.shape[2:])
    if geom.pairs:
        torch.complex(maps[: geom.num_packed], maps[geom.num_packed :], out=inside)
        paired: Tensor = torch.fft.fft2(packed)
        return paired
    inside.copy_(maps)
    spectra: Tensor = torch.ops.aten._fft_r2c(packed, (2, 3), 0, True)
    return spectra


def _inverse(spectra: Tensor, geom: Geometry) -> Iterator[tuple[slice, Tensor]]:
    """The maps of packed spectra: which images, and their maps, (images, c, H, W)."""
    if geom.pairs:
        parts = torch.view_as_real(torch.fft.ifft2(spectra))[..., : geom.height, : geom.width, :]
        yield slice(0, geom.num_packed), parts[..., 0]
        yield slice(geom.num_packed, None), parts[..., 1]
        return
    rows = torch.ops.aten._fft_c2c(spectra, (2,), 2, False)[..., : geom.height, :]
    yield slice(None), torch.ops.aten._fft_c2r(rows, (3,), 2, geom.length[1])[..., : geom.width]


def _lags(total: Tensor, geom: Geometry) -> Tensor:
    """The kernels' gradient (c, Kh, Kw) from conj(map) * gradient, summed over the images.

    The real part at -d is the gradient of the tap with lag d.
    """
    up, left = geom.reach
    if geom.pairs:
        lags = _centred(torch.fft.ifft2(total).real, 1, up)
    else:
        rows = _centred(torch.ops.aten._fft_c2c(total, (1,), 2, False), 1, up)
        lags = torch.ops.aten._fft_c2r(rows, (2,), 2, geom.length[1])
    return _centred(lags, 2, left).flip(1, 2)


def _centred(lags: Tensor, axis: int, reach: int) -> Tensor:
    """The lags -reach..reach of circular lags along an axis."""
    length = lags.shape[axis]
    return torch.cat([lags.narrow(axis, length - reach, reach), lags.narrow(axis, 0, reach + 1)], axis)
