"""The operators that torch.compile sees, and what a traced or exported graph holds instead of a call."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from replknet.convolution.applying import correlate, gradients
from replknet.convolution.layouts import layout
from replknet.convolution.rearranged import meeting_taps, plain_conv2d


def is_recorded() -> bool:
    """Whether the call becomes part of a graph: of torch.compile, torch.export, ONNX or `torch.jit.trace`."""
    return torch.compiler.is_compiling() or bool(torch.jit.is_tracing())  # type: ignore[attr-defined, no-untyped-call]


def is_altered() -> bool:
    """Whether more than the call itself is at work: a graph, autocast, a transform or derivatives in forward mode."""
    return (
        is_recorded()
        or torch.is_autocast_enabled("cpu")
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
    )


def recorded_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, method: str) -> Tensor:
    """An operator of its own in a graph that runs here, a plain convolution in one that may run anywhere."""
    if not torch.compiler.is_compiling() or torch.compiler.is_exporting() or not (x.is_cpu or x.is_cuda):
        return plain_conv2d(x, weight, bias)
    out: Tensor = torch.ops.replknet.depthwise_conv2d(x, meeting_taps(weight, *x.shape[2:]), bias, method)
    return out


@torch.library.custom_op("replknet::depthwise_conv2d", mutates_args=())
def _operator(x: Tensor, weight: Tensor, bias: Tensor | None, method: str) -> Tensor:
    return correlate(x, weight, bias, method)[0].contiguous(memory_format=layout(x))


@_operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, method: str) -> Tensor:
    return torch.empty_like(x, memory_format=layout(x))


@torch.library.custom_op("replknet::depthwise_conv2d_backward", mutates_args=())
def _operator_backward(
    grad: Tensor, x: Tensor, weight: Tensor, input_gradient: bool, weight_gradient: bool, method: str
) -> tuple[Tensor, Tensor]:
    """Both gradients, or an empty tensor for one that is not asked for."""
    found = gradients(grad, x, weight, method, input_gradient=input_gradient, weight_gradient=weight_gradient)
    fake = _fake_backward(grad, x, weight, input_gradient, weight_gradient, method)
    grad_input, grad_weight = (
        empty if tensor is None else tensor.contiguous(memory_format=layout(like))
        for tensor, empty, like in zip(found, fake, (x, weight), strict=True)
    )
    return grad_input, grad_weight


def _fake_backward(
    grad: Tensor, x: Tensor, weight: Tensor, input_gradient: bool, weight_gradient: bool, method: str
) -> tuple[Tensor, Tensor]:
    grad_input = torch.empty_like(x, memory_format=layout(x)) if input_gradient else x.new_empty(0)
    grad_weight = torch.empty_like(weight, memory_format=layout(weight)) if weight_gradient else x.new_empty(0)
    return grad_input, grad_weight


_operator_backward.register_fake(_fake_backward)


def _setup_operator(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, _, ctx.method = inputs
    ctx.save_for_backward(x, weight)


def _differentiate_operator(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    found = torch.ops.replknet.depthwise_conv2d_backward(grad, x, weight, wanted[0], wanted[1], ctx.method)
    grad_input, grad_weight = (tensor if want else None for tensor, want in zip(found, wanted, strict=False))
    return grad_input, grad_weight, grad.sum((0, 2, 3)) if wanted[2] else None, None


_operator.register_autograd(_differentiate_operator, setup_context=_setup_operator)
