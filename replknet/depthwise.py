"""Depthwise convolution with stride 1 and "same" padding, fast for large kernels on a CPU, forward and backward.

Every direction is one of two bilinear maps, and both close under differentiation, so that gradients of any order exist:

    correlate(x, w)[i] = sum_d x[i + d] w[d]               the output; of a gradient and the flipped kernel, the input's
    lags(x, g)[d]      = sum_i x[i + d] g[i]               the weight gradient, summed over images

Each is computed by whichever of FFT and conv2d the cost model (`replknet.cost`) expects to be faster.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
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
from replknet.inference import PackedWeight, is_plain_inference
from replknet.layout import layout, with_layout

Method = Literal["auto", "direct", "fft"]
METHODS = ("auto", "direct", "fft")
NARROW = 9
"""Side of the kernels up to which nothing beats conv2d but in the weight gradient, whatever the shape and layout."""


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, method: Method = "auto") -> Tensor:
    """Depthwise convolution (cross-correlation) with stride 1 and zero padding that keeps the size.

    Args:
        x: Maps, shape (N, C, H, W), contiguous, channels_last or strided in any other way.
        weight: One kernel per channel, shape (C, 1, Kh, Kw), both sides odd; they may exceed the map.
        bias: Shape (C,).
        method: "auto" takes the fastest way for each direction on a CPU and the vendor's convolution on other devices;
            "fft" and "direct" (`conv2d` in its better layout) insist on one, on a CPU.

    Returns:
        Shape, data type and layout of `x`. bfloat16 and float16 are computed in float32 where FFTs are used.

    Raises:
        ValueError: If the method is unknown or a shape does not fit.

    Example:
        >>> maps, kernels = torch.ones(1, 2, 5, 5), torch.ones(2, 1, 31, 31)
        >>> depthwise_conv2d(maps, kernels)[0, 0, 0, :3].round().tolist()  # every kernel covers all of the map
        [25.0, 25.0, 25.0]
    """
    return _depthwise_conv2d(x, weight, bias, method, None)


class DepthwiseConv2d(nn.Conv2d):
    """A layer of `depthwise_conv2d`; its `state_dict` is that of `nn.Conv2d(channels, channels, ..., groups=channels)`.

    In evaluation mode the spectra of the kernels are kept, with a copy of the kernels, and used as long as the kernels
    are equal to that copy, however they may have been changed.

    Args:
        channels: Input and output channels.
        kernel_size: Odd side of the kernels.
        bias: Whether there is one.
    """

    def __init__(self, channels: int, kernel_size: int, bias: bool = False) -> None:
        if kernel_size % 2 == 0 or kernel_size < 1:
            raise ValueError(f"kernel_size={kernel_size}: expected an odd number")
        super().__init__(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=bias)
        self._spectra = SpectrumCache()
        self._packed = PackedWeight()

    def forward(self, x: Tensor) -> Tensor:
        if is_plain_inference(self, x) and self._packs(x):
            return self._convolve_packed(x)
        return _depthwise_conv2d(x, self.weight, self.bias, "auto", None if self.training else self._spectra)

    def _packs(self, x: Tensor) -> bool:
        """Whether the call is one that oneDNN does best on channels_last maps."""
        if x.ndim != 4 or x.shape[1] != self.in_channels or self.kernel_size[0] > 2 * min(x.shape[2:]) - 1:
            return False
        wide = prefers_channels_last(self.kernel_size[0] // 2, x.dtype, False)
        return wide and plan(*_key(x, self.weight), True).output != "fft"

    def _convolve_packed(self, x: Tensor) -> Tensor:
        """The convolution by weights that stay in oneDNN's layout between calls."""
        padding, ones = [self.kernel_size[0] // 2] * 2, [1, 1]

        def pack(weight: Tensor) -> Tensor:
            packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
                weight, padding, ones, ones, self.groups, list(x.shape)
            )
            return packed

        weight = self._packed.packed(self.weight, pack, x.shape)
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            with_layout(x, torch.channels_last),
            weight,
            self.bias,
            padding,
            ones,
            ones,
            self.groups,
            "none",
            [],
            "",
        )
        return with_layout(out, layout(x))


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


