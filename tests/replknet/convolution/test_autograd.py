"""Derivatives of every order and mode, and under torch.func, against finite differences and conv2d."""

from typing import Any

import pytest
import torch
from torch import Tensor

from replknet import depthwise_conv2d
from replknet.convolution.planning import Method
from tests.replknet.convolution.reference import METHODS, random, reference, relative_error, with_gradients


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(2, 2, 4, 5), (1, 3, 5, 4), (3, 1, 1, 1)])
@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # PyTorch's own, when forward mode is first used
def test_gradients_of_first_and_second_order_in_both_modes(method: Method, shape: tuple[int, ...]) -> None:
    x, weight, bias = random(*shape), random(shape[1], 1, 5, 7, seed=1), random(shape[1], seed=2)
    inputs = tuple(tensor.requires_grad_() for tensor in (x, weight, bias))
    function = lambda x, weight, bias: depthwise_conv2d(x, weight, bias, method)  # noqa: E731
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(function, inputs, check_fwd_over_rev=True)
    # One gradient at a time: the other input is a constant.
    for position in range(3):
        some = tuple(tensor.detach().requires_grad_(i == position) for i, tensor in enumerate(inputs))
        assert torch.autograd.gradcheck(function, some, check_forward_ad=True)
        assert torch.autograd.gradgradcheck(function, some)


def test_the_map_is_kept_only_for_the_weight_gradient() -> None:
    x = random(2, 3, 20, 20).requires_grad_()
    kept: list[torch.Size] = []

    def note(tensor: Tensor) -> Tensor:
        kept.append(tensor.shape)
        return tensor

    for needs_weight in (False, True):
        kept.clear()
        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            depthwise_conv2d(x, random(3, 1, 9, 9).requires_grad_(needs_weight), method="fft")
        assert (x.shape in kept) == needs_weight


@pytest.mark.parametrize("method", METHODS)
def test_vmap_over_maps_kernels_and_both(method: Method) -> None:
    xs, weights, bias = random(3, 2, 4, 12, 12), random(4, 3, 1, 13, 13), random(4, seed=3)

    def function(x: Tensor, weight: Tensor) -> Tensor:
        return depthwise_conv2d(x, weight, bias, method)

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        return function(x, weight).square().sum()

    def slow(function: Any, x_dim: int | None, weight_dim: int | None) -> list[Any]:
        return [
            function(xs[i] if x_dim is not None else xs[0], weights[:, i] if weight_dim is not None else weights[:, 0])
            for i in range(3)
        ]

    for x_dim, weight_dim in ((0, None), (None, 1), (0, 1)):
        inputs = (xs if x_dim is not None else xs[0], weights if weight_dim is not None else weights[:, 0])
        found = torch.vmap(function, (x_dim, weight_dim))(*inputs)
        torch.testing.assert_close(found, torch.stack(slow(function, x_dim, weight_dim)))
        with torch.no_grad():
            torch.testing.assert_close(torch.vmap(function, (x_dim, weight_dim))(*inputs), found)
        both = torch.func.grad(loss, (0, 1))
        per_sample = torch.vmap(both, (x_dim, weight_dim))(*inputs)
        for position in range(2):
            expected = torch.stack([gradients[position] for gradients in slow(both, x_dim, weight_dim)])
            torch.testing.assert_close(per_sample[position], expected)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
@pytest.mark.parametrize("method", METHODS)
def test_forward_mode_of_torch_func_agrees_with_conv2d(method: Method) -> None:
    x, weight, bias = random(2, 2, 5, 4), random(2, 1, 7, 3), random(2, seed=3)

    def loss(convolution: Any) -> Any:
        return lambda x, weight: convolution(x, weight, bias).pow(3).sum()

    ours = loss(lambda x, weight, bias: depthwise_conv2d(x, weight, bias, method))
    found, expected = (torch.func.hessian(function, (0, 1))(x, weight) for function in (ours, loss(reference)))
    torch.testing.assert_close(found, expected)
    with torch.no_grad():
        inputs = (x, weight)
        found, expected = (torch.func.jvp(function, inputs, inputs)[1] for function in (ours, loss(reference)))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("shape", [(2, 1, 13, 7), (2, 1, 13, 4), (1, 1, 13, 7)])
def test_weight_gradient_of_one_channel_and_a_kernel_beyond_the_map(method: Method, shape: tuple[int, ...]) -> None:
    """Of kernels cropped to such maps, oneDNN's own weight gradient is wrong or ends the process."""
    for seed in range(10):
        x, grad = random(*shape, dtype=torch.float32, seed=seed), random(*shape, dtype=torch.float32, seed=seed + 100)
        weight = random(1, 1, 31, 31, dtype=torch.float32)
        found = with_gradients(lambda x, weight: depthwise_conv2d(x, weight, method=method), x, weight, grad)
        exact = with_gradients(reference, x.double(), weight.double(), grad.double())
        for tensor, expected in zip(found, exact, strict=True):
            assert relative_error(tensor, expected) < 1e-5
