"""Depthwise convolution by the fast Fourier transform, in blocks of channels that fit the cache.

Two real maps are packed into one complex map, z = a + ib: a depthwise convolution is linear and its kernel real, so the
real and the imaginary part of the result are the two results, and one complex transform serves both without any
untangling. The two maps are two images of the batch, or, in a batch of odd length, the upper and the lower half of one
image, each with the rows of the other half that its kernel reaches. Only lags up to (K - 1) // 2 are wanted, so a
transform of length H + (K - 1) // 2 (for halves, H / 2 + K - 1) holds all of them without wrapping.

Convolution means cross-correlation here, as in `torch.nn.functional.conv2d`. Nothing in this module is differentiable.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

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


def layout(x: Tensor) -> torch.memory_format:
    """channels_last for maps that are so and not contiguous as well; contiguous for all others."""
    if (
        not x.is_contiguous()
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)  # vmap cannot tell
        and x.is_contiguous(memory_format=torch.channels_last)
    ):
        return torch.channels_last
    return torch.contiguous_format


@dataclass(frozen=True)
class Geometry:
    """How a batch of maps is packed and how long its transforms are.

    Attributes:
        height, width: Size of one map.
        reach: Largest vertical and horizontal lag.
        halves: Whether a pair is the two halves of one image instead of two images.
        length: Vertical and horizontal length of the transform.
        num_pairs: Packed maps per channel.
    """

    height: int
    width: int
    reach: tuple[int, int]
    halves: bool
    length: tuple[int, int]
    num_pairs: int

    @property
    def top(self) -> int:
        """Rows of the upper half."""
        return (self.height + 1) // 2

    def channels_per_block(self, itemsize: int) -> int:
        channels = BLOCK_BYTES // (2 * itemsize * self.num_pairs * self.length[0] * self.length[1])
        return max(1, channels - channels % 2)  # threads share the channels


@lru_cache(maxsize=1024)
def geometry(num_images: int, height: int, width: int, kernel_height: int, kernel_width: int) -> Geometry:
    reach = (kernel_height // 2, kernel_width // 2)
    halves = num_images % 2 == 1
    rows = height + reach[0]
    if halves:
        top = (height + 1) // 2
        rows = max(min(top + reach[0], height), height - top + min(reach[0], top)) + reach[0]
    return Geometry(
        height=height,
        width=width,
        reach=reach,
        halves=halves,
        length=(transform_length(rows), transform_length(width + reach[1])),
        num_pairs=num_images if halves else num_images // 2,
    )


def kernel_spectrum(weight: Tensor, geom: Geometry) -> Tensor:
    """Conjugate spectrum of kernels of shape (C, 1, Kh, Kw), shape (C, *length): the factor of a map's spectrum."""
    taps = weight[:, 0].flip(1, 2)
    up, left = geom.reach
    rolled = taps.new_zeros((taps.shape[0], *geom.length))
    rows = ((slice(0, up + 1), slice(up, None)), (slice(geom.length[0] - up, None), slice(0, up)))
    columns = ((slice(0, left + 1), slice(left, None)), (slice(geom.length[1] - left, None), slice(0, left)))
    for row_to, row_from in rows:
        for column_to, column_from in columns:
            rolled[:, row_to, column_to] = taps[:, row_from, column_from]
    # What `torch.fft.fft2` returns for them, which would make them complex first and take twice the time.
    spectrum: Tensor = torch.ops.aten._fft_r2c(rolled, (1, 2), 0, False)
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
        kept: Gets the spectrum of each block of maps, for `gradients`; not for a batch of odd length.

    Returns:
        Shape (N, C, H, W), in the layout of `x`.
    """
    geom = geometry(x.shape[0], *x.shape[2:], *weight.shape[2:])
    out = torch.empty_like(x, memory_format=layout(x))
    packed = _zeros(x, geom)
    for block in _blocks(x, geom):
        source = _pack(x[:, block], geom, packed, halo=True)
        factor = kernel_spectrum(weight[block], geom) if spectrum is None else spectrum[block]
        product = torch.fft.fft2(source)
        if kept is not None:
            kept.append(product)
        product = product.mul_(factor) if kept is None else product * factor
        _unpack(torch.fft.ifft2(product), geom, out[:, block], None if bias is None else bias[block])
    return out


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
    if weight_gradient and not input_gradient and geom.halves:
        # Whole maps by real transforms; for larger maps whose padded halves are much shorter, the complex transforms of
        # these are faster (measured).
        whole = (transform_length(geom.height + geom.reach[0]), geom.length[1])
        if geom.height <= 28 or 5 * whole[0] <= 8 * geom.length[0]:
            return None, _by_real_transforms(grad, x, weight, geom.reach, whole)
    grad_input = torch.empty_like(x, memory_format=layout(x)) if input_gradient else None
    grad_weight = torch.empty_like(weight, memory_format=torch.contiguous_format) if weight_gradient else None
    packed = _zeros(x, geom)
    packed_input = _zeros(x, geom) if weight_gradient and not kept else None
    for index, block in enumerate(_blocks(x, geom)):
        transformed = torch.fft.fft2(_pack(grad[:, block], geom, packed, halo=True))
        if grad_weight is not None:
            if packed_input is None:
                conjugated = torch.conj_physical(kept[index])
            else:
                # The inverse transform of the conjugate is the conjugate of the transform.
                source = _pack(x[:, block], geom, packed_input, halo=False, conjugate=True)
                conjugated = torch.fft.ifft2(source, norm="forward")
            product = conjugated.mul_(transformed)
            total = product[0] if geom.num_pairs == 1 else product.sum(0)
            # The real part at -d is the gradient of the tap with lag d.
            lags = torch.fft.ifft2(total).real
            grad_weight[block, 0] = _centred(lags, geom.reach).flip(1, 2)
        if grad_input is not None:
            factor = kernel_spectrum(weight[block], geom) if spectrum is None else spectrum[block]
            # Not conj(): inside a compiled graph its lazy flag can be lost.
            product = transformed.mul_(torch.conj_physical(factor))
            _unpack(torch.fft.ifft2(product), geom, grad_input[:, block], None)
    return grad_input, grad_weight


def _by_real_transforms(
    grad: Tensor, x: Tensor, weight: Tensor, reach: tuple[int, int], length: tuple[int, int]
) -> Tensor:
    """The gradient of the kernels alone."""
    height, width = x.shape[2:]
    step = max(1, BLOCK_BYTES // (x.element_size() * x.shape[0] * length[0] * length[1]))
    step = max(1, step - step % 2)
    padded = x.new_zeros((2, x.shape[0], min(step, x.shape[1]), *length))
    gradient = torch.empty_like(weight, memory_format=torch.contiguous_format)
    for first in range(0, x.shape[1], step):
        block = slice(first, min(first + step, x.shape[1]))
        maps = padded[:, :, : block.stop - first]
        maps[0, :, :, :height, :width] = x[:, block]
        maps[1, :, :, :height, :width] = grad[:, block]
        of_input, of_grad = torch.ops.aten._fft_r2c(maps, (3, 4), 0, True)
        product = torch.conj_physical(of_input).mul_(of_grad)
        total = product[0] if len(product) == 1 else product.sum(0)
        lags = torch.fft.irfft2(total, s=length)
        gradient[block, 0] = _centred(lags, reach).flip(1, 2)
    return gradient


def _blocks(x: Tensor, geom: Geometry) -> Iterator[slice]:
    step = geom.channels_per_block(x.element_size())
    return (slice(first, first + step) for first in range(0, x.shape[1], step))


def _zeros(x: Tensor, geom: Geometry) -> Tensor:
    """Room for one packed block, (pairs, channels, *length); the margins stay zero from block to block."""
    _retain_freed_memory()
    channels = min(x.shape[1], geom.channels_per_block(x.element_size()))
    return torch.zeros((geom.num_pairs, channels, *geom.length), dtype=x.dtype.to_complex())


def _pack(maps: Tensor, geom: Geometry, packed: Tensor, *, halo: bool, conjugate: bool = False) -> Tensor:
    """Copy maps (N, c, H, W) into `packed`; `halo` adds the rows that a half needs of the other half."""
    packed = packed[:, : maps.shape[1]]
    inside = packed[..., : geom.width]
    if not geom.halves:
        first, second, rows = maps[: geom.num_pairs], maps[geom.num_pairs :], geom.height
    else:
        first, second, rows = maps, maps[..., geom.top :, :], geom.height - geom.top
        parts = torch.view_as_real(inside)
        # Rows of the upper half that have no counterpart below, then those that its kernels reach into.
        last = geom.top + (min(geom.reach[0], rows) if halo else 0)
        parts[..., rows:last, :, 0] = maps[..., rows:last, :]
        if halo and rows > 0:
            above = min(geom.reach[0], geom.top)
            parts[..., geom.length[0] - above :, :, 1] = maps[..., geom.top - above : geom.top, :]
    torch.complex(first[..., :rows, :], second.neg() if conjugate else second, out=inside[..., :rows, :])
    return packed


def _unpack(packed: Tensor, geom: Geometry, maps: Tensor, bias: Tensor | None) -> None:
    """Write the packed results (pairs, c, *length) to maps (N, c, H, W), adding the bias."""
    parts = torch.view_as_real(packed)[..., : geom.width, :]
    if geom.halves:
        targets = (maps[..., : geom.top, :], maps[..., geom.top :, :])
    else:
        targets = (maps[: geom.num_pairs], maps[geom.num_pairs :])
    for part, target in enumerate(targets):
        source = parts[..., : target.shape[-2], :, part]
        if bias is None:
            target.copy_(source)
        else:
            torch.add(source, bias[:, None, None], out=target)


def _centred(lags: Tensor, reach: tuple[int, int]) -> Tensor:
    """The lags -reach..reach of circular lags (c, *length), as (c, 2 * reach + 1, ...)."""
    for axis, lag in ((1, reach[0]), (2, reach[1])):
        length = lags.shape[axis]
        lags = torch.cat([lags.narrow(axis, length - lag, lag), lags.narrow(axis, 0, lag + 1)], axis)
    return lags
