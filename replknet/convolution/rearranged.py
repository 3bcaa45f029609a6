"""`conv2d` as it is, and arranged so that it is faster: in another layout, or one direction by another.

Nothing in this module is differentiable but `plain_conv2d`.
"""

from typing import Any

import torch
from torch import Tensor

from replknet.convolution.layouts import layout, with_layout
from replknet.convolution.planning import CUDNN_KERNEL, HALF


def plain_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Of maps (N, C, H, W) with kernels (C, 1, Kh, Kw), stride 1 and "same" padding."""
    kernel = weight.shape
    if x.is_cuda and weight.stride(1) != kernel[2] * kernel[3]:
        # A kernel of one channel is contiguous and channels_last at once; PyTorch would convert the maps to the latter.
        weight = weight.flatten(1).view(kernel)
    return torch.conv2d(x, weight, bias, 1, (kernel[2] // 2, kernel[3] // 2), 1, kernel[0])


def arranged_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, arrangement: torch.memory_format) -> Tensor:
    """`plain_conv2d` of maps brought to another layout, returned in the layout of `x`; half precision in float32."""
    # oneDNN's kernels for half precision are slow or, for some shapes, never return.
    maps = with_layout(at_least_float32(x), arrangement)
    out = plain_conv2d(maps, at_least_float32(weight), at_least_float32(bias))
    return with_layout(out.to(x.dtype), layout(x))


def arranged_input_gradient(grad: Tensor, weight: Tensor, arrangement: torch.memory_format) -> Tensor:
    """A forward convolution of the incoming gradient with the flipped kernels."""
    return arranged_conv2d(grad, weight.flip(2, 3), None, arrangement)


def native_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`plain_conv2d`, but on a GPU large kernels never meet channels_last maps, for which cuDNN takes seconds."""
    maps = _for_native(x, weight)
    return plain_conv2d(maps, weight, bias).contiguous(memory_format=layout(x))


def _for_native(x: Tensor, weight: Tensor) -> Tensor:
    return x.contiguous() if x.is_cuda and max(weight.shape[2:]) > CUDNN_KERNEL else x


def native_gradients(
    grad: Tensor, x: Tensor, weight: Tensor, *, input_gradient: bool, weight_gradient: bool
) -> tuple[Tensor | None, Tensor | None]:
    """PyTorch's own; None for one that is not asked for."""
    grad, x = _for_native(grad, weight), _for_native(x, weight)
    if grad.is_cuda:
        weight = weight.flatten(1).view(weight.shape)  # as in `plain_conv2d`
    padding = (weight.shape[2] // 2, weight.shape[3] // 2)
    wanted = (input_gradient, weight_gradient, False)
    one_channel = weight.shape[0] == 1 and weight_gradient
    if one_channel:
        # For one channel, no depthwise convolution any more, oneDNN's weight gradient can write beyond its memory
        # (PyTorch 2.14.1; maps 13 x 7, kernel 25 x 13).
        grad, x, weight = grad.repeat(1, 2, 1, 1), x.repeat(1, 2, 1, 1), weight.repeat(2, 1, 1, 1)
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        grad, x, weight, None, (1, 1), padding, (1, 1), False, (0, 0), weight.shape[0], wanted
    )
    if one_channel:
        return None if of_x is None else of_x[:, :1].clone(), of_weight[:1].clone()
    return of_x, of_weight


def meeting_taps(weight: Tensor, height: int, width: int) -> Tensor:
    """The centre of kernels that are wider than a map of that size can meet."""
    rows = max(0, (weight.shape[2] + 1) // 2 - max(1, height))
    columns = max(0, (weight.shape[3] + 1) // 2 - max(1, width))
    if rows == columns == 0:
        return weight
    return weight[..., rows : weight.shape[2] - rows, columns : weight.shape[3] - columns].contiguous()


def at_least_float32(x: Any) -> Any:
    """A tensor of half precision in float32; all else, None included, as it is."""
    return x.float() if x is not None and x.dtype in HALF else x
