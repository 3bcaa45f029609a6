"""Re-parameterisation: merge parallel kernels and fold batch norms, changing no output in evaluation mode.

Each block knows how to merge itself (`replknet.blocks`); `reparameterize` walks over those of a model.
"""

import copy
from typing import Literal, TypeVar

from torch import nn

from replknet.blocks import Classifier, ConvBN, ConvFFN, ReparamLargeKernelConv, RepLKBlock

Form = Literal["training", "merged", "folded"]
ModuleT = TypeVar("ModuleT", bound=nn.Module)


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
    if not inplace:
        model = copy.deepcopy(model)
    parts = ReparamLargeKernelConv if level == "kernels" else (ReparamLargeKernelConv, ConvBN, RepLKBlock, ConvFFN)
    for module in list(model.modules()):
        if isinstance(module, parts):
            module.reparameterize()
        elif level == "full" and isinstance(module, Classifier):
            module.fold_final_norm()
    return model


def match_form(model: nn.Module, form: Form) -> None:
    """Bring a new model, in place, into the form of a weight file, so that the file loads strictly."""
    if form != "training":
        reparameterize(model, level="kernels" if form == "merged" else "full", inplace=True)
