"""The operators that stand in for convolutions in inference change no result, and only stand in where they may."""

import copy
import pickle
from pathlib import Path

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

import replknet.pointwise as pointwise_module
from replknet import DepthwiseConv2d, RepLKNet, reparameterize
from replknet.inference import is_plain_inference
from replknet.pointwise import PointwiseConv2d, pointwise
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


def test_images_go_through_the_stem_one_by_one(
    model: RepLKNet, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    with torch.no_grad():
        expected = model(images)
        monkeypatch.setattr("replknet.model._STEM_BYTES", 1)
        seen: list[int] = []
        original = RepLKNet._stem_of

        def noted(self: RepLKNet, x: Tensor) -> Tensor:
            seen.append(len(x))
            return original(self, x)

        monkeypatch.setattr(RepLKNet, "_stem_of", noted)
        torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)
        assert seen == [1, 1]
        assert len(outputs_of_layers(model, images)["stem.0.conv"][0]) == len(images)


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
            found = pointwise(images, [(layer, nn.ReLU())])
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


@pytest.mark.parametrize("kernel", [11, 13, 27])
def test_depthwise_layer_packs_its_weights_and_computes_the_relu(kernel: int) -> None:
    layer = DepthwiseConv2d(64, kernel, bias=True).eval()
    x = torch.randn(2, 64, 14, 14).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = copy.deepcopy(layer).double()(x.double())
        for found, exact in ((layer(x), expected), (layer.with_relu(x), expected.relu())):
            torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
            assert found.is_contiguous(memory_format=torch.channels_last)
    assert layer._packed._entry is not None


