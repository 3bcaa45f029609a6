"""When layers may be computed otherwise than by calling their modules, and the packed weights they multiply by."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


class PackedWeight:
    """The packed form of a layer's weight, made anew when the parameter is replaced or changed in place.

    A change that PyTorch does not record (through `.data` or a numpy view) goes unseen. A copy or a pickle is empty.
    """

    def __init__(self) -> None:
        self._entry: tuple[object, Tensor, Tensor] | None = None

    def __reduce__(self) -> tuple[type["PackedWeight"], tuple[()]]:
        return PackedWeight, ()

    def packed(self, weight: Tensor, pack: Callable[[Tensor], Tensor], use: object = None) -> Tensor:
        """`pack(weight)`, or what it was before for the same weight and the same `use`."""
        state = (id(weight), weight._version, weight.data_ptr(), use)
        entry = self._entry
        if entry is None or entry[0] != state:
            # The weight is kept with its packed form: its memory cannot become that of another with an equal state.
            entry = (state, weight.detach(), pack(weight.detach()))
            self._entry = entry
        return entry[2]


def is_plain_inference(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether operators without gradients can stand in."""
    return is_plain(layer, x) and not torch.is_grad_enabled()


def is_plain(layer: nn.Conv2d, x: Tensor) -> bool:
    """Whether the layer does nothing but compute: evaluation mode, float32, and a plain call on a CPU."""
    return is_plain_call(x) and is_plain_layer(layer)


def is_plain_call(x: Tensor) -> bool:
    """The part of `is_plain` that is the same for all layers that see maps like `x`."""
    return (
        not torch.compiler.is_compiling()  # first: the compiler reads no further
        and x.dtype is torch.float32
        and x.is_cpu
        and x.numel() > 0
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not is_in_torch_dispatch_mode()
        and not is_transformed(x)
    )


def is_plain_layer(layer: nn.Conv2d) -> bool:
    """The part of `is_plain` that differs between layers."""
    weight = layer.weight
    return (
        not layer.training
        and weight.dtype is torch.float32
        and weight.is_cpu
        and not torch.is_inference(weight)
        and not torch._C._functorch.is_functorch_wrapped_tensor(weight)
    )


def is_hooked(*modules: nn.Module) -> bool:
    """Whether somebody listens to one of these modules, or to all: each must then be called by itself."""
    for module in modules:
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            return True
    return bool(torch.nn.modules.module._has_any_global_hook())  # type: ignore[no-untyped-call]


def is_transformed(x: Tensor) -> bool:
    """Whether this tensor is mapped over or differentiated by `torch.func`, or in forward mode.

    Never while compiling, where it cannot be asked.
    """
    return not torch.compiler.is_compiling() and (
        torch._C._functorch.is_functorch_wrapped_tensor(x) or forward_ad._current_level >= 0
    )
