"""Depthwise convolution with stride 1 and "same" padding, fast for large kernels on a CPU, forward and backward.

Each direction is computed by whichever of FFT and conv2d the cost model (`replknet.cost`) expects to be faster. Small
calls, which `conv2d` serves best, go to it as directly as possible; of all others, those that may be differentiated go
through `replknet.differentiation`.
"""

from functools import lru_cache
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from replknet.correlation import Settings, SpectrumCache, correlate, plain_conv2d, plan_key, ways_of
from replknet.cost import is_slow, plan, prefers_channels_last
from replknet.differentiation import Correlate
from replknet.inference import PackedWeight, is_plain_inference, is_transformed
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
            return self._convolve_packed(x, "none")
        return _depthwise_conv2d(x, self.weight, self.bias, "auto", None if self.training else self._spectra)

    def with_relu(self, x: Tensor) -> Tensor:
        """The layer and a ReLU, where `replknet.inference.is_plain` says that nothing else happens."""
        if not torch.is_grad_enabled() and self._packs(x):
            return self._convolve_packed(x, "relu")
        return _depthwise_conv2d(x, self.weight, self.bias, "auto", self._spectra).relu_()

    def _packs(self, x: Tensor) -> bool:
        """Whether the call is one that oneDNN does best on channels_last maps, with weights in its own layout."""
        side = self.kernel_size[0]
        if side <= NARROW or x.ndim != 4 or x.shape[1] != self.in_channels or side > 2 * min(x.shape[2:]) - 1:
            return False
        wide = prefers_channels_last(side // 2, x.dtype, layout(x) is torch.channels_last)
        return wide and plan(*plan_key(x, self.weight), True).output != "fft"

    def _convolve_packed(self, x: Tensor, activation: str) -> Tensor:
        """The convolution by weights that stay in oneDNN's layout between calls."""
        border = int(is_slow(self.kernel_size[0] // 2, x.shape[1], x.dtype))
        padding, ones = [self.kernel_size[0] // 2 + border] * 2, [1, 1]

        def pack(weight: Tensor) -> Tensor:
            packed: Tensor = torch.ops.mkldnn._reorder_convolution_weight(
                F.pad(weight, (border,) * 4), padding, ones, ones, self.groups, list(x.shape)
            )
            return packed

        weight = self._packed.packed(self.weight, pack, x.shape)
        maps = with_layout(x, torch.channels_last)
        out: Tensor = torch.ops.mkldnn._convolution_pointwise(
            maps, weight, self.bias, padding, ones, ones, self.groups, activation, [], ""
        )
        return with_layout(out, layout(x))


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
        return plain_conv2d(x, weight, bias)
    autocast, compiling = torch.is_autocast_enabled("cpu"), torch.compiler.is_compiling()
    if (
        not (trains or autocast or compiling)
        and method == "auto"
        and x.dtype is weight.dtype
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and _is_plain(x.shape, x.stride(), kernel, x.dtype, torch.get_num_threads(), cache is not None)
    ):
        return plain_conv2d(x, weight, bias)
    if autocast:
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    if compiling:
        if torch.compiler.is_exporting():
            return plain_conv2d(x, weight, bias)
        out: Tensor = torch.ops.replknet.depthwise_conv2d(x, _meeting_taps(weight, *x.shape[2:]), bias, method)
        return out
    if x.dtype != weight.dtype or not x.dtype.is_floating_point or torch.jit.is_tracing():  # type: ignore[attr-defined, no-untyped-call]
        return plain_conv2d(x, weight, bias)
    ways = ways_of(x, weight, method, cache is not None)
    if ways is None:
        return plain_conv2d(x, weight, bias)
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
        return plain_conv2d(x, weight, bias)
    if not (trains or torch._C._are_functorch_transforms_active() or is_transformed(x)):
        # A Function costs some 60 us more.
        return correlate(x, weight, bias, Settings(method, cache))[0]
    keep = (False, False)
    if trains and ways.output == "fft":
        keep = (
            x.requires_grad and ways.input_gradient == "fft",
            weight.requires_grad and ways.weight_gradient == "fft",
        )
    result: Tensor = Correlate.apply(x, weight, bias, Settings(method, cache, *keep))[0]
    return result


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
