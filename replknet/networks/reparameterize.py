"""Re-parameterisation: merge parallel kernels and fold batch norms, changing no output in evaluation mode.

Each part knows how to merge itself (`parts`); `reparameterize` walks over those of a model.
"""

from typing import Literal, TypeGuard

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from replknet.convolution.pointwise import is_hooked
from replknet.networks.folding import ModuleT, copy_of, is_foldable, is_foldable_norm, is_reparametrized
from replknet.networks.parts import Classifier, Mergeable

Form = Literal["training", "merged", "folded"]


def reparameterize(model: ModuleT, *, level: Literal["kernels", "full"] = "full", inplace: bool = False) -> ModuleT:
    """The same function of an image with fewer layers, for evaluation.

    Args:
        model: A network of any family, or any module that contains one. Batch norms may be `SyncBatchNorm`.
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
    everything = level == "full"
    _refuse_what_cannot_be_folded(model, everything)
    if not inplace:
        model = copy_of(model)
    for module in list(model.modules()):
        if _takes_part(module, everything):
            module.reparameterize()
        elif everything and isinstance(module, Classifier):
            module.fold_final_norm()
    return model


def _takes_part(module: nn.Module, everything: bool) -> TypeGuard[Mergeable]:
    return isinstance(module, Mergeable) and (everything or module.MERGES_KERNELS)


def _refuse_what_cannot_be_folded(model: nn.Module, everything: bool) -> None:
    for name, module in model.named_modules():
        within: tuple[nn.Module, ...] = ()
        changed: list[nn.Module] = []
        if _takes_part(module, everything):
            within, changed = (module,), list(module.changed())
        elif everything and isinstance(module, Classifier):
            within = module.folded_at_the_end()
            if within and is_foldable_norm(module.norm) and is_foldable(module.head):
                changed = [module.norm, module.head]
        for layer in (layer for part in within for layer in part.modules()):
            if is_reparametrized(layer):
                raise ValueError(
                    f"model: the weight or bias of a {type(layer).__name__} in {name or 'it'} is parametrized or "
                    "pruned; make it a plain parameter first (parametrize.remove_parametrizations, "
                    "remove_weight_norm, prune.remove)"
                )
            if isinstance(layer, _BatchNorm) and layer.running_mean is None:
                raise ValueError(f"model: a batch norm in {name or 'it'} keeps no running statistics to be folded")
        for layer in changed:
            if is_hooked(layer):
                raise ValueError(
                    f"model: a {type(layer).__name__} in {name or 'it'} has hooks or a forward pass of its own, and "
                    "would vanish or be given other values; remove them first"
                )


def match_form(model: nn.Module, form: Form) -> None:
    """Bring a new model, in place, into the form of a weight file, so that the file loads strictly."""
    if form != "training":
        reparameterize(model, level="kernels" if form == "merged" else "full", inplace=True)
