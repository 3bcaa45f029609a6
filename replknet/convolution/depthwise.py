"""Depthwise convolution with stride 1 and "same" padding, fast for large kernels, forward and backward.

A call is checked, its plan looked up (`planning`), and the plan applied: by one call of `conv2d` where that is all it
says, else through `autograd`. Nothing is kept from one call to the next but plans, which know of shapes only, and
whether Triton works on a GPU.
"""

import torch
from torch import Tensor, nn
from torch.jit import is_scripting  # type: ignore[attr-defined]

from replknet.convolution.autograd import Correlate
from replknet.convolution.operators import is_recorded, recorded_conv2d
from replknet.convolution.planning import HALF, METHODS, Method, plan_of
from replknet.convolution.rearranged import meeting_taps, plain_conv2d


def depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None = None, method: Method = "auto") -> Tensor:
    """Depthwise convolution (cross-correlation) with stride 1 and zero padding that keeps the size.

    A value that is not finite spoils what `conv2d` lets it spoil; by FFTs it fills its image and channel, and no other.

    Args:
        x: Maps, shape (N, C, H, W), contiguous, channels_last or strided in any other way.
        weight: One kernel per channel, shape (C, 1, Kh, Kw), both sides odd; they may exceed the map.
        bias: Shape (C,).
        method: "auto" takes the fastest way for each direction on a CPU and on NVIDIA's GPUs, elsewhere the vendor's
            convolution; "fft", "direct" (`conv2d` in its better layout) and "toeplitz" (matrix products, on a GPU)
            insist on one.

    Returns:
        Shape, data type and layout of `x`. bfloat16 and float16 are computed in float32 where FFTs are used, and summed
        in it by matrix products; float32 is exact unless `torch.backends.cuda.matmul.allow_tf32` is set.

    Raises:
        ValueError: If the method is unknown or not for this device, or shapes, data types or devices do not fit.
        KernelError: By "toeplitz", if Triton is not there or fails; "auto" warns once and goes without.

    Example:
        >>> maps, kernels = torch.ones(1, 2, 5, 5), torch.ones(2, 1, 31, 31)
        >>> depthwise_conv2d(maps, kernels)[0, 0, 0, :3].round().tolist()  # every kernel covers all of the map
        [25.0, 25.0, 25.0]
    """
    x, weight, bias = _autocast(x, weight, bias)
    _check(x, weight, bias, method)
    if is_recorded():
        return recorded_conv2d(x, weight, bias, method)
    trains = torch.is_grad_enabled()
    needs_weight = trains and weight.requires_grad
    plan = plan_of(x, weight, method, input_gradient=trains and x.requires_grad, weight_gradient=needs_weight)
    if plan.crops:
        weight = meeting_taps(weight, *x.shape[2:])
    if plan.plain:
        return plain_conv2d(x, weight, bias)
    out: Tensor = Correlate.apply(x, weight, bias, method, plan.keeps_spectra)[0]
    return out


class DepthwiseConv2d(nn.Conv2d):
    """A layer of `depthwise_conv2d`; its `state_dict` is that of `nn.Conv2d(channels, channels, ..., groups=channels)`.

    Args:
        channels: Input and output channels.
        kernel_size: Odd side of the kernels, or their height and width.
        bias: Whether there is one.
    """

    def __init__(self, channels: int, kernel_size: int | tuple[int, int], bias: bool = False) -> None:
        if channels < 1:
            raise ValueError(f"channels={channels}: expected at least 1")
        height, width = (kernel_size, kernel_size) if isinstance(kernel_size, int) else kernel_size
        if min(height, width) < 1 or not height & width & 1:
            raise ValueError(f"kernel_size={kernel_size}: expected an odd number, or two of them")
        padding = (height // 2, width // 2)
        super().__init__(channels, channels, (height, width), padding=padding, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return _depthwise_conv2d(x, self.weight, self.bias)


def _depthwise_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if is_scripting():
        padding = [weight.shape[2] // 2, weight.shape[3] // 2]
        out = torch.conv2d(x, weight, bias, [1, 1], padding, [1, 1], weight.shape[0])
    else:
        out = depthwise_conv2d(x, weight, bias)
    return out


torch.fx.wrap("_depthwise_conv2d")  # one node of a symbolic trace, which has no shapes to plan by


def _autocast(x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """What autocast makes of them."""
    device = x.device.type
    # Dynamo of PyTorch 2.11 cannot ask whether a device has autocast.
    if device not in ("cpu", "cuda", "mps") or not torch.is_autocast_enabled(device):
        return x, weight, bias
    if x.dtype is torch.float64:  # which it leaves alone
        return x, weight, bias
    dtype = torch.get_autocast_dtype(device)
    return x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, method: str) -> None:
    kernel = weight.shape
    fits = len(kernel) == x.ndim == 4 and kernel[0] == x.shape[1] and kernel[1] == 1 and 0 not in x.shape[1:]
    if not fits or not kernel[2] & kernel[3] & 1:
        raise ValueError(
            f"weight of shape {tuple(weight.shape)} and x of shape {tuple(x.shape)}: expected x of shape (N, C, H, W) "
            "with at least one channel and pixel, and weight of shape (C, 1, Kh, Kw) with odd Kh and Kw"
        )
    if bias is not None and bias.shape != kernel[:1]:
        raise ValueError(f"bias of shape {tuple(bias.shape)}: expected ({kernel[0]},), one value per channel of weight")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor is not None and (tensor.dtype is not x.dtype or tensor.device != x.device):
            raise ValueError(f"{name} of {tensor.dtype} on {tensor.device}: expected {x.dtype} on {x.device}, as x is")
    if method not in METHODS:
        raise ValueError(f"method={method!r}: expected one of {', '.join(METHODS)}")
    if method == "toeplitz" and x.dtype not in (torch.float32, *HALF):
        raise ValueError(f"method='toeplitz' for {x.dtype}: expected float32, float16 or bfloat16")
