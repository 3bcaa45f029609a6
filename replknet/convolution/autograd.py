"""Gradients of any order for the depthwise convolution, in both modes and under the transforms of torch.func.

Both maps that occur are bilinear, and closed under differentiation:

    correlate(x, w)[i] = sum_d x[i + d] w[d]               the output; of a gradient and the flipped kernel, the input's
    lags(x, g)[d]      = sum_i x[i + d] g[i]               the weight gradient, summed over images
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import Function

from replknet.convolution.applying import correlate, gradients

F = TypeVar("F", bound=Callable[..., Any])


def _with_signature(forward: F) -> F:
    """PyTorch asks for the signature at each call; to find it out takes as long as launching a kernel or two."""
    forward.__signature__ = inspect.signature(forward)  # type: ignore[attr-defined]
    return forward


class Correlate(Function):
    """The output; after it the kept spectra, so that they are saved for backward as other tensors are."""

    @staticmethod
    @_with_signature
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, method: str, keep: bool) -> tuple[Tensor, ...]:
        out, kept = correlate(x, weight, bias, method, keep=keep)
        return out, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.set_materialize_grads(False)
        x, weight, _, ctx.method, _ = inputs
        ctx.num_spectra = len(output) - 1
        ctx.mark_non_differentiable(*output[1:])
        # Without a weight gradient the map is not needed again: its memory can go.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, *output[1:])
        ctx.save_for_forward(x, weight)  # for forward mode alone

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None, None
        x, weight, *spectra = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        # Nobody will differentiate them: without being recorded they cost less of the processor's time.
        alone = not torch.is_grad_enabled() and not torch._C._are_functorch_transforms_active()
        differentiate = Gradients.forward if alone else Gradients.apply
        grad_input, grad_weight = differentiate(grad, x, weight, wanted[0], wanted[1], ctx.method, spectra)
        return grad_input, grad_weight, grad.sum((0, 2, 3)) if wanted[2] else None, None, None

    @staticmethod
    def jvp(
        ctx: Any, by_x: Tensor | None, by_weight: Tensor | None, by_bias: Tensor | None, *_: None
    ) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors[:2]
        total = None if by_bias is None else by_bias[:, None, None].expand(x.shape)
        if by_x is not None:
            total = _total(total, _correlate_maps(by_x, weight, None, ctx.method))
        if by_weight is not None:
            total = _total(total, _correlate_maps(x, by_weight, None, ctx.method))
        return total, *[None] * ctx.num_spectra

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Tensor | None, method: str, keep: bool
    ) -> tuple[tuple[Tensor], tuple[int]]:
        size = info.batch_size
        out = _correlate_maps(
            _into_channels(x, in_dims[0], size, 1),
            _into_channels(weight, in_dims[1], size, 0),
            _into_channels(bias, in_dims[2], size, 0),
            method,
        )
        return (out.reshape(out.shape[0], size, -1, *out.shape[2:]),), (1,)


def _correlate_maps(x: Any, weight: Any, bias: Any, method: str) -> Tensor:
    out: Tensor = Correlate.apply(x, weight, bias, method, False)[0]
    return out


class Gradients(Function):
    @staticmethod
    @_with_signature
    def forward(
        grad: Tensor,
        x: Tensor | None,
        weight: Tensor,
        input_gradient: bool,
        weight_gradient: bool,
        method: str,
        kept: Sequence[Tensor],
    ) -> tuple[Tensor | None, Tensor | None]:
        return gradients(
            grad,
            grad if x is None else x,
            weight,
            method,
            input_gradient=input_gradient,
            weight_gradient=weight_gradient,
            kept=kept if weight_gradient else (),
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.asked, ctx.method = inputs[3:5], inputs[5]
        ctx.save_for_backward(*inputs[:3])
        ctx.save_for_forward(*inputs[:3])

    @staticmethod
    def backward(ctx: Any, by_input: Tensor | None, by_weight: Tensor | None) -> tuple[Tensor | None, ...]:
        """`by_input`, of a map's shape, and `by_weight`, of a kernel's, come back for the two gradients."""
        grad, x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        for_grad: Tensor | None = None
        for_x: Tensor | None = None
        for_weight: Tensor | None = None
        if by_input is not None:
            if wanted[0]:
                for_grad = _correlate_maps(by_input, weight, None, ctx.method)
            if wanted[2]:
                for_weight = Gradients.apply(grad, by_input, weight, False, True, ctx.method, ())[1]
        if by_weight is not None:
            if wanted[0]:
                for_grad = _total(for_grad, _correlate_maps(x, by_weight, None, ctx.method))
            if wanted[1]:
                for_x = _correlate_maps(grad, by_weight.flip(2, 3), None, ctx.method)
        return for_grad, for_x, for_weight, None, None, None, None

    @staticmethod
    def jvp(
        ctx: Any, by_grad: Tensor | None, by_x: Tensor | None, by_weight: Tensor | None, *_: None
    ) -> tuple[Tensor | None, Tensor | None]:
        grad, x, weight = ctx.saved_tensors[:3]

        def term(index: int, grad: Tensor | None, x: Tensor | None, weight: Tensor | None) -> Tensor | None:
            """One of the two results; zero, which is None, where a factor is."""
            if not ctx.asked[index] or grad is None or (x if index else weight) is None:
                return None
            found: Tensor = Gradients.apply(grad, x, weight, index == 0, index == 1, ctx.method, ())[index]
            return found

        return (
            _total(term(0, by_grad, x, weight), term(0, grad, x, by_weight)),
            _total(term(1, by_grad, x, weight), term(1, grad, by_x, weight)),
        )

    @staticmethod
    def vmap(
        info: Any,
        in_dims: tuple[Any, ...],
        grad: Tensor,
        x: Tensor | None,
        weight: Tensor,
        input_gradient: bool,
        weight_gradient: bool,
        method: str,
        kept: Any,
    ) -> tuple[tuple[Tensor | None, Tensor | None], tuple[int | None, int | None]]:
        size = info.batch_size
        grad_input, grad_weight = Gradients.apply(
            _into_channels(grad, in_dims[0], size, 1),
            _into_channels(x, in_dims[1], size, 1),
            _into_channels(weight, in_dims[2], size, 0),
            input_gradient,
            weight_gradient,
            method,
            (),
        )
        return (
            (
                None if grad_input is None else grad_input.unflatten(1, (size, -1)),
                None if grad_weight is None else grad_weight.unflatten(0, (size, -1)),
            ),
            (None if grad_input is None else 1, None if grad_weight is None else 0),
        )


def _total(first: Tensor | None, second: Tensor | None) -> Tensor | None:
    """Their sum; None is zero."""
    return second if first is None else first if second is None else first + second


def _into_channels(x: Tensor | None, dim: int | None, size: int, channel_dim: int) -> Any:
    """Merge the dimension `dim` that is mapped over (None: the same for all) into the channels."""
    if x is None:
        return None
    moved = x.unsqueeze(channel_dim).expand(*x.shape[:channel_dim], size, *x.shape[channel_dim:])
    if dim is not None:
        moved = x.movedim(dim, channel_dim)
    return moved.flatten(channel_dim, channel_dim + 1)
