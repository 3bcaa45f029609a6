"""Re-parameterisation: merge parallel kernels and fold batch norms, changing no output in evaluation mode.

The functions on tensors are pure and compute in float64, so that the merged float32 weights are correctly rounded;
`reparameterize` applies them to a model.
"""

import copy
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from replknet.blocks import Classifier, ConvBN, ConvFFN, ReparamLargeKernelConv, RepLKBlock

Form = Literal["training", "merged", "folded"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def batch_norm_affine(bn: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Scale and shift of a batch norm in evaluation mode, each of shape (C,), float64: y = scale * x + shift.

    Raises:
        ValueError: If the batch norm keeps no running statistics.
    """
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError("a batch norm without running statistics (track_running_stats=False) cannot be folded")
    scale = (bn.running_var.double() + bn.eps).rsqrt()
    if bn.weight is not None:
        scale = scale * bn.weight.detach().double()
    shift = -bn.running_mean.double() * scale
    if bn.bias is not None:
        shift = shift + bn.bias.detach().double()
    return scale, shift


def fold_norm_after(weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of `scale * (conv or linear) + shift`; `weight` has the outputs on its first axis."""
    folded = weight.double() * scale.reshape(-1, *[1] * (weight.ndim - 1))
    return folded, shift if bias is None else shift + bias.double() * scale


def fold_norm_before(weight: Tensor, bias: Tensor | None, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a pointwise layer applied to `scale * x + shift`.

    Exact for a linear layer and an unpadded, ungrouped 1x1 convolution only: zero padding would have to be `-shift /
    scale`. `weight` has shape (outputs, inputs) or (outputs, inputs, 1, 1).
    """
    matrix = weight.double().flatten(1)
    folded = (matrix * scale).reshape(weight.shape)
    offset = matrix @ shift
    return folded, offset if bias is None else offset + bias.double()


def embed_kernel(small: Tensor, size: int) -> Tensor:
    """A depthwise kernel of shape (C, 1, k, k) centred in zeros, shape (C, 1, size, size); both sides odd."""
    margin = (size - small.shape[-1]) // 2
    return F.pad(small, [margin] * 4)


def merge_large_kernel(module: ReparamLargeKernelConv) -> None:
    """Replace both branches of `module` by one biased depthwise convolution, in place; a no-op when already done."""
    large = module.lkb_origin
    if large is None:
        return
    fold_conv_bn(large)
    weight, bias = large.conv.weight.detach().double(), _bias(large.conv).double()
    if module.small_conv is not None:
        small = module.small_conv
        fold_conv_bn(small)
        weight = weight + embed_kernel(small.conv.weight.detach().double(), weight.shape[-1])
        bias = bias + _bias(small.conv).double()
    module.lkb_reparam = large.conv
    _assign(module.lkb_reparam, weight, bias)
    module.lkb_origin = None
    module.small_conv = None


def fold_conv_bn(module: ConvBN) -> None:
    """Fold the batch norm of `module` into its convolution, in place; a no-op when already done."""
    if isinstance(module.bn, _BatchNorm):
        _assign(module.conv, *fold_norm_after(module.conv.weight, module.conv.bias, *batch_norm_affine(module.bn)))
        module.bn = nn.Identity()


@torch.no_grad()
def reparameterize(model: ModuleT, *, level: Literal["kernels", "full"] = "full", inplace: bool = False) -> ModuleT:
    """The same function of an image with fewer layers, for evaluation.

    Args:
        model: A RepLKNet, or any module that contains one. Batch norms may be `SyncBatchNorm`.
        level: "kernels" merges each large kernel with its batch norm and its parallel small branch: the official
            deploy form, whose `state_dict` loads in the official and mmpretrain code. "full" folds every other batch
            norm too: those before 1x1 convolutions and the final one into the head. Norms on intermediate feature
            maps, and the final norm of a network without a head, have nothing to be folded into and stay.
        inplace: Change `model` itself; otherwise it is copied and left as it was.

    Returns:
        The re-parameterised model, in the mode, dtype and device of `model`. Doing it twice changes nothing.

    Raises:
        ValueError: If `level` is unknown or a batch norm keeps no running statistics.

    References:
        Ding et al. 2022, arXiv:2203.06717, section 3 (guideline 3).
    """
    if level not in ("kernels", "full"):
        raise ValueError(f"level={level!r}: expected 'kernels' or 'full'")
    if not inplace:
        model = copy.deepcopy(model)
    modules = list(model.modules())
    for module in modules:
        if isinstance(module, ReparamLargeKernelConv):
            merge_large_kernel(module)
    if level == "kernels":
        return model
    for module in modules:
        if isinstance(module, ConvBN):
            fold_conv_bn(module)
    for module in modules:
        if isinstance(module, RepLKBlock) and isinstance(module.prelkb_bn, _BatchNorm):
            _fold_before(module.prelkb_bn, module.pw1.conv)
            module.prelkb_bn = nn.Identity()
        elif isinstance(module, ConvFFN) and isinstance(module.preffn_bn, _BatchNorm):
            _fold_before(module.preffn_bn, module.pw1.conv)
            module.preffn_bn = nn.Identity()
        # Average pooling commutes with a per-channel affine map, so the final norm is folded across it.
        elif (
            isinstance(module, Classifier)
            and isinstance(module.norm, _BatchNorm)
            and isinstance(module.head, nn.Linear)
        ):
            _fold_before(module.norm, module.head)
            module.norm = nn.Identity()
    return model


def match_form(model: nn.Module, form: Form) -> None:
    """Bring a new model, in place, into the form of a weight file, so that the file loads strictly."""
    if form != "training":
        reparameterize(model, level="kernels" if form == "merged" else "full", inplace=True)


def _fold_before(bn: _BatchNorm, layer: nn.Conv2d | nn.Linear) -> None:
    _assign(layer, *fold_norm_before(layer.weight.detach(), layer.bias, *batch_norm_affine(bn)))


def _bias(conv: nn.Conv2d) -> Tensor:
    return torch.zeros(conv.out_channels, device=conv.weight.device) if conv.bias is None else conv.bias.detach()


def _assign(layer: nn.Conv2d | nn.Linear, weight: Tensor, bias: Tensor) -> None:
    """Give `layer` new values in the dtype it has; a bias is made where there was none."""
    old = layer.weight
    layer.weight = nn.Parameter(weight.detach().to(old.dtype), requires_grad=old.requires_grad)
    layer.bias = nn.Parameter(bias.detach().to(old.dtype), requires_grad=old.requires_grad)
