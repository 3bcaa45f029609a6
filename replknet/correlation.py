"""A depthwise convolution and both its gradients, each by the way that the cost model (`replknet.cost`) chooses.

Nothing in this module is differentiable; `replknet.differentiation` makes it so.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from replknet import spectral
from replknet.cost import (
    HALF,
    LARGEST_SAVED_SPECTRUM,
    LARGEST_SWAPPED_MAP,
    Plan,
    Way,
    is_slow,
    keeps_spectrum,
    plan,
    prefers_channels_last,
)
from replknet.layout import layout, with_layout


def plain_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    kernel = weight.shape
    return torch.conv2d(x, weight, bias, 1, (kernel[2] // 2, kernel[3] // 2), 1, kernel[0])


def ways_of(x: Tensor, weight: Tensor, method: str, kept: bool = False) -> Plan | None:
    """The way of each direction; None where there is nothing to compute."""
    if not x.numel():
        return None
    if method == "auto":
        return plan(*plan_key(x, weight), kept)
    way: Way = "fft" if method == "fft" else "direct"
    return Plan(way, way, way, crops=True)


def plan_key(x: Tensor, weight: Tensor) -> tuple[torch.Size, torch.Size, torch.dtype, bool, int]:
    """The arguments of `plan`; looking a plan up by them is most of what a small call costs."""
    return x.shape, weight.shape, x.dtype, layout(x) is torch.channels_last, torch.get_num_threads()


class SpectrumCache:
    """The last kernel spectrum of a layer, with the kernels it belongs to; a copy or a pickle of it is empty."""

    def __init__(self) -> None:
        self._entry: tuple[Tensor, tuple[tuple[int, int], bool], Tensor] | None = None

    def __reduce__(self) -> tuple[type["SpectrumCache"], tuple[()]]:
        return SpectrumCache, ()

    def spectrum(self, weight: Tensor, geom: spectral.Geometry) -> Tensor | None:
        """The spectrum of exactly these kernels; None where it would be too large to keep."""
        if not keeps_spectrum(geom, weight.shape[0], weight.dtype):
            return None
        entry, kind = self._entry, (geom.length, geom.pairs)
        if entry is None or entry[1] != kind or entry[0].dtype != weight.dtype or not torch.equal(entry[0], weight):
            entry = (weight.detach().clone(), kind, spectral.kernel_spectrum(weight.detach(), geom))
            self._entry = entry
        return entry[2]


class Settings(NamedTuple):
    """What is not a tensor: the method, a layer's kernel spectra, and which spectra to keep for the gradients."""

    method: str
    cache: SpectrumCache | None = None
    keep_kernels: bool = False
    keep_maps: bool = False

    def for_others(self) -> "Settings":
        """The same for another convolution."""
        return Settings(self.method)