def _depthwise_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, method: Method, cache: SpectrumCache | None
) -> Tensor:
    kernel = weight.shape
    if len(kernel) != 4 or x.ndim != 4 or kernel[0] != x.shape[1] or kernel[1] != 1 or not kernel[2] & kernel[3] & 1:
        raise ValueError(
            f"weight of shape {tuple(weight.shape)} and x of shape {tuple(x.shape)}: expected x of shape (N, C, H, W) "
            "and weight of shape (C, 1, Kh, Kw) with odd Kh and Kw"
        )
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    # These lines are most of what a small call costs beyond conv2d.
    trains = torch.is_grad_enabled()
    if not x.is_cpu or (
        method == "auto"
        and kernel[2] <= NARROW
        and kernel[3] <= NARROW
        and x.dtype is not torch.float64
        and not (trains and weight.requires_grad)
    ):
        return _conv2d(x, weight, bias)
    autocast, compiling = torch.is_autocast_enabled("cpu"), torch.compiler.is_compiling()
    if (
        not (trains or autocast or compiling)
        and method == "auto"
        and x.dtype is weight.dtype
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and _is_plain(x.shape, x.stride(), kernel, x.dtype, torch.get_num_threads(), cache is not None)
    ):
        return _conv2d(x, weight, bias)
    if autocast:
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if compiling:
        if torch.compiler.is_exporting():
            return _conv2d(x, weight, bias)
        out: Tensor = torch.ops.replknet.depthwise_conv2d(x, _meeting_taps(weight, *x.shape[2:]), bias, method)
        return out
    if x.dtype != weight.dtype or not x.dtype.is_floating_point or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return _conv2d(x, weight, bias)
    ways = _ways(x, weight, method, cache is not None)
    if ways is None:
        return _conv2d(x, weight, bias)
    leaves_native = ways.output != "native" or (
        trains
        and (
            (x.requires_grad and ways.input_gradient != "native")
            or (weight.requires_grad and ways.weight_gradient != "native")
        )
    )
    # For channels_last maps, oneDNN skips the taps that never meet them by itself, but not in the weight gradient.
    if ways.crops and (leaves_native or (trains and weight.requires_grad) or layout(x) is torch.contiguous_format):
        weight = _meeting_taps(weight, *x.shape[2:])
    if not leaves_native:
        return _conv2d(x, weight, bias)
    keep = (False, False)
    if trains and ways.output == "fft":
        keep = (
            x.requires_grad and ways.input_gradient == "fft",
            weight.requires_grad and ways.weight_gradient == "fft",
        )
    result: Tensor = _Correlate.apply(x, weight, bias, _Settings(method, cache, *keep))[0]
    return result


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    kernel = weight.shape
    return torch.conv2d(x, weight, bias, 1, (kernel[2] // 2, kernel[3] // 2), 1, kernel[0])


@lru_cache(maxsize=4096)
def _is_plain(
    shape: torch.Size, strides: tuple[int, ...], kernel: torch.Size, dtype: torch.dtype, threads: int, kept: bool
) -> bool:
    """Whether the output is best had from `conv2d` on the tensors as they are; one lookup is all that a call pays."""
    if 0 in shape or not dtype.is_floating_point:
        return True
    channels_last = layout(torch.empty_strided(shape, strides, device="meta")) is torch.channels_last
    chosen = plan(shape, kernel, dtype, channels_last, threads, kept)
    return chosen.output == "native" and (channels_last or not chosen.crops)


def _meeting_taps(weight: Tensor, height: int, width: int) -> Tensor:
    """The centre of kernels that are wider than a map of that size can meet."""
    rows = max(0, (weight.shape[2] + 1) // 2 - max(1, height))
    columns = max(0, (weight.shape[3] + 1) // 2 - max(1, width))
    if rows == columns == 0:
        return weight
    return weight[..., rows : weight.shape[2] - rows, columns : weight.shape[3] - columns].contiguous()


def _ways(x: Tensor, weight: Tensor, method: str, kept: bool = False) -> Plan | None:
    """The way of each direction; None where there is nothing to compute."""
    if not x.numel():
        return None
    if method == "auto":
        return plan(*_key(x, weight), kept)
    way: Way = "fft" if method == "fft" else "direct"
    return Plan(way, way, way, crops=True)


def _key(x: Tensor, weight: Tensor) -> tuple[torch.Size, torch.Size, torch.dtype, bool, int]:
    """The arguments of `plan`; looking a plan up by them is most of what a small call costs."""
    return x.shape, weight.shape, x.dtype, layout(x) is torch.channels_last, torch.get_num_threads()


# The two maps and both gradients, on plain tensors -----------------------------------------------------------------


class _Settings(NamedTuple):
    """What is not a tensor: the method, a layer's kernel spectra, and which spectra to keep for the gradients."""

    method: str
    cache: SpectrumCache | None = None
    keep_kernels: bool = False
    keep_maps: bool = False

    def for_others(self) -> "_Settings":
        """The same for another convolution."""
        return _Settings(self.method)


def _correlate(
    x: Tensor, weight: Tensor, bias: Tensor | None, settings: _Settings
) -> tuple[Tensor, Tensor | None, list[Tensor]]:
    """The output, and the spectra of the kernels and of the blocks of maps that are to be kept."""
    ways = _ways(x, weight, settings.method, settings.cache is not None)
    if ways is None or ways.output == "native":
        return _conv2d(x, weight, bias), None, []
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
    out = _conv2d(with_layout(x, torch.channels_last if wanted else torch.contiguous_format), weight, bias)
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


def _gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    input_gradient: bool,
    weight_gradient: bool,
    settings: _Settings,
    spectrum: Tensor | None = None,
    kept: Sequence[Tensor] = (),
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients; where one is not asked for, the tensor that only the other needs is looked at for its shape."""
    ways = _ways(grad, weight, settings.method, settings.cache is not None)
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


# Differentiation in eager mode -------------------------------------------------------------------------------------


class _Correlate(Function):
    """The output; after it the kept spectra, so that they are saved for backward as other tensors are."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, settings: _Settings) -> tuple[Tensor | None, ...]:
        out, spectrum, kept = _correlate(x, weight, bias, settings)
        return out, spectrum, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        ctx.set_materialize_grads(False)
        x, weight, _, ctx.settings = inputs
        ctx.mark_non_differentiable(*(tensor for tensor in output[1:] if tensor is not None))
        # Without a weight gradient the map is not needed again: its memory can go.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, *output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        x, weight, *spectra = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        # A Function costs about 50 us; only a derivative of the gradients, or a transform of torch.func, needs one.
        differentiable = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        gradients = _Gradients.apply if differentiable else _Gradients.forward
        grad_input, grad_weight = gradients(grad, x, weight, wanted[0], wanted[1], ctx.settings, spectra)
        return grad_input, grad_weight, grad.sum((0, 2, 3)) if wanted[2] else None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Tensor | None, settings: _Settings
    ) -> tuple[tuple[Tensor, None], tuple[int, None]]:
        size = info.batch_size
        out = _correlate_maps(
            _into_channels(x, in_dims[0], size, 1),
            _into_channels(weight, in_dims[1], size, 0),
            _into_channels(bias, in_dims[2], size, 0),
            settings.for_others(),
        )
        return (out.reshape(out.shape[0], size, -1, *out.shape[2:]), None), (1, None)


def _correlate_maps(x: Any, weight: Any, bias: Any, settings: _Settings) -> Tensor:
    out: Tensor = _Correlate.apply(x, weight, bias, settings)[0]
    return out


class _Gradients(Function):
    @staticmethod
    def forward(
        grad: Tensor,
        x: Tensor | None,
        weight: Tensor,
        input_gradient: bool,
        weight_gradient: bool,
        settings: _Settings,
        spectra: Sequence[Tensor | None],
    ) -> tuple[Tensor | None, Tensor | None]:
        return _gradients(
            grad,
            grad if x is None else x,
            weight,
            input_gradient,
            weight_gradient,
            settings,
            spectra[0],
            [tensor for tensor in spectra[1:] if tensor is not None],
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.settings = inputs[5].for_others()
        ctx.save_for_backward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, by_input: Tensor | None, by_weight: Tensor | None) -> tuple[Tensor | None, ...]:
        """`by_input`, of a map's shape, and `by_weight`, of a kernel's, come back for the two gradients."""
        grad, x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        for_grad: Tensor | None = None
        for_x: Tensor | None = None
        for_weight: Tensor | None = None
        if by_input is not None:
            if wanted[0]:
                for_grad = _correlate_maps(by_input, weight, None, ctx.settings)
            if wanted[2]:
                for_weight = _Gradients.apply(grad, by_input, weight, False, True, ctx.settings, (None,))[1]
        if by_weight is not None:
            if wanted[0]:
                term = _correlate_maps(x, by_weight, None, ctx.settings)
                for_grad = term if for_grad is None else for_grad + term
            if wanted[1]:
                for_x = _correlate_maps(grad, by_weight.flip(2, 3), None, ctx.settings)
        return for_grad, for_x, for_weight, None, None, None, None

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        grad: Tensor,
        x: Tensor | None,
        weight: Tensor,
        input_gradient: bool,
        weight_gradient: bool,
        settings: _Settings,
        spectra: Any,
    ) -> tuple[tuple[Tensor | None, Tensor | None], tuple[int | None, int | None]]:
        size = info.batch_size
        grad_input, grad_weight = _Gradients.apply(
            _into_channels(grad, in_dims[0], size, 1),
            _into_channels(x, in_dims[1], size, 1),
            _into_channels(weight, in_dims[2], size, 0),
            input_gradient,
            weight_gradient,
            settings.for_others(),
            (None,),
        )
        return (
            (
                None if grad_input is None else grad_input.unflatten(1, (size, -1)),
                None if grad_weight is None else grad_weight.unflatten(0, (size, -1)),
            ),
            (None if grad_input is None else 1, None if grad_weight is None else 0),
        )


def _into_channels(x: Tensor | None, dim: int | None, size: int, channel_dim: int) -> Any:
    """Merge the dimension `dim` that is mapped over (None: the same for all) into the channels."""
    if x is None:
        return None
    moved = x.unsqueeze(channel_dim).expand(*x.shape[:channel_dim], size, *x.shape[channel_dim:])
    if dim is not None:
        moved = x.movedim(dim, channel_dim)
    return moved.flatten(channel_dim, channel_dim + 1)


# The operators that torch.compile sees -----------------------------------------------------------------------------


@torch.library.custom_op("replknet::depthwise_conv2d", mutates_args=())
def _operator(x: Tensor, weight: Tensor, bias: Tensor | None, method: str) -> Tensor:
    return _correlate(x, weight, bias, _Settings(method))[0].contiguous(memory_format=layout(x))


@_operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, method: str) -> Tensor:
    return torch.empty_like(x, memory_format=layout(x))


@torch.library.custom_op("replknet::depthwise_conv2d_backward", mutates_args=())
def _operator_backward(
    grad: Tensor, x: Tensor, weight: Tensor, input_gradient: bool, weight_gradient: bool, method: str
) -> tuple[Tensor, Tensor]:
    """Both gradients, or an empty tensor for one that is not asked for."""
    found = _gradients(grad, x, weight, input_gradient, weight_gradient, _Settings(method))
    fake = _fake_backward(grad, x, weight, input_gradient, weight_gradient, method)
    grad_input, grad_weight = (
        empty if tensor is None else tensor.contiguous(memory_format=layout(like))
        for tensor, empty, like in zip(found, fake, (x, weight), strict=True)
    )
    return grad_input, grad_weight


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, input_gradient: bool, weight_gradient: bool, method: str
) -> tuple[Tensor, Tensor]:
    grad_input = torch.empty_like(x, memory_format=layout(x)) if input_gradient else x.new_empty(0)
    grad_weight = torch.empty_like(weight, memory_format=layout(weight)) if weight_gradient else x.new_empty(0)
    return grad_input, grad_weight


_operator_backward.register_fake(_fake_backward)


def _setup_operator(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.method = inputs
    ctx.save_for_backward(x, weight)


def _differentiate_operator(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    found = torch.ops.replknet.depthwise_conv2d_backward(grad, x, weight, wanted[0], wanted[1], ctx.method)
    grad_input, grad_weight = (tensor if want else None for tensor, want in zip(found, wanted, strict=False))
    return grad_input, grad_weight, grad.sum((0, 2, 3)) if wanted[2] else None, None


_operator.register_autograd(_differentiate_operator, setup_context=_setup_operator)
