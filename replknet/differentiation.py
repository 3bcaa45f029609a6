"""Gradients of any order for the depthwise convolution, in eager mode and in the graphs of torch.compile.

Both maps that occur are bilinear, and closed under differentiation:

    correlate(x, w)[i] = sum_d x[i + d] w[d]               the output; of a gradient and the flipped kernel, the input's
    lags(x, g)[d]      = sum_i x[i + d] g[i]               the weight gradient, summed over images
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from replknet.correlation import Settings, correlate, gradients
from replknet.layout import layout


class Correlate(Function):
    """The output; after it the kept spectra, so that they are saved for backward as other tensors are."""

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings) -> tuple[Tensor | None, ...]:
        out, spectrum, kept = correlate(x, weight, bias, settings)
        return out, spectrum, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor | None, ...]) -> None:
        ctx.set_materialize_grads(False)
        x, weight, _, ctx.settings = inputs
        ctx.num_spectra = len(output) - 1
        ctx.mark_non_differentiable(*(tensor for tensor in output[1:] if tensor is not None))
        # Without a weight gradient the map is not needed again: its memory can go.
        ctx.save_for_backward(x if ctx.needs_input_grad[1] else None, weight, *output[1:])
        ctx.save_for_forward(x, weight)  # for forward mode alone

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        if grad is None:
            return None, None, None, None
        x, weight, *spectra = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        # A Function costs about 50 us; only a derivative of the gradients, or a transform of torch.func, needs one.
        differentiable = torch.is_grad_enabled() or torch._C._are_functorch_transforms_active()
        compute = Gradients.apply if differentiable else Gradients.forward
        grad_input, grad_weight = compute(grad, x, weight, wanted[0], wanted[1], ctx.settings, spectra)
        return grad_input, grad_weight, grad.sum((0, 2, 3)) if wanted[2] else None, None

    @staticmethod
    def jvp(
        ctx: Any, by_x: Tensor | None, by_weight: Tensor | None, by_bias: Tensor | None, _: None
    ) -> tuple[Tensor | None, ...]:
        x, weight, settings = ctx.saved_tensors[0], ctx.saved_tensors[1], ctx.settings.for_others()
        total = None if by_bias is None else by_bias[:, None, None].expand(x.shape)
        if by_x is not None:
            total = _total(total, _correlate_maps(by_x, weight, None, settings))
        if by_weight is not None:
            total = _total(total, _correlate_maps(x, by_weight, None, settings))
        return total, *[None] * ctx.num_spectra

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings
    ) -> tuple[tuple[Tensor, None], tuple[int, None]]:
        size = info.batch_size
        out = _correlate_maps(
            _into_channels(x, in_dims[0], size, 1),
            _into_channels(weight, in_dims[1], size, 0),
            _into_channels(bias, in_dims[2], size, 0),
            settings.for_others(),
        )
        return (out.reshape(out.shape[0], size, -1, *out.shape[2:]), None), (1, None)


def _correlate_maps(x: Any, weight: Any, bias: Any, settings: Settings) -> Tensor:
    out: Tensor = Correlate.apply(x, weight, bias, settings)[0]
    return out


class Gradients(Function):
    @staticmethod
    def forward(
        grad: Tensor,
        x: Tensor | None,
        weight: Tensor,
        input_gradient: bool,
        weight_gradient: bool,
        settings: Settings,
        spectra: Sequence[Tensor | None],
    ) -> tuple[Tensor | None, Tensor | None]:
        return gradients(
            grad,
            grad if x is None else x,
            weight,
            input_gradient,
            weight_gradient,
            settings,
            spectra[0],
            [tensor for tensor in spectra[1:] if tensor is not None],
        )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.set_materialize_grads(False)
        ctx.asked, ctx.settings = inputs[3:5], inputs[5].for_others()
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
                for_grad = _correlate_maps(by_input, weight, None, ctx.settings)
            if wanted[2]:
                for_weight = Gradients.apply(grad, by_input, weight, False, True, ctx.settings, (None,))[1]
        if by_weight is not None:
            if wanted[0]:
                for_grad = _total(for_grad, _correlate_maps(x, by_weight, None, ctx.settings))
            if wanted[1]:
                for_x = _correlate_maps(grad, by_weight.flip(2, 3), None, ctx.settings)
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
            found: Tensor = Gradients.apply(grad, x, weight, index == 0, index == 1, ctx.settings, (None,))[index]
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
        settings: Settings,
        spectra: Any,
    ) -> tuple[tuple[Tensor | None, Tensor | None], tuple[int | None, int | None]]:
        size = info.batch_size
        grad_input, grad_weight = Gradients.apply(
            _into_channels(grad, in_dims[0], size, 1),
            _into_channels(x, in_dims[1], size, 1),
            _into_channels(weight, in_dims[2], size, 0),
            input_gradient,
            weight_gradient,
            settings.for_others(),
            (None,),
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


# The operators that torch.compile sees -----------------------------------------------------------------------------


@torch.library.custom_op("replknet::depthwise_conv2d", mutates_args=())
def _operator(x: Tensor, weight: Tensor, bias: Tensor | None, method: str) -> Tensor:
    return correlate(x, weight, bias, Settings(method))[0].contiguous(memory_format=layout(x))


@_operator.register_fake
def _(x: Tensor, weight: Tensor, bias: Tensor | None, method: str) -> Tensor:
    return torch.empty_like(x, memory_format=layout(x))


@torch.library.custom_op("replknet::depthwise_conv2d_backward", mutates_args=())
def _operator_backward(
    grad: Tensor, x: Tensor, weight: Tensor, input_gradient: bool, weight_gradient: bool, method: str
) -> tuple[Tensor, Tensor]:
    """Both gradients, or an empty tensor for one that is not asked for."""
    found = gradients(grad, x, weight, input_gradient, weight_gradient, Settings(method))
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
