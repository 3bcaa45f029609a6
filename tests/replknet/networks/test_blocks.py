"""Blocks compute the same on every path, take the fast one only where nothing is lost, and stay ordinary modules."""

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils.flop_counter import FlopCounterMode

from replknet import RepLKNet, reparameterize
from replknet.convolution.pointwise import multiply
from replknet.networks import blocks
from replknet.networks.blocks import ConvFFN, DropPath, RepLKBlock
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


@pytest.fixture
def frozen(model: RepLKNet) -> RepLKNet:
    """As `replknet erf` uses it: no weight gradients, but those of the image."""
    return model.requires_grad_(False)


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


def test_drop_path_drops_whole_images_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    layer = DropPath(0.25)
    out = layer(torch.ones(4000, 2, 3, 3))
    per_image = out.flatten(1)
    assert per_image.unique().tolist() == pytest.approx([0, 1 / 0.75])
    assert torch.equal(per_image.min(1).values, per_image.max(1).values)
    assert out.mean().item() == pytest.approx(1, abs=0.04)
    assert torch.equal(layer.eval()(torch.ones(3, 2, 1, 1)), torch.ones(3, 2, 1, 1))


def test_block_without_shortcut_lacks_its_input() -> None:
    torch.manual_seed(0)
    block = RepLKBlock(8, 8, 5, 3, drop_path=0.3)
    without = RepLKBlock(8, 8, 5, 3, drop_path=0.3, shortcut=False)
    without.load_state_dict(block.state_dict())
    x = torch.randn(2, 8, 12, 12)
    with torch.no_grad():
        assert torch.allclose(block.eval()(x), x + without.eval()(x), atol=1e-6)
    model = tiny_model(shortcut=False)
    images = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert torch.allclose(reparameterize(model)(images), model(images), rtol=1e-9)
        assert not torch.allclose(tiny_model()(images), model(images), rtol=1e-3)


# The fast path --------------------------------------------------------------------------------------------------------


