"""1x1 convolutions as matrix products: conv2d in every layout, with all its derivatives."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from replknet.convolution.pointwise import PointwiseConv2d, in_parts, multiply, pointwise_conv2d, to_maps, to_rows
from tests.replknet.convolution.reference import random

BOTH = (torch.contiguous_format, torch.channels_last)


@pytest.mark.parametrize("memory_format", BOTH)
@pytest.mark.parametrize("shape", [(2, 5, 4, 3), (1, 3, 1, 1), (3, 1, 5, 5), (0, 4, 3, 3)])
@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_conv2d_with_its_derivatives(
    memory_format: torch.memory_format, shape: tuple[int, ...], with_bias: bool
) -> None:
    x = random(*shape).contiguous(memory_format=memory_format).requires_grad_()
    weight, bias = random(6, shape[1], 1, 1, seed=1).requires_grad_(), random(6, seed=2).requires_grad_()
    inputs = (x, weight, bias) if with_bias else (x, weight)
    found, expected = pointwise_conv2d(*inputs), F.conv2d(*inputs)
    torch.testing.assert_close(found, expected)
    if x.numel():
        assert found.is_contiguous(memory_format=memory_format) or shape[1] == 1  # maps of one channel are both
        gradients = [torch.autograd.grad(out.pow(3).sum(), inputs, create_graph=True) for out in (found, expected)]
        torch.testing.assert_close(*gradients)
        second = [torch.autograd.grad(of[0].pow(2).sum() + of[1].pow(2).sum(), inputs[:2]) for of in gradients]
        torch.testing.assert_close(*second)


def test_maps_over_weights_and_images() -> None:
    xs, weights = random(3, 2, 4, 5, 5), random(3, 6, 4, 1, 1, seed=1)
    found = torch.vmap(pointwise_conv2d)(xs, weights)
    torch.testing.assert_close(found, torch.stack([F.conv2d(x, w) for x, w in zip(xs, weights, strict=True)]))


@pytest.mark.parametrize("memory_format", BOTH)
def test_the_product_of_the_fast_path(memory_format: torch.memory_format) -> None:
    layer = PointwiseConv2d(5, 7)
    x = torch.randn(2, 5, 4, 3).contiguous(memory_format=memory_format)
    with torch.no_grad():
        expected: Tensor = layer.double()(x.double())
        layer.float()
        for name, function in (("none", lambda out: out), ("gelu", F.gelu)):
            found = to_maps(multiply(to_rows(x), layer, name), like=x)  # type: ignore[arg-type]
            torch.testing.assert_close(found.double(), function(expected), rtol=1e-5, atol=1e-5)


def test_parts_together_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("replknet.convolution.pointwise.PART_BYTES", 100)
    sizes: list[int] = []

    def compute(x: Tensor) -> Tensor:
        sizes.append(len(x))
        return 2 * x

    x = torch.randn(7, 3, 2, 2).contiguous(memory_format=torch.channels_last)
    for item_bytes, expected in ((10, [7]), (40, [2, 2, 2, 1]), (1000, [1] * 7)):
        sizes.clear()
        found = in_parts(compute, x, item_bytes)
        assert sizes == expected
        assert torch.equal(found, 2 * x)
        assert found.is_contiguous(memory_format=torch.channels_last)


def test_its_state_dict_is_that_of_conv2d() -> None:
    ours, theirs = PointwiseConv2d(4, 6), torch.nn.Conv2d(4, 6, 1)
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 4, 3, 3)
    torch.testing.assert_close(ours(x), theirs(x))
