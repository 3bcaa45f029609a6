"""Running any module: its own errors in one line, and the outputs of its layers caught."""

import difflib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from analysis.models.precision import true_float32
from analysis.runs.identity import check_values
from analysis.runs.signals import EndedBySignal
from replknet import DepthwiseConv2d


@runtime_checkable
class FeatureExtractor(Protocol):
    """A model in timm's manner, whose last feature map is its `forward_features`."""

    def forward_features(self, x: Tensor, /) -> Any: ...


@runtime_checkable
class StagedModel(Protocol):
    """A RepLKNet, or a model in timm's manner, whose stages have numbers."""

    def forward_intermediates(self, x: Tensor, indices: Any, /) -> Any: ...


class LayerError(ValueError):
    """The requested layer does not exist or has no spatial output."""


class ForwardError(ValueError):
    """A model's own code does not run on an input."""


@contextmanager
def own_code(model: nn.Module, images: Tensor, name: str = "") -> Iterator[None]:
    """Whatever the code of a model raises becomes a `ForwardError` that names the model and what it was given."""
    try:
        yield
    except (ForwardError, LayerError, EndedBySignal):
        raise
    except (Exception, SystemExit) as error:  # of any type: it is not our code
        reason = ": ".join(filter(None, (type(error).__name__, str(error).strip().partition("\n")[0])))
        raise ForwardError(
            f"model: {name or type(model).__name__} cannot take images of shape {tuple(images.shape)} ({reason})"
        ) from error


def run(model: nn.Module, images: Tensor, name: str = "") -> Any:
    """The output of a model.

    Raises:
        ForwardError: If its code fails.
    """
    with own_code(model, images, name):
        return model(images)


def layer_output(model: nn.Module, images: Tensor, layer: str, name: str = "") -> Any:
    """The output of a layer when it is run last.

    Args:
        model: Any module that takes an image batch.
        images: Input, shape (N, C, H, W).
        layer: Name of a submodule, as in `model.named_modules()`; empty for the model itself.
        name: Of the model, for messages.

    Raises:
        LayerError: If there is no such layer, or it is not run.
        ForwardError: If the model's code fails.
    """
    outputs: list[Any] = []

    def keep(_name: str, _layer: nn.Module, _inputs: tuple[Any, ...], output: Any) -> None:
        outputs[:] = [output]

    if layer:
        require_layers(model, [layer])
    with layer_calls(model, keep, lambda own, _: own == layer):
        run(model, images, name)
    if not outputs:
        raise LayerError(f"layer={layer!r}: the forward pass does not run this module")
    return outputs[0]


@contextmanager
def layer_calls(
    model: nn.Module,
    keep: Callable[[str, nn.Module, tuple[Any, ...], Any], None],
    chosen: Callable[[str, nn.Module], bool] = lambda name, module: True,
) -> Iterator[None]:
    """Call `keep` with name, module, inputs and output of every chosen module of a model when it is run.

    Tensors come as copies, attached to the autograd graph: what follows in the forward pass may write into a layer's
    output, as an in-place ReLU does. Inside TorchScript nothing is seen, which calls no hooks and refuses them.
    """

    def hook(name: str) -> Callable[[nn.Module, tuple[Any, ...], dict[str, Any], Any], None]:
        return lambda module, inputs, named, output: keep(
            name, module, _copied((*inputs, *named.values())), _copied(output)
        )

    handles = [
        module.register_forward_hook(hook(name), with_kwargs=True)
        for name, module in model.named_modules()
        if chosen(name, module) and not isinstance(module, torch.jit.ScriptModule)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _copied(value: Any) -> Any:
    """Tensors in lists and tuples too; anything else as it is."""
    if isinstance(value, Tensor):
        return value.clone()
    return type(value)(map(_copied, value)) if type(value) in (list, tuple) else value


_HEADS = {"classifier", "fc", "head", "heads", "last_linear"}
"""Names under which networks keep the layer that gives class scores."""


def missing_head(model: nn.Module, num_outputs: int) -> str:
    """Why the outputs of a network are no class scores, in words, as far as it says so itself; else empty.

    It says so by `num_classes`, in timm's manner, by an Identity in the place of its head, or, a sequence of layers, by
    a norm of maps as the last one that has weights.
    """
    stated = getattr(model, "num_classes", None)
    if isinstance(stated, int):
        return "" if stated == num_outputs else f"its num_classes is {stated}"
    for name, module in model.named_modules():
        parts = list(module.children()) if kind_of(module) == "Sequential" else []
        if name.rpartition(".")[2] in _HEADS and kind_of((parts or [module])[-1]) == "Identity":
            return f"its {name} is an Identity"
    weighted = [module for module in model.modules() if list(module.parameters(recurse=False))]
    if isinstance(model, nn.Sequential) and weighted and isinstance(weighted[-1], nn.BatchNorm2d | nn.GroupNorm):
        return f"it ends in a {kind_of(weighted[-1])}"
    return ""


def kind_of(module: nn.Module) -> str:
    """The name of its class, also in TorchScript and within the wrapper of a library's network."""
    return str(getattr(module, "original_name", type(module).__name__))


_LARGE = 7
"""cuDNN has no algorithm for wider depthwise kernels, and takes a hundred times as long as PyTorch's own code."""


def fast_layout(model: nn.Module, device: torch.device) -> torch.memory_format:
    """The memory layout of the maps in which a network computes fastest on a device.

    That is channels last, but not on a GPU with large depthwise convolutions that are PyTorch's own: those go to cuDNN
    then. A `replknet.DepthwiseConv2d` takes either. On other devices channels last has no advantage.
    """
    large = device.type == "cuda" and any(
        isinstance(layer, nn.Conv2d)
        and not isinstance(layer, DepthwiseConv2d)
        and 1 < layer.in_channels == layer.groups
        and max(layer.kernel_size) > _LARGE
        for layer in model.modules()
    )
    return torch.contiguous_format if large or device.type not in ("cpu", "cuda") else torch.channels_last


def require_layers(model: nn.Module, layers: Sequence[str], also: str = "") -> None:
    """Refuse names that are not those of modules; the message mentions `also` beside some that are.

    Raises:
        LayerError: Naming the first of them.
    """
    names = dict(model.named_modules())
    for layer in layers:
        if layer not in names or layer == "":
            top = ", ".join(name for name in names if name and name.count(".") < 2)
            shown = top if len(top) < 300 else top[:300] + " ..."
            other = f"{also} or " if also else ""
            near = difflib.get_close_matches(layer, names, n=2, cutoff=0.75)
            meant = f" (did you mean {' or '.join(near)}?)" if near else ""
            raise LayerError(
                f"layer={layer!r}: the model has no such module{meant}; expected {other}a name such as {shown}"
            )


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode with every parameter's gradient off, computed in true float32; all is restored on leaving.

    Raises:
        ForwardError: If parameters have no values yet.
    """
    try:
        check_values(model)
    except ValueError as error:
        raise ForwardError(str(error)) from None
    modes = [(module, module.training) for module in model.modules()]
    # Weights made in inference mode never require a gradient, and cannot be told to.
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters() if not parameter.is_inference()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        # Callers may sit inside no_grad or inference_mode, where an input gradient could not be taken.
        with torch.inference_mode(False), torch.enable_grad(), true_float32():
            yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)