def correlate(
    x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """The output, and the spectra of the kernels and of the blocks of maps that are to be kept."""
    ways = ways_of(x, weight, settings.method, settings.cache is not None)
    if ways is None or ways.output == "native":
        return plain_conv2d(x, weight, bias), None, []
    if ways.output == "direct":
        return _direct(x, weight, bias), None, []
    x32, weight32, bias32 = _at_least_float32(x), _at_least_float32(weight), _at_least_float32(bias)
    geom = spectral.geometry(x.shape[0], *x.shape[2:], *weight.shape[2:])
    spectrum = None if settings.cache is None else settings.cache.spectrum(weight32, geom)
    if (
        spectrum is None
        and settings.keep_kernels
        and keeps_spectrum(geom, weight.shape[0], weight32.dtype, LARGEST_SAVED_SPECTRUM)
    ):
        spectrum = spectral.kernel_spectrum(weight32, geom)
    kept: list[Tensor] | None = [] if settings.keep_maps else None
    out = spectral.correlate(x32, weight32, bias32, spectrum, kept).to(x.dtype)
    return out, spectrum if settings.keep_kernels else None, kept or []


def _direct(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Forward `conv2d` in the layout it is fastest in, returned in the layout of `x`."""
    # Half precision goes through float32 here: oneDNN's kernels for it are slow or, for some shapes, never return.
    out_layout, dtype = layout(x), x.dtype
    x, weight, bias = _at_least_float32(x), _at_least_float32(weight), _at_least_float32(bias)
    reach = max(weight.shape[2:]) // 2
    wanted = prefers_channels_last(reach, x.dtype, out_layout is torch.channels_last)
    if wanted and is_slow(reach, x.shape[1], x.dtype):
        weight = F.pad(weight, (1, 1, 1, 1))
    out = plain_conv2d(with_layout(x, torch.channels_last if wanted else torch.contiguous_format), weight, bias)
    return with_layout(out.to(dtype), out_layout)


def _direct_lags(x: Tensor, grad: Tensor, weight: Tensor) -> Tensor:
    """Weight gradient as a forward convolution in which every map of every image is a channel of its own."""
    num_images, channels, height, width = x.shape
    reach = (weight.shape[2] // 2, weight.shape[3] // 2)
    maps = with_layout(x, torch.contiguous_format).reshape(1, num_images * channels, height, width)
    if prefers_channels_last(max(reach), maps.dtype, False):
        maps = with_layout(maps, torch.channels_last)
    kernels = with_layout(grad, torch.contiguous_format).reshape(num_images * channels, 1, height, width)
    lags = F.conv2d(maps, kernels, padding=reach, groups=num_images * channels)
    return lags.reshape(num_images, channels, *lags.shape[2:]).sum(0)[:, None].to(weight.dtype)


def gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    input_gradient: bool,
    weight_gradient: bool,
    settings: Settings,
    spectrum: Tensor | None = None,
    kept: Sequence[Tensor] = (),
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients; where one is not asked for, the tensor that only the other needs is looked at for its shape."""
    ways = ways_of(grad, weight, settings.method, settings.cache is not None)
    if ways is None:
        empty = torch.zeros_like
        return empty(x) if input_gradient else None, empty(weight) if weight_gradient else None
    by_fft = (
        input_gradient and ways.input_gradient == "fft",
        weight_gradient and ways.weight_gradient == "fft",
    )
    native = (
        input_gradient and ways.input_gradient == "native",
        weight_gradient and ways.weight_gradient == "native",
    )
    grad_input: Tensor | None = None
    grad_weight: Tensor | None = None
    if any(native):
        grad_input, grad_weight = _native_gradients(grad, x, weight, native)
    if any(by_fft):
        grad32, x32, weight32 = _at_least_float32(grad), _at_least_float32(x), _at_least_float32(weight)
        geom = spectral.geometry(x.shape[0], *x.shape[2:], *weight.shape[2:])
        if spectrum is None and settings.cache is not None and by_fft[0]:
            spectrum = settings.cache.spectrum(weight32, geom)
        found = spectral.gradients(
            grad32,
            x32,
            weight32,
            input_gradient=by_fft[0],
            weight_gradient=by_fft[1],
            spectrum=spectrum,
            kept=kept if by_fft[1] else (),
        )
        grad_input = grad_input if found[0] is None else found[0].to(x.dtype)
        grad_weight = grad_weight if found[1] is None else found[1].to(weight.dtype)
    if input_gradient and grad_input is None:
        grad_input = _direct(grad, weight.flip(2, 3))
    if weight_gradient and grad_weight is None:
        grad32, x32, weight32 = _at_least_float32(grad), _at_least_float32(x), _at_least_float32(weight)
        if grad.shape[2] * grad.shape[3] <= LARGEST_SWAPPED_MAP:
            grad_weight = _direct_lags(x32, grad32, weight)
        else:
            found_weight = _native_gradients(grad32, x32, weight32, (False, True))[1]
            grad_weight = None if found_weight is None else found_weight.to(weight.dtype)
    return grad_input, grad_weight


def _native_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, wanted: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    if weight.shape[0] == 1 and wanted[1]:
        # For one channel, no depthwise convolution any more, oneDNN's weight gradient can write beyond its memory
        # (PyTorch 2.14.1; maps 13 x 7, kernel 25 x 13).
        grad, x, weight = grad.repeat(1, 2, 1, 1), x.repeat(1, 2, 1, 1), weight.repeat(2, 1, 1, 1)
        grad_input, grad_weight = _native_gradients(grad, x, weight, wanted)
        return None if grad_input is None else grad_input[:, :1], None if grad_weight is None else grad_weight[:1]
    grad_input, grad_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, (1, 1), padding, (1, 1), False, (0, 0), weight.shape[0], (*wanted, False)
    )
    return grad_input, grad_weight


def _at_least_float32(x: Any) -> Any:
    return x.float() if x is not None and x.dtype in HALF else x
