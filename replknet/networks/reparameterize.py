"""Re-parameterisation: merge parallel kernels and fold batch norms, changing no output in evaluation mode.

Each block knows how to merge itself (`blocks`); `reparameterize` walks over those of a model.
"""

from collections.abc import Iterator
from typing import Literal

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from replknet.convolution.pointwise import is_hooked
from replknet.networks.blocks import Classifier, ConvBN, ConvFFN, ReparamLargeKernelConv, RepLKBlock
from replknet.networks.folding import ModuleT, copy_of, is_foldable, is_foldable_norm, is_reparametrized

Form = Literal["training", "merged", "folded"]


def reparameterize(model: ModuleT, *, level: Literal["kernels", "full"] = "full", inplace: bool = False) -> ModuleT:
    """The same function of an image with fewer layers, for evaluation.

    Args:
        model: A RepLKNet, or any module that contains one. Batch norms may be `SyncBatchNorm`.
        level: "kernels" merges each large kernel with its batch norm and its parallel small branch: the official
            deploy form, whose `state_dict` loads in the official and mmpretrain code. "full" folds every other batch
            norm too: those before 1x1 convolutions and the final one into the head. Norms on intermediate feature
            maps, and the final norm of a network without a head, have nothing to be folded into and stay; so do those
            beside a layer that was replaced by another module, and norms that are more than batch norms. Hooks stay
            where they are, on layers that get and give what they did.
        inplace: Change `model` itself; otherwise it is copied and left as it was.

    Returns:
        The re-parameterised model, in the mode, dtype and device of `model`. Doing it twice changes nothing.

    Raises:
        ValueError: If `level` is unknown, a batch norm keeps no running statistics, a weight or bias is parametrized or
            pruned, or a layer that would vanish or be given other values has hooks; nothing is changed then.

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
        model = copy_of(model)
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
                    f"model: the weight or bias of a {type(layer).__name__} in {name or 'it'} is parametrized or "
                    "pruned; make it a plain parameter first (parametrize.remove_parametrizations, "
                    "remove_weight_norm, prune.remove)"
                )
            if isinstance(layer, _BatchNorm) and layer.running_mean is None:
                raise ValueError(f"model: a batch norm in {name or 'it'} keeps no running statistics to be folded")
        for layer in _changed(module) if within else ():
            if is_hooked(layer):
                raise ValueError(
                    f"model: a {type(layer).__name__} in {name or 'it'} has hooks or a forward pass of its own, and "
                    "would vanish or be given other values; remove them first"
                )


def _changed(part: nn.Module) -> Iterator[nn.Module]:
    """Layers that merging this part removes or gives another input, weight or output; those of its parts aside."""
    if isinstance(part, ConvBN) and is_foldable_norm(part.bn) and is_foldable(part.conv):
        yield from (part.conv, part.bn)
    elif isinstance(part, ReparamLargeKernelConv) and part.lkb_reparam is None:
        yield from list(part.modules())[1:]
    elif isinstance(part, (RepLKBlock, ConvFFN)) and isinstance(part.pw1, ConvBN):
        norm = part.prelkb_bn if isinstance(part, RepLKBlock) else part.preffn_bn
        if is_foldable_norm(norm) and is_foldable(part.pw1.conv):
            yield from (norm, part.pw1, part.pw1.conv)
    elif isinstance(part, Classifier) and is_foldable_norm(part.norm) and is_foldable(part.head):
        yield from (part.norm, part.head)


def match_form(model: nn.Module, form: Form) -> None:
    """Bring a new model, in place, into the form of a weight file, so that the file loads strictly."""
    if form != "training":
        reparameterize(model, level="kernels" if form == "merged" else "full", inplace=True)
