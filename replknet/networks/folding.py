"""The arithmetic of re-parameterisation: batch norms as affine maps, folded into the layer before or after them.

Everything is computed in float64, so that the merged float32 weights are correctly rounded.
"""

import copy
from typing import TypeGuard, TypeVar

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from replknet.convolution.depthwise import DepthwiseConv2d
from replknet.convolution.dilated import DilatedConv2d
from replknet.convolution.pointwise import PointwiseConv2d

ModuleT = TypeVar("ModuleT", bound=nn.Module)
_FOLDABLE = (nn.Conv2d, nn.Linear, DepthwiseConv2d, DilatedConv2d, PointwiseConv2d)


def is_foldable(layer: nn.Module) -> TypeGuard[nn.Conv2d | nn.Linear]:
    """Whether a layer is one whose function is all in its weight and bias; not an adapter or a quantised one, say."""
    return type(layer) in _FOLDABLE


def is_foldable_norm(layer: nn.Module) -> TypeGuard[_BatchNorm]:
    """Whether a layer is a batch norm and nothing more; not one with an activation in it, say."""
    return type(layer) in (nn.BatchNorm2d, nn.SyncBatchNorm)


def is_reparametrized(layer: nn.Module) -> bool:
    """Whether its weight or bias is made from others in every call (weight norm, pruning, `nn.utils.parametrize`)."""
    kinds = (nn.Conv2d, nn.Linear, _BatchNorm)
    return isinstance(layer, kinds) and not {"weight", "bias"} <= layer._parameters.keys()


def copy_of(model: ModuleT) -> ModuleT:
    """A deep copy, also of layers whose weights are made from others in every call, which PyTorch would not copy."""
    made = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    ]
    return copy.deepcopy(model, {id(value): value.detach().clone() for value in made})


def in_float64(values: Tensor) -> Tensor:
    """Without a gradient; on the CPU where the device has no such numbers."""
    values = values.detach()
    return (values.cpu() if values.device.type == "mps" else values).double()


def batch_norm_affine(bn: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in evaluation mode, each of shape (C,), float64: y = scale * x + shift.

    Raises:
        ValueError: If the batch norm keeps no running statistics.
    """
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("a batch norm without running statistics (track_running_stats=False) cannot be folded")
    scale = (in_float64(bn.running_var) + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * in_float64(bn.weight)
    shift = -in_float64(bn.running_mean) * scale
    if bn.bias is not None:
        shift = shift + in_float64(bn.bias)
    return scale, shift


def fold_norm_after(weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of `scale * (conv or linear) + shift`; `weight` has the outputs on its first axis."""
    folded = in_float64(weight) * scale.reshape(-1, *[1] * (weight.ndim - 1))
    return folded, shift if bias is None else shift + in_float64(bias) * scale


def fold_norm_before(weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a pointwise layer applied to `scale * x + shift`.

    Exact for a linear layer and an unpadded, ungrouped 1x1 convolution only: zero padding would have to be `-shift /
    scale`. `weight` has shape (outputs, inputs) or (outputs, inputs, 1, 1).
    """
    matrix = in_float64(weight).flatten(1)
    folded = (matrix * scale).reshape(weight.shape)
    offset = matrix @ shift
    return folded, offset if bias is None else offset + in_float64(bias)


def embed_kernel(small: Tensor, size: int) -> Tensor:
    """A depthwise kernel of shape (C, 1, kh, kw) centred in zeros, shape (C, 1, size, size); all sides odd."""
    rows, columns = ((size - side) // 2 for side in small.shape[2:])
    return F.pad(small, [columns, columns, rows, rows])


def spread_kernel(kernel: Tensor, dilation: int) -> Tensor:
    """A depthwise kernel of shape (C, 1, k, k) with `dilation - 1` zeros between its taps; differentiable."""
    channels, _, side, _ = kernel.shape
    spread = F.pad(kernel[..., None, :, None], [0, dilation - 1, 0, 0, 0, dilation - 1])  # (C, 1, k, r, k, r), below
    spread = spread.reshape(channels, 1, side * dilation, side * dilation)
    return spread[..., : dilation * (side - 1) + 1, : dilation * (side - 1) + 1]


def assign(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Give `layer` new values in the dtype it has; a bias is made where there was none."""
    old = layer.weight
    weight, bias = (values.detach().to(old.dtype).to(old.device) for values in (weight, bias))
    layer.weight = nn.Parameter(weight, requires_grad=old.requires_grad)
    layer.bias = nn.Parameter(bias, requires_grad=old.requires_grad)
