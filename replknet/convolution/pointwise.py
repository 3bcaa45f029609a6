"""1x1 convolutions as matrix products of pixels, and the one predicate for blocks that compute without their modules.

In channels_last maps the pixels are the rows of a matrix. `pointwise_conv2d` multiplies it by PyTorch's own `linear`,
with all its derivatives. Where no gradient is recorded, a folded block may take `multiply` instead: oneDNN's product,
which is a tenth faster on the few pixels of a single image and computes the activation where the sums are. It has no
derivatives, and nobody sees what is between its steps: `takes_fast_path` says where that is right.
"""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]
from torch.nn import functional as F
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from replknet.convolution.layouts import layout, with_layout
from replknet.convolution.operators import is_altered, is_recorded

PART_BYTES = 8 * 2**20
"""Of what is kept between the steps of a fast path; memory fresh from the system for more costs more than the steps."""


def pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 1x1 convolution, `conv2d` but for the rounding of its sums.

    Args:
        x: Maps, shape (N, C, H, W).
        weight: Shape (outputs, C, 1, 1).
        bias: Shape (outputs,).

    Returns:
        Shape (N, outputs, H, W), in the layout of `x`.
    """
    if is_scripting():  # noqa: SIM108  TorchScript leaves such a branch out
        out = torch.conv2d(x, weight, bias)
    else:
        out = _pointwise_conv2d(x, weight, bias)
    return out


def _pointwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not x.is_cpu or is_recorded() or layout(x) is torch.contiguous_format:
        return torch.conv2d(x, weight, bias)
    return F.linear(x.permute(0, 2, 3, 1), weight.flatten(1), bias).permute(0, 3, 1, 2)


torch.fx.wrap("pointwise_conv2d")  # one node of a symbolic trace, which has no layouts


class PointwiseConv2d(nn.Conv2d):
    """A layer of `pointwise_conv2d`; its `state_dict` is that of `nn.Conv2d(in_channels, out_channels, 1)`."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return pointwise_conv2d(x, self.weight, self.bias)


def takes_fast_path(block: nn.Module, x: Tensor, layers: tuple[type[nn.Module], ...]) -> bool:
    """Whether a block may compute its output without calling its modules, by operators that have no derivatives.

    That takes ordinary float32 maps on a CPU; that no gradient, transform, trace, mode or autocast is at work; and that
    the block consists of nothing but `layers`, with ordinary weights, in evaluation mode, unhooked, each with the
    forward pass of its class.

    Args:
        block: The block.
        x: Its input.
        layers: The class of each of its modules, in the order of `block.modules()`.
    """
    if torch.is_grad_enabled() or is_altered() or type(x) is not Tensor:  # a proxy of torch.fx is none
        return False
    if not x.is_cpu or x.dtype is not torch.float32 or x.ndim != 4 or not x.numel():
        return False
    if (
        not torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        or not torch.backends.mkldnn.enabled
        or is_in_torch_dispatch_mode()
        or torch.nn.modules.module._has_any_global_hook()  # type: ignore[no-untyped-call]
    ):
        return False
    modules = list(block.modules())
    return tuple(map(type, modules)) == layers and all(map(_is_ordinary, modules))


def _is_ordinary(module: nn.Module) -> bool:
    return not (
        module.training or is_hooked(module) or module.__dict__.get("approximate", "none") != "none"  # of a GELU
    ) and all(weight is None or _is_ordinary_weight(weight) for weight in module._parameters.values())


def is_hooked(module: nn.Module) -> bool:
    """Whether somebody sees or changes what passes through it: by hooks, or a forward pass of this module's own."""
    return bool(
        "forward" in module.__dict__
        or module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
    )


def _is_ordinary_weight(weight: Tensor) -> bool:
    return type(weight) in (nn.Parameter, Tensor) and weight.dtype is torch.float32 and weight.is_cpu


def multiply(rows: Tensor, layer: nn.Conv2d, activation: Literal["none", "gelu"] = "none") -> Tensor:
    """A 1x1 convolution of pixels (number, in_channels) and an activation; not differentiable."""
    weight, algorithm = layer.weight.flatten(1), "none" if activation == "gelu" else ""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, layer.bias, activation, [], algorithm)
    return out


def in_parts(compute: Callable[[Tensor], Tensor], x: Tensor, item_bytes: int) -> Tensor:
    """`compute(x)`, some items of the first dimension at a time, so that what is between its steps stays in the cache.

    Args:
        compute: Treats every item (image or pixel) alone.
        x: Its input.
        item_bytes: Of the largest tensor between the steps, for one item.
    """
    parts = [compute(part) for part in torch.split(x, max(1, PART_BYTES // item_bytes))]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def to_rows(x: Tensor) -> Tensor:
    """Maps (N, C, H, W) as a matrix (N * H * W, C): a view of channels_last maps; not differentiable."""
    return with_layout(x, torch.channels_last).permute(0, 2, 3, 1).flatten(0, 2)


def to_maps(rows: Tensor, like: Tensor) -> Tensor:
    """The reverse of `to_rows`, for maps of the size of `like`, channels_last."""
    return rows.view(like.shape[0], *like.shape[2:], -1).permute(0, 3, 1, 2)
