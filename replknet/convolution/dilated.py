"""Depthwise convolution with holes between the taps, stride 1 and "same" padding: parallel branches of large kernels.

On a CPU oneDNN has a fast kernel for the output alone; both of its gradients go the slow way of other convolutions. The
input gradient is a convolution of the flipped kernel, so an output again. For the weight gradient the maps are taken
apart into r x r maps of every r-th pixel, in which the taps have no holes.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.nn import functional as F

from replknet.convolution.autograd import Gradients
from replknet.convolution.layouts import layout
from replknet.convolution.operators import is_altered


class DilatedConv2d(nn.Conv2d):
    """A depthwise layer with `dilation - 1` zeros between its taps.

    Its `state_dict` is that of `nn.Conv2d(channels, channels, ..., groups=channels, bias=False)`.

    Args:
        channels: Input and output channels.
        kernel_size: Odd number of taps on a side.
        dilation: Distance of two taps in pixels.
    """

    def __init__(self, channels: int, kernel_size: int, dilation: int) -> None:
        padding = dilation * (kernel_size - 1) // 2
        super().__init__(
            channels, channels, kernel_size, padding=padding, dilation=dilation, groups=channels, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        return _dilated_conv2d(x, self.weight, self.bias, self.dilation[0])


def _dilated_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    if is_scripting():  # noqa: SIM108  TorchScript leaves such a branch out
        out = _conv2d(x, weight, bias, dilation)
    else:
        out = _with_gradients(x, weight, bias, dilation)
    return out


torch.fx.wrap("_dilated_conv2d")  # one node of a symbolic trace


def _conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    padding = [dilation * (weight.shape[2] // 2), dilation * (weight.shape[3] // 2)]
    return torch.conv2d(x, weight, bias, [1, 1], padding, [dilation, dilation], weight.shape[0])


def _with_gradients(x: Tensor, weight: Tensor, bias: Tensor | None, dilation: int) -> Tensor:
    wanted = torch.is_grad_enabled() and (x.requires_grad or weight.requires_grad)
    if (
        not wanted
        or not x.is_cpu
        or is_altered()
        or x.dtype is not weight.dtype
        or x.dtype not in (torch.float32, torch.float64)
    ):
        return _conv2d(x, weight, bias, dilation)
    out: Tensor = _Dilated.apply(x, weight, dilation)
    return out if bias is None else out + bias[:, None, None]


class _Dilated(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, dilation: int) -> Tensor:
        ctx.dilation = dilation
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight)
        return _conv2d(x, weight, None, dilation)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """By operators that have derivatives themselves."""
        x, weight = ctx.saved_tensors
        grad_input: Tensor | None = None
        grad_weight: Tensor | None = None
        if ctx.needs_input_grad[0]:
            grad_input = _Dilated.apply(grad, weight.flip(2, 3), ctx.dilation)
        if ctx.needs_input_grad[1]:
            parts = (_every_rth(maps, ctx.dilation) for maps in (grad, x))
            grad_weight = Gradients.apply(*parts, weight, False, True, "auto", ())[1]
        return grad_input, grad_weight, None


def _every_rth(x: Tensor, r: int) -> Tensor:
    """Maps (N, C, H, W) as maps (N * r * r, C, h, w) of every r-th pixel, with zeros where there is none."""
    x = F.pad(x, [0, -x.shape[3] % r, 0, -x.shape[2] % r])
    num_images, channels, height, width = x.shape
    rows, columns = height // r, width // r
    if layout(x) is torch.channels_last:
        pixels = x.permute(0, 2, 3, 1).reshape(num_images, rows, r, columns, r, channels)
        return pixels.permute(0, 2, 4, 1, 3, 5).reshape(-1, rows, columns, channels).permute(0, 3, 1, 2)
    maps = x.reshape(num_images, channels, rows, r, columns, r)
    return maps.permute(0, 3, 5, 1, 2, 4).reshape(-1, channels, rows, columns)
