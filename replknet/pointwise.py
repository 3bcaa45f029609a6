"""1x1 convolution that, in inference on a CPU, multiplies by weights packed once and applies what follows on the way.

oneDNN's matrix product works on weights in a blocked layout. `conv2d` brings them there in every call; here they stay
there between calls, and the activation is applied to each block of the result while it is still in a register. These
are the operators that PyTorch's own inference compiler uses; they have no gradients.
"""

import torch
from torch import Tensor, nn

from replknet.inference import PackedWeight, is_plain_inference

_ACTIVATIONS = {nn.Identity: ("none", ""), nn.ReLU: ("relu", ""), nn.GELU: ("gelu", "none")}


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution; its `state_dict` is that of `nn.Conv2d(in_channels, out_channels, 1)`."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)
        self._packed = PackedWeight()

    def fuses(self, x: Tensor, activation: nn.Module) -> bool:
        """Whether `fused` can be called."""
        known = type(activation) in _ACTIVATIONS and getattr(activation, "approximate", "none") == "none"
        return known and is_plain_inference(self, x)

    def fused(self, x: Tensor, activation: nn.Module, residual: Tensor | None = None) -> Tensor:
        """`activation(conv(x))`, plus `residual` where it is given; channels_last."""
        rows = _rows(x)
        weight = self._packed.packed(self.weight, _pack)
        name, algorithm = _ACTIVATIONS[type(activation)]
        out: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, self.bias, name, [], algorithm)
        if residual is not None:
            out += _rows(residual)  # faster than the operator's own fused sum
        return out.reshape(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.flatten(1))
    return packed


def _rows(x: Tensor) -> Tensor:
    """Maps (N, C, H, W) as a matrix (N * H * W, C): a view of channels_last maps."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
