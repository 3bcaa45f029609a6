"""Re-parameterisation: merge parallel kernels and fold batch norms, changing no output in evaluation mode.

Each block knows how to merge itself (`blocks`); `reparameterize` walks over those of a model.
"""

import copy
from typing import Literal, TypeVar

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from replknet.networks.blocks import Classifier, ConvBN, ConvFFN, ReparamLargeKernelConv, RepLKBlock
from replknet.networks.folding import is_reparametrized

Form = Literal["training", "merged", "folded"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


def reparameterize(model: ModuleT, *, level: Literal["kernels", "full"] = "full", inplace: bool = False) -> ModuleT:
    """The same function of an image with fewer layers, for evaluation.

    Args:
        model: A RepLKNet, or any module that contains one. Batch norms may be `SyncBatchNorm`.
        level: "kernels" merges each large kernel with its batch norm and its parallel small branch: the official
            deploy form, whose `state_dict` loads in the official and mmpretrain code. "full" folds every other batch
            norm too: those before 1x1 convolutions and the final one into the head. Norms on intermediate feature
            maps, and the final norm of a network without a head, have nothing to be folded into and stay; so do those
            beside a layer that was replaced by another module.
        inplace: Change `model` itself; otherwise it is copied and left as it was.

    Returns:
        The re-parameterised model, in the mode, dtype and device of `model`. Doing it twice changes nothing.

    Raises:
        ValueError: If `level` is unknown, a batch norm keeps no running statistics, or a weight is parametrized or
            pruned; nothing is changed then.

    Example:
        >>> import replknet
        >>> model = replknet.create_model("replknet_nano_k3", pretrained=True)
        >>> merged = replknet.reparameterize(model)
        >>> [sum(parameter.numel() for parameter in network.parameters()) for network in (model, merged)]
        [287292, 279532]

    References:
        Ding et al. 2022, arXiv:2203.06717, section 3 (guideline 3).
    """
    if level not in ("kernels", "full"):
        raise ValueError(f"level={level!r}: expected 'kernels' or 'full'")
    parts = ReparamLargeKernelConv if level == "kernels" else (ReparamLargeKernelConv, ConvBN, RepLKBlock, ConvFFN)
    _refuse_what_cannot_be_folded(model, parts, with_head=level == "full")
    if not inplace:
        model = copy.deepcopy(model)
    for module in list(model.modules()):
        if isinstance(module, parts):
            module.reparameterize()
        elif level == "full" and isinstance(module, Classifier):
            module.fold_final_norm()
    return model


def _refuse_what_cannot_be_folded(
    model: nn.Module, parts: type[nn.Module] | tuple[type[nn.Module], ...], *, with_head: bool
) -> None:
    for name, module in model.named_modules():
        within = [module] if isinstance(module, parts) else []
        if with_head and isinstance(module, Classifier):
            within = [module.norm, module.head]
        for layer in (layer for part in within for layer in part.modules()):
            if is_reparametrized(layer):
                raise ValueError(
                    f"model: the weight of a {type(layer).__name__} in {name or 'it'} is parametrized or pruned; make "
                    "it a plain parameter first (parametrize.remove_parametrizations, remove_weight_norm, prune.remove)"
                )
            if isinstance(layer, _BatchNorm) and layer.running_mean is None:
                raise ValueError(f"model: a batch norm in {name or 'it'} keeps no running statistics to be folded")


def match_form(model: nn.Module, form: Form) -> None:
    """Bring a new model, in place, into the form of a weight file, so that the file loads strictly."""
    if form != "training":
        reparameterize(model, level="kernels" if form == "merged" else "full", inplace=True)