@contextmanager
def counting(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The number of matrix products of the fast path."""
    count = [0]
    original = multiply

    def counted(*arguments: Any) -> Tensor:
        count[0] += 1
        return original(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(blocks, "multiply", counted)
        yield count


PRODUCTS = 2 * 2 * 5
"""Of the tiny network: two in each of its blocks."""


@pytest.mark.filterwarnings("ignore:TF32", "ignore:.*torch.jit:FutureWarning", "ignore::torch.jit.TracerWarning")
def test_a_folded_network_takes_the_fast_path_in_inference_only(
    model: RepLKNet, images: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    def products(call: Callable[[], Any], *, without_gradients: bool = True) -> int:
        with counting(monkeypatch) as count, torch.set_grad_enabled(not without_gradients):
            call()
        return count[0]

    assert products(lambda: model(images)) == PRODUCTS
    assert products(lambda: model(images), without_gradients=False) == 0
    with torch.inference_mode():
        assert products(lambda: model(images)) == PRODUCTS
    with FlopCounterMode(display=False):
        assert products(lambda: model(images)) == 0
    with torch.autocast("cpu"):
        assert products(lambda: model(images)) == 0
    with torch.backends.mkldnn.flags(enabled=False):
        assert products(lambda: model(images)) == 0
    assert products(lambda: copy.deepcopy(model).double()(images.double())) == 0
    assert products(lambda: torch.vmap(lambda image: model(image[None]))(images)) == 0
    assert products(lambda: torch.jit.trace(model, images, check_trace=False)) == 0  # type: ignore[no-untyped-call]
    assert products(lambda: model.train()(images)) == 0
    assert products(lambda: model.eval()(images)) == PRODUCTS
    with torch.nn.modules.module.register_module_forward_hook(lambda *_: None):
        assert products(lambda: model(images)) == 0
    training_form = tiny_model().float()
    assert products(lambda: training_form(images)) == 0


def test_a_batch_in_parts_gives_the_same(model: RepLKNet, images: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Image by image in the stem, 64 pixels at a time in feed-forward blocks; a hooked stem sees the whole batch."""
    with torch.no_grad():
        expected = model(images)
        monkeypatch.setattr("replknet.convolution.pointwise.PART_BYTES", 4 * 4 * 8 * 64)
        with counting(monkeypatch) as count:
            torch.testing.assert_close(model(images), expected, rtol=1e-5, atol=1e-5)
        assert count[0] > PRODUCTS
        assert len(outputs_of_layers(model, images)["stem.0.conv"][0]) == len(images)


def first_blocks(model: RepLKNet) -> tuple[RepLKBlock, ConvFFN]:
    large, feed_forward = (model.stages[0].get_submodule(f"blocks.{index}") for index in range(2))
    assert isinstance(large, RepLKBlock) and isinstance(feed_forward, ConvFFN)
    return large, feed_forward


class Adapter(nn.Module):
    """A low-rank addition to a layer, as LoRA makes it."""

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Conv2d(layer.in_channels, 2, 1, bias=False)
        self.up = nn.Conv2d(2, layer.out_channels, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x) + self.up(self.down(x))
        return out


SWAPS: dict[str, Callable[[RepLKBlock, ConvFFN], None]] = {
    "identity for the large kernel": lambda block, _: setattr(block, "large_kernel", nn.Identity()),
    "identity for the merged kernel": lambda block, _: setattr(block.large_kernel, "lkb_reparam", nn.Identity()),
    "average pooling for the merged kernel": lambda block, _: setattr(
        block.large_kernel, "lkb_reparam", nn.AvgPool2d(3, 1, 1)
    ),
    "plain convolution": lambda block, _: setattr(block.pw1, "conv", plain(block.pw1.conv)),
    "adapter in a block": lambda block, _: setattr(block.pw2, "conv", Adapter(block.pw2.conv)),
    "adapter in a feed-forward block": lambda _, ffn: setattr(ffn.pw1, "conv", Adapter(ffn.pw1.conv)),
    "another activation": lambda _, ffn: setattr(ffn.pw1, "nonlinear", nn.SiLU()),
    "approximate activation": lambda _, ffn: setattr(ffn.pw1, "nonlinear", nn.GELU(approximate="tanh")),
    "a whole layer": lambda _, ffn: setattr(ffn, "pw1", nn.Sequential(ffn.pw1, nn.Dropout(0.5)).eval()),
    "a norm again": lambda block, _: setattr(block, "prelkb_bn", nn.BatchNorm2d(8).eval()),
    "forward of a block": lambda block, _: setattr(block, "forward", lambda x: 2 * x),
    "forward of a layer": lambda block, _: setattr(block.pw2.conv, "forward", lambda x: 2 * x),
    "forward of the merged kernel": lambda block, _: setattr(
        block.large_kernel.lkb_reparam, "forward", lambda x: 3 * x
    ),
    "forward of an activation": lambda _, ffn: setattr(ffn.pw1.nonlinear, "forward", torch.tanh),
    "hook that changes an output": lambda block, _: setattr(
        block, "kept", block.lk_nonlinear.register_forward_hook(lambda _, __, out: 2 * out)
    ),
    "hook that changes an input": lambda _, ffn: setattr(
        ffn, "kept", ffn.pw2.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
    ),
}


def plain(layer: nn.Conv2d) -> nn.Conv2d:
    new = nn.Conv2d(layer.in_channels, layer.out_channels, 1, bias=layer.bias is not None)
    new.load_state_dict(layer.state_dict())
    return new.eval()


def by_hand(block: nn.Module, x: Tensor) -> Tensor:
    """A block's output with each of its modules called as a module."""
    out: Tensor
    if "forward" in block.__dict__:
        out = block(x)
    elif isinstance(block, RepLKBlock):
        out = x + block.pw2(block.lk_nonlinear(block.large_kernel(block.pw1(block.prelkb_bn(x)))))
    else:
        assert isinstance(block, ConvFFN)
        out = x + block.pw2(block.pw1(block.preffn_bn(x)))
    return out


@pytest.mark.parametrize(
    ("swap", "folded"), [(swap, folded) for swap in SWAPS for folded in (False, True) if folded or "merged" not in swap]
)
def test_any_layer_may_be_replaced(model: RepLKNet, swap: str, folded: bool) -> None:
    if not folded:
        torch.manual_seed(0)
        model = tiny_model().float()
    large, feed_forward = first_blocks(model)
    x = torch.randn(2, 8, 16, 16).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        before = [block(x) for block in (large, feed_forward)]
        SWAPS[swap](large, feed_forward)
        changed = False
        for block, former in zip((large, feed_forward), before, strict=True):
            found = block(x)
            exact = by_hand(copy.deepcopy(block).double(), x.double())
            torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
            changed = changed or not torch.allclose(found, former, rtol=1e-4, atol=1e-4)
        same = ("plain convolution", "a whole layer", *(["a norm again"] if folded else []))
        assert changed == (swap not in same)
        if "forward of" not in swap and "hook" not in swap:
            again = reparameterize(nn.Sequential(large, feed_forward))
            torch.testing.assert_close(again(x), feed_forward(large(x)), rtol=1e-4, atol=1e-4)


def test_not_a_number_is_not_turned_into_zero(model: RepLKNet, images: Tensor) -> None:
    images[0, 0, 10, 10] = float("nan")
    with torch.no_grad():
        logits = model(images)
        assert torch.isnan(logits[0]).all()
        assert torch.isfinite(logits[1]).all()
        for block, kinds in zip(first_blocks(model), (RepLKBlock, ConvFFN), strict=True):
            assert isinstance(block, kinds)
            x = torch.randn(1, 8, 5, 5).contiguous(memory_format=torch.channels_last)
            for value in (float("nan"), float("inf"), -float("inf"), 1e30):
                x[0, 3, 2, 2] = value
                found, exact = block(x), by_hand(block, x)
                assert torch.equal(torch.isnan(found), torch.isnan(exact)), value
        for parameter in model.parameters():
            parameter.fill_(float("nan"))
        assert torch.isnan(model(torch.randn(2, 3, 64, 64))).all()


@pytest.mark.parametrize("form", ["training", "kernels", "full"])
def test_symbolic_traces_compute_the_same(images: Tensor, form: Any) -> None:
    torch.manual_seed(0)
    network = tiny_model(drop_path_rate=0.2).float()
    if form != "training":
        network = reparameterize(network, level=form)
    traced = torch.fx.symbolic_trace(network)
    targets = {str(node.target) for node in traced.graph.nodes}
    assert any("depthwise_conv2d" in target for target in targets)
    with torch.no_grad():
        torch.testing.assert_close(traced(images), network(images), rtol=1e-4, atol=1e-4)
    for other in (32, 96):  # nothing of the size is in it
        assert traced(torch.randn(1, 3, other, other)).shape == (1, 10)
    if form == "training":
        trained = torch.fx.symbolic_trace(network.train())
        trained(images).sum().backward()
        assert all(parameter.grad is not None for parameter in trained.parameters())


def test_torchvision_extracts_features_by_name(model: RepLKNet, images: Tensor) -> None:
    from torchvision.models.feature_extraction import create_feature_extractor

    extractor = create_feature_extractor(model, {"stages.1.blocks.0.pw1.conv": "layer", "head": "logits"})
    with torch.no_grad():
        found = extractor(images)
        seen = outputs_of_layers(model, images)
    torch.testing.assert_close(found["layer"], seen["stages.1.blocks.0.pw1.conv"][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found["logits"], seen["head"][0], rtol=1e-4, atol=1e-4)