@pytest.mark.parametrize("activation", [nn.Identity(), nn.ReLU(), nn.GELU()])
def test_fused_activation_and_residual(activation: nn.Module, images: Tensor) -> None:
    layer = PointwiseConv2d(3, 3).eval()
    with torch.no_grad():
        expected = activation(torch.conv2d(images, layer.weight, layer.bias))
        layers = [(layer, activation)]
        torch.testing.assert_close(pointwise(images, layers), expected, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(pointwise(images, layers, images), expected + images, rtol=1e-5, atol=1e-5)


def test_stands_in_only_where_nothing_is_recorded(images: Tensor) -> None:
    layer = PointwiseConv2d(3, 5).eval()
    assert not is_plain_inference(layer, images)
    with torch.no_grad():
        assert is_plain_inference(layer, images)
        assert layer.fuses(nn.GELU())
        assert not layer.fuses(nn.GELU(approximate="tanh"))
        assert not layer.fuses(nn.Sigmoid())
        assert not is_plain_inference(layer, images.double())
        assert not is_plain_inference(layer.train(), images)
        layer.eval()
        with FlopCounterMode(display=False):
            assert not is_plain_inference(layer, images)
        with torch.autocast("cpu"):
            assert not is_plain_inference(layer, images)


@pytest.fixture
def frozen(model: RepLKNet) -> RepLKNet:
    """As `replknet erf` uses it: no weight gradients, but those of the image."""
    return model.requires_grad_(False)


def image_gradient(model: RepLKNet, images: Tensor) -> Tensor:
    images = images.detach().requires_grad_()
    return torch.autograd.grad(model.forward_features(images)[:, :, 1, 1].relu().sum(), images)[0]


@pytest.mark.parametrize("part_bytes", [2**30, 4 * 64 * 40])
def test_image_gradient_of_frozen_weights(
    frozen: RepLKNet, images: Tensor, monkeypatch: pytest.MonkeyPatch, part_bytes: int
) -> None:
    """Against float64, which takes the ordinary layers; in one part and in many."""
    monkeypatch.setattr(pointwise_module, "_PART_BYTES", part_bytes)
    calls = 0
    original = PointwiseConv2d.multiply_transposed

    def counted(self: PointwiseConv2d, rows: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return original(self, rows)

    monkeypatch.setattr(PointwiseConv2d, "multiply_transposed", counted)
    exact = image_gradient(copy.deepcopy(frozen).double(), images.double())
    assert calls == 0
    found = image_gradient(frozen, images)
    assert calls > 0
    assert float((found - exact).abs().max() / exact.abs().max()) < 1e-4


def test_second_derivative_of_frozen_layers() -> None:
    """Of two layers with a residual: f'' by the fused layers and by plain ones."""
    torch.manual_seed(0)
    first, second = (PointwiseConv2d(4, 4).eval().requires_grad_(False) for _ in range(2))
    x = torch.randn(2, 4, 3, 3)

    def fused(x: Tensor) -> Tensor:
        return pointwise(x, [(first, nn.GELU()), (second, nn.Identity())], x)

    def plain(x: Tensor) -> Tensor:
        hidden = nn.functional.gelu(torch.conv2d(x, first.weight, first.bias))
        return x + torch.conv2d(hidden, second.weight, second.bias)

    second_derivatives = []
    for function in (fused, plain):
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(function(x).square().sum(), x, create_graph=True)
        second_derivatives.append(torch.autograd.grad(gradient.square().sum(), x)[0])
    torch.testing.assert_close(*second_derivatives, rtol=1e-4, atol=1e-4)


def test_a_residual_of_its_own_gets_its_gradient() -> None:
    layer = PointwiseConv2d(3, 3).eval().requires_grad_(False)
    x, residual = (torch.randn(1, 3, 2, 2).requires_grad_() for _ in range(2))
    out = pointwise(x, [(layer, nn.ReLU())], residual)
    of_x, of_residual = torch.autograd.grad(out.sum(), (x, residual))
    assert torch.equal(of_residual, torch.ones(1, 3, 2, 2))
    positive = (torch.conv2d(x, layer.weight, layer.bias) > 0).float()
    torch.testing.assert_close(of_x, nn.functional.conv_transpose2d(positive, layer.weight))
    out = pointwise(x, [(layer, nn.ReLU())])
    out.mul_(2)  # as the result of any layer may be
    torch.testing.assert_close(torch.autograd.grad(out.sum(), x)[0], 2 * of_x)


def outputs_of_layers(model: RepLKNet, images: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """What every layer gave, by name, and a copy made at once."""
    seen: dict[str, tuple[Tensor, Tensor]] = {}
    handles = [
        module.register_forward_hook(lambda _, __, out, name=name: seen.update({name: (out, out.detach().clone())}))
        for name, module in model.named_modules()
        if not list(module.children())
    ]
    model(images)
    for handle in handles:
        handle.remove()
    return seen


def test_hooks_on_inner_layers_are_called(frozen: RepLKNet, images: Tensor) -> None:
    """As many as in float64, which takes the ordinary layers; what they were given is not changed afterwards."""
    expected = outputs_of_layers(copy.deepcopy(frozen).double(), images.double())
    for differentiated in (False, True):
        with torch.set_grad_enabled(differentiated):
            seen = outputs_of_layers(frozen, images.detach().requires_grad_(differentiated))
        assert list(seen) == list(expected)
        for name, (out, copied) in seen.items():
            assert torch.equal(out, copied), name
            scale = float(expected[name][1].abs().max())
            torch.testing.assert_close(out.double(), expected[name][1], rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")  # PyTorch's own rule for GELU is scripted
def test_forward_mode_takes_the_ordinary_layers(frozen: RepLKNet) -> None:
    block = frozen.stages[0].get_submodule("blocks.1")
    x = torch.randn(1, frozen.config.channels[0], 4, 4)
    direction = torch.randn_like(x)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, direction)  # type: ignore[no-untyped-call]
        tangent = forward_ad.unpack_dual(block(dual)).tangent  # type: ignore[no-untyped-call]
    step = 1e-3
    difference = (block(x + step * direction) - block(x - step * direction)) / (2 * step)
    torch.testing.assert_close(tangent, difference, rtol=1e-2, atol=1e-2)


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
