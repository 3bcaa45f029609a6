"""The operators that stand in for convolutions in inference change no result, and only stand in where they may."""

import copy
import pickle
from pathlib import Path

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from replknet import RepLKNet, reparameterize
from replknet.inference import is_plain_inference
from replknet.pointwise import PointwiseConv2d
from tests.networks import randomize_norms, tiny_model


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> RepLKNet:
    torch.manual_seed(0)
    model = tiny_model()
    randomize_norms(model)
    return reparameterize(model.float().eval())


def test_inference_equals_float64(model: RepLKNet, images: Tensor) -> None:
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(images.double())
        for memory_format in (torch.contiguous_format, torch.channels_last):
            found = model(images.contiguous(memory_format=memory_format))
            torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4 * float(exact.abs().max()))


@pytest.mark.filterwarnings("ignore")  # of the exporter's own
def test_onnx_export_has_plain_convolutions_only(model: RepLKNet, images: Tensor, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    torch.onnx.export(model, (images,), path, dynamo=True, verbose=False)
    nodes = onnx.load(path).graph.node
    assert {node.domain for node in nodes} == {""}
    convolutions = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert sum(node.op_type == "Conv" for node in nodes) == convolutions
    assert not {"DFT", "Pad", "If", "Loop"} & {node.op_type for node in nodes}
    with torch.no_grad():
        (found,) = ReferenceEvaluator(str(path)).run(None, {onnx.load(path).graph.input[0].name: images.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), model(images), rtol=1e-4, atol=1e-4)


def test_packed_weights_follow_the_parameters(images: Tensor) -> None:
    layer = PointwiseConv2d(3, 5).eval()

    def check() -> None:
        with torch.no_grad():
            found = layer.fused(images, nn.ReLU())
            torch.testing.assert_close(found, torch.conv2d(images, layer.weight, layer.bias).relu())

    check()
    packed = layer._packed._entry
    check()
    assert packed is not None and layer._packed._entry is packed
    with torch.no_grad():
        layer.weight.mul_(2)
    check()
    layer.load_state_dict(PointwiseConv2d(3, 5).state_dict())
    check()
    layer.weight = nn.Parameter(torch.randn(5, 3, 1, 1))
    check()
    layer.weight.data = torch.randn(5, 3, 1, 1)
    check()
    for twin in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert twin._packed._entry is None


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.GELU()])
def test_fused_activation_and_residual(activation: nn.Module, images: Tensor) -> None:
    layer = PointwiseConv2d(3, 3).eval()
    with torch.no_grad():
        expected = activation(torch.conv2d(images, layer.weight, layer.bias))
        torch.testing.assert_close(layer.fused(images, activation), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.fused(images, activation, images), expected + images, rtol=1e-5, atol=1e-5)


def test_stands_in_only_where_nothing_is_recorded(images: Tensor) -> None:
    layer = PointwiseConv2d(3, 5).eval()
    assert not is_plain_inference(layer, images)
    with torch.no_grad():
        assert is_plain_inference(layer, images)
        assert not layer.fuses(images, nn.GELU(approximate="tanh"))
        assert not layer.fuses(images, nn.Sigmoid())
        assert not is_plain_inference(layer, images.double())
        assert not is_plain_inference(layer.train(), images)
        layer.eval()
        with FlopCounterMode(display=False):
            assert not is_plain_inference(layer, images)
        with torch.autocast("cpu"):
            assert not is_plain_inference(layer, images)


def test_network_compiles_in_inference(model: RepLKNet, images: Tensor) -> None:
    with torch.no_grad():
        compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-4, atol=1e-4)


def test_network_maps_over_images_and_weights(model: RepLKNet, images: Tensor) -> None:
    with torch.no_grad():
        expected = model(images)
        torch.testing.assert_close(
            torch.vmap(lambda image: model(image[None])[0])(images), expected, rtol=1e-4, atol=1e-4
        )
        stacked = {name: torch.stack([value, 2 * value]) for name, value in model.state_dict().items()}
        found = torch.vmap(lambda weights: torch.func.functional_call(model, weights, (images,)))(stacked)
        doubled = {name: 2 * value for name, value in model.state_dict().items()}
        torch.testing.assert_close(found[0], expected, rtol=1e-4, atol=1e-4)
        twice = torch.func.functional_call(model, doubled, (images,))
        torch.testing.assert_close(found[1], twice, rtol=1e-4, atol=1e-4 * float(twice.abs().max()))
