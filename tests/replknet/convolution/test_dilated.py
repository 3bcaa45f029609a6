"""Dilated depthwise convolutions against PyTorch's own, with gradients of both orders."""

import pytest
import torch
from torch.nn import functional as F

from replknet.convolution.dilated import DilatedConv2d

CASES = [(3, 2, (9, 9)), (3, 5, (7, 7)), (3, 3, (14, 11)), (7, 2, (10, 13)), (9, 2, (5, 6)), (3, 4, (1, 3))]


@pytest.mark.parametrize(("kernel", "dilation", "size"), CASES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_and_gradients(
    kernel: int, dilation: int, size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    torch.manual_seed(0)
    layer = DilatedConv2d(3, kernel, dilation).double()
    x = torch.randn(2, 3, *size, dtype=torch.double).contiguous(memory_format=memory_format).requires_grad_()
    padding = dilation * (kernel - 1) // 2
    ours, theirs = layer(x), F.conv2d(x, layer.weight, None, 1, padding, dilation, 3)
    assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)
    asked = (x, layer.weight)
    signal = torch.randn_like(theirs)
    found, wanted = (torch.autograd.grad(out, asked, signal, create_graph=True) for out in (ours, theirs))
    for own, other in zip(found, wanted, strict=True):
        assert torch.allclose(own, other, rtol=1e-12, atol=1e-12)
    again, known = (torch.autograd.grad([g.sin().sum() for g in first], asked) for first in (found, wanted))
    for own, other in zip(again, known, strict=True):
        assert torch.allclose(own, other, rtol=1e-10, atol=1e-10)


def test_one_tap_by_hand() -> None:
    layer = DilatedConv2d(1, 3, 4).double()
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, 0, 2, 0] = 2  # four rows down, four columns left
    x = torch.zeros(1, 1, 9, 9, dtype=torch.double, requires_grad=True)
    with torch.no_grad():
        x[0, 0, 8, 0] = 3
    out = layer(x)
    assert float(out[0, 0, 4, 4].detach()) == 6
    assert int((out != 0).sum()) == 1
    (gradient,) = torch.autograd.grad(out[0, 0, 4, 4], layer.weight)
    assert gradient[0, 0].tolist() == [[0, 0, 0], [0, 0, 0], [3, 0, 0]]


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*TorchScript:DeprecationWarning")
def test_transforms_of_functions_go_through() -> None:
    layer = DilatedConv2d(2, 3, 2).double()
    x, tangent = torch.randn(2, 1, 2, 8, 8, dtype=torch.double)
    out, derivative = torch.func.jvp(layer, (x,), (tangent,), has_aux=False)[:2]
    assert torch.allclose(derivative, layer(tangent))
    assert torch.allclose(torch.func.vmap(layer)(torch.stack([x, tangent])), torch.stack([out, layer(tangent)]))
