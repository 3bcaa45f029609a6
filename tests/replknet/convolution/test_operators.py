"""What torch.compile, torch.export and opcheck see of the convolution."""

from typing import cast

import pytest
import torch
from torch import Tensor

from replknet import DepthwiseConv2d
from tests.replknet.convolution.reference import METHODS, random, reference


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic: bool) -> None:
    layer = DepthwiseConv2d(4, 31, bias=True).double()
    bias = cast("Tensor", layer.bias)
    compiled = torch.compile(layer, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (24, 40):
        x = random(2, 4, size, size).requires_grad_()
        out = compiled(x)
        torch.testing.assert_close(out, reference(x, layer.weight, bias))
        found = torch.autograd.grad(out.square().sum(), (x, layer.weight, bias))
        expected = torch.autograd.grad(reference(x, layer.weight, bias).square().sum(), (x, layer.weight, bias))
        torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_operators_keep_their_contract() -> None:
    for memory_format in (torch.contiguous_format, torch.channels_last):
        x = random(2, 4, 9, 9).contiguous(memory_format=memory_format).requires_grad_()
        weight = random(4, 1, 13, 13).requires_grad_()
        for method in METHODS:
            torch.library.opcheck(torch.ops.replknet.depthwise_conv2d.default, (x, weight, None, method))
            arguments = (x.detach(), x.detach(), weight.detach(), True, False, method)
            torch.library.opcheck(torch.ops.replknet.depthwise_conv2d_backward.default, arguments)


def test_exports_as_a_plain_convolution() -> None:
    layer = DepthwiseConv2d(4, 31).eval()
    example = torch.randn(2, 4, 40, 40)
    program = torch.export.export(layer, (example,), dynamic_shapes=({0: torch.export.Dim("batch"), 2: None, 3: None},))
    targets = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert targets == ["aten.conv2d.default"]
    torch.testing.assert_close(program.module()(example), layer(example), rtol=1e-4, atol=1e-4)
