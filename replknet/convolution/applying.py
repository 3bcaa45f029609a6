"""A depthwise convolution and both its gradients, each by the way that its plan names.

Nothing in this module is differentiable; `autograd` makes it so.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from replknet.convolution import spectral, toeplitz
from replknet.convolution.planning import plan_of
from replknet.convolution.rearranged import (
    arranged_conv2d,
    arranged_input_gradient,
    at_least_float32,
    native_conv2d,
    native_gradients,
)
from replknet.convolution.tiles import KernelError


def correlate(
    x: Tensor, weight: Tensor, bias: Tensor | None, method: str, *, keep: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """The output, and with `keep` the spectra of the blocks of maps, where there are any."""
    plan = plan_of(x, weight, method, input_gradient=False, weight_gradient=keep)
    if plan.output == "toeplitz":
        try:
            return toeplitz.correlate(x, weight, bias, precision=plan.precision), []
        except KernelError as error:
            _without_toeplitz(x, method, error)
            return correlate(x, weight, bias, method, keep=keep)
    if plan.output == "native":
        return native_conv2d(x, weight, bias), []
    if plan.output == "direct":
        return arranged_conv2d(x, weight, bias, plan.arrangement), []
    kept: list[Tensor] = []
    x32, weight32, bias32 = (at_least_float32(tensor) for tensor in (x, weight, bias))
    out = spectral.correlate(x32, weight32, bias32, kept if plan.keeps_spectra else None)
    return out.to(x.dtype), kept


def _without_toeplitz(x: Tensor, method: str, error: KernelError) -> None:
    if method == "toeplitz":
        raise error
    toeplitz.give_up(x.device, error)


def gradients(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    method: str,
    *,
    input_gradient: bool,
    weight_gradient: bool,
    kept: Sequence[Tensor] = (),
) -> tuple[Tensor | None, Tensor | None]:
    """Both gradients; where one is not asked for, the tensor that only the other needs is looked at for its shape."""
    if not grad.numel():
        return (torch.zeros_like(x) if input_gradient else None), (
            torch.zeros_like(weight) if weight_gradient else None
        )
    plan = plan_of(grad, weight, method, input_gradient=input_gradient, weight_gradient=weight_gradient)
    ways = (plan.input_gradient if input_gradient else None, plan.weight_gradient if weight_gradient else None)
    grad_input: Tensor | None = None
    grad_weight: Tensor | None = None
    if "toeplitz" in ways:
        try:
            grad_input, grad_weight = toeplitz.gradients(
                grad,
                x,
                weight,
                input_gradient=ways[0] == "toeplitz",
                weight_gradient=ways[1] == "toeplitz",
                precision=plan.precision,
            )
        except KernelError as error:
            _without_toeplitz(x, method, error)
            wanted = {"input_gradient": input_gradient, "weight_gradient": weight_gradient}
            return gradients(grad, x, weight, method, **wanted, kept=kept)
        grad_weight = None if grad_weight is None else grad_weight.to(weight.dtype)
    if "native" in ways:
        found = native_gradients(
            grad, x, weight, input_gradient=ways[0] == "native", weight_gradient=ways[1] == "native"
        )
        grad_input, grad_weight = (
            ours if theirs is None else theirs for ours, theirs in zip((grad_input, grad_weight), found, strict=True)
        )
    if ways[0] == "direct":
        grad_input = arranged_input_gradient(grad, weight, plan.arrangement)
    if ways[1] == "direct" or "fft" in ways:
        grad32, x32, weight32 = (at_least_float32(tensor) for tensor in (grad, x, weight))
        if ways[1] == "direct":
            of_weight = native_gradients(grad32, x32, weight32, input_gradient=False, weight_gradient=True)[1]
            grad_weight = None if of_weight is None else of_weight.to(weight.dtype)
        if "fft" in ways:
            found = spectral.gradients(
                grad32, x32, weight32, input_gradient=ways[0] == "fft", weight_gradient=ways[1] == "fft", kept=kept
            )
            grad_input = grad_input if found[0] is None else found[0].to(x.dtype)
            grad_weight = grad_weight if found[1] is None else found[1].to(weight.dtype)
    return grad_input, grad_weight
