"""1x1 convolution that, in inference on a CPU, multiplies by weights packed once and applies what follows on the way.

oneDNN's matrix product works on weights in a blocked layout. `conv2d` brings them there in every call; here they stay
there between calls, and the activation and the residual sum are applied to each block of the result while it is still
in a register. These are the operators that PyTorch's own inference compiler uses; they have no gradients.
"""

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

_ACTIVATIONS = {nn.Identity: ("none", ""), nn.ReLU: ("relu", ""), nn.GELU: ("gelu", "none")}


class PackedWeight:
    """The packed form of a layer's weight, made anew when the parameter is replaced or changed in place.

    A change that PyTorch does not record (through `.data` or a numpy view) goes unseen. A copy or a pickle is empty.
    """

    def __init__(self) -> None:
        self._entry: tuple[Tensor, int, Tensor, Tensor] | None = None

    def __reduce__(self) -> tuple[type["PackedWeight"], tuple[()]]:
        return PackedWeight, ()

    def packed(self, weight: Tensor) -> Tensor:
        entry = self._entry
        # The alias keeps the memory from being reused, so that an equal address means the same memory.
        if (
            entry is None
            or entry[0] is not weight
            or entry[1] != weight._version
            or entry[2].data_ptr() != weight.data_ptr()
        ):
            alias = weight.detach()
            entry = (weight, weight._version, alias, torch.ops.mkldnn._reorder_linear_weight(alias.flatten(1)))
            self._entry = entry
        return entry[3]


class PointwiseConv2d(nn.Conv2d):
    """A 1x1 convolution; its `state_dict` is that of `nn.Conv2d(in_channels, out_channels, 1)`."""

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__(in_channels, out_channels, 1, bias=bias)
        self._packed = PackedWeight()

    def fuses(self, x: Tensor, activation: nn.Module) -> bool:
        """Whether `fused` can be called: evaluation mode, no gradients, float32, and a plain call on a CPU."""
        return (
            not self.training
            and not torch.is_grad_enabled()
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and x.numel() > 0
            and type(activation) in _ACTIVATIONS
            and not (isinstance(activation, nn.GELU) and activation.approximate != "none")
            and torch.backends.mkldnn.is_available()
            and not torch.compiler.is_compiling()
            and not torch.is_autocast_enabled("cpu")
            and not torch.is_inference(self.weight)
            and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
            and not is_in_torch_dispatch_mode()
            and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        )

    def fused(self, x: Tensor, activation: nn.Module, residual: Tensor | None = None) -> Tensor:
        """`activation(conv(x))`, or `conv(x) + residual` where the activation is the identity; channels_last."""
        rows = _rows(x)
        weight = self._packed.packed(self.weight)
        out: Tensor
        if residual is None:
            name, algorithm = _ACTIVATIONS[type(activation)]
            out = torch.ops.mkldnn._linear_pointwise(rows, weight, self.bias, name, [], algorithm)
        else:
            out = torch.ops.mkldnn._linear_pointwise.binary(rows, _rows(residual), weight, self.bias, "add")
        return out.reshape(x.shape[0], *x.shape[2:], -1).permute(0, 3, 1, 2)


def _rows(x: Tensor) -> Tensor:
    """Maps (N, C, H, W) as a matrix (N * H * W, C): a view of channels_last maps."""
    return x.permute(0, 2, 3, 1).reshape(-1, x.shape[1])
