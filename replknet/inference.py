"""When a layer may call operators without gradients, and the packed weights that they multiply by."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
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
    """Whether operators without gradients can stand in: evaluation mode, float32, and a plain call on a CPU."""
    return (
        not torch.compiler.is_compiling()  # first: the compiler reads no further
        and not layer.training
        and not torch.is_grad_enabled()
        and x.device.type == "cpu"
        and x.dtype == layer.weight.dtype == torch.float32
        and x.numel() > 0
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and bool(torch.backends.mkldnn.enabled)
        and not torch.is_autocast_enabled("cpu")
        and not torch.is_inference(layer.weight)
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and not is_in_torch_dispatch_mode()
        and not is_transformed(x)
        and not is_transformed(layer.weight)
    )


def is_transformed(x: Tensor) -> bool:
    """Whether `torch.func` maps over or differentiates this tensor; never while compiling, where it cannot be asked."""
    return not torch.compiler.is_compiling() and torch._C._functorch.is_functorch_wrapped_tensor(x)
