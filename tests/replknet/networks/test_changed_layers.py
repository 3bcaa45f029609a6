"""Merging networks with hooked, pruned, parametrized, quantised or replaced layers: exact, or refused in a line."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

import replknet
from tests.networks import randomize_norms, tiny_model

IMAGES = torch.randn(2, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
BLOCK = "stages.1.blocks.0"
FFN = "stages.1.blocks.1"


def answer(model: nn.Module) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(IMAGES)
    return out


def relative_error(actual: Tensor, expected: Tensor) -> float:
    return ((actual - expected).abs().max() / expected.abs().max()).item()


def put(model: nn.Module, name: str, layer: nn.Module) -> None:
    parent, _, own = name.rpartition(".")
    setattr(model.get_submodule(parent), own, layer.double().eval())


def larger(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
    return output * 1.5


def shifted(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
    return (inputs[0] + 0.25,)


def override(layer: nn.Module) -> None:
    forward = layer.forward
    layer.forward = lambda x: 2 * forward(x)


HOOKS: dict[str, Callable[[nn.Module], object]] = {
    "forward hook": lambda layer: layer.register_forward_hook(larger),
    "pre-hook": lambda layer: layer.register_forward_pre_hook(shifted),
    "backward hook": lambda layer: layer.register_full_backward_hook(lambda *_: None),
    "own forward": override,
}
VANISHING = [
    f"{BLOCK}.large_kernel.{name}" for name in ("lkb_origin", "lkb_origin.conv", "small_conv.bn", "small_conv")
]
FOLDED = [
    *("stem.0.conv", "stem.3.bn", "transitions.0.1.conv", "transitions.2.0.bn", "norm", "head"),
    *(f"{BLOCK}.{name}" for name in ("prelkb_bn", "pw1", "pw1.conv", "pw2.bn", "pw2.conv")),
    *(f"{FFN}.{name}" for name in ("preffn_bn", "pw1", "pw1.bn", "pw2.conv")),
]
STAYING = [
    *("stem.0", "stem.1.nonlinear", "transitions.0", "transitions.0.1", "stages.1", BLOCK, FFN, ""),
    *(f"{BLOCK}.{name}" for name in ("large_kernel", "lk_nonlinear", "pw2", "drop_path", "pw1.nonlinear")),
    *(f"{FFN}.{name}" for name in ("pw2", "pw1.nonlinear")),
]


@pytest.mark.parametrize(
    ("name", "level", "hook"),
    [
        *((name, "kernels", "forward hook") for name in VANISHING),
        *((name, "full", "forward hook") for name in VANISHING + FOLDED),
        *(("stem.0.bn", "full", hook) for hook in HOOKS),
    ],
)
def test_hooks_that_would_be_lost_or_see_other_values_are_refused(name: str, level: Any, hook: str) -> None:
    model = tiny_model()
    HOOKS[hook](model.get_submodule(name))
    structure, state = repr(model), {key: value.clone() for key, value in model.state_dict().items()}
    for inplace in (False, True):
        with pytest.raises(ValueError, match="has hooks or a forward pass of its own, and would vanish") as caught:
            replknet.reparameterize(model, level=level, inplace=inplace)
        assert "\n" not in str(caught.value)
    assert repr(model) == structure
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("name", "level"), [*((name, "full") for name in STAYING), *((name, "kernels") for name in STAYING + FOLDED)]
)
def test_hooks_on_layers_that_stay_are_kept(name: str, level: Any) -> None:
    """They change what passes through them, before and after."""
    model = tiny_model()
    before = answer(model)
    model.get_submodule(name).register_forward_hook(larger)
    model.get_submodule(name).register_forward_pre_hook(shifted)
    expected = answer(model)
    assert relative_error(before, expected) > 1e-6
    fast = replknet.reparameterize(model, level=level)
    assert relative_error(answer(fast), expected) < 1e-10
    assert "lkb_reparam" in "".join(fast.state_dict())


@pytest.mark.parametrize("name", ["stem.0.conv", f"{BLOCK}.large_kernel.lkb_reparam", f"{BLOCK}.pw1", "norm", "head"])
def test_where_nothing_is_left_to_merge_hooks_are_no_matter(name: str) -> None:
    fast = replknet.reparameterize(tiny_model())
    fast.get_submodule(name).register_forward_hook(larger)
    assert torch.equal(answer(replknet.reparameterize(fast)), answer(fast))


def test_a_batch_norm_that_does_more_stays() -> None:
    """timm's has an activation in it, and is a BatchNorm2d to `isinstance`."""
    model = tiny_model()
    for name, channels in (("stem.0.bn", 8), (f"{BLOCK}.prelkb_bn", 16), ("norm", 32)):
        put(model, name, randomize_norms(BatchNormAct2d(channels, act_layer=nn.SiLU), seed=3))
    expected = answer(model)
    fast = replknet.reparameterize(model)
    assert relative_error(answer(fast), expected) < 1e-10
    assert sum(isinstance(module, BatchNormAct2d) for module in fast.modules()) == 3


class Doubled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize("name", ["head", "stem.1.bn", f"{BLOCK}.large_kernel.small_conv.bn"])
@pytest.mark.parametrize("kind", ["pruned", "parametrized"])
def test_a_bias_that_is_made_from_another_is_refused(name: str, kind: str) -> None:
    model = tiny_model()
    layer = model.get_submodule(name)
    if kind == "pruned":
        prune.random_unstructured(layer, "bias", amount=0.5)  # type: ignore[no-untyped-call]
    else:
        parametrize.register_parametrization(layer, "bias", Doubled())
    with pytest.raises(ValueError, match=r"the weight or bias of a .* is parametrized or pruned; make it a plain"):
        replknet.reparameterize(model)


MADE: dict[str, Callable[[nn.Module], object]] = {
    "pruned": lambda layer: prune.l1_unstructured(layer, "weight", amount=0.5),  # type: ignore[no-untyped-call]
    "pruned twice": lambda layer: [
        prune.ln_structured(layer, "weight", amount=0.3, n=2, dim=0),  # type: ignore[no-untyped-call]
        prune.random_unstructured(layer, "weight", amount=0.3),  # type: ignore[no-untyped-call]
    ],
    "weight norm by hooks": nn.utils.weight_norm,
    "spectral norm by hooks": nn.utils.spectral_norm,
    "weight norm": parametrizations.weight_norm,
    "orthogonal": parametrizations.orthogonal,
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*spectral_norm:FutureWarning")
@pytest.mark.parametrize("kind", MADE)
def test_kernels_are_merged_beside_layers_that_are_made_from_others(kind: str) -> None:
    """Their tensors are no leaves, which `copy.deepcopy` refuses; the copy is one of its own, and learns."""
    model = tiny_model()
    for name in (f"{BLOCK}.pw1.conv", f"{FFN}.pw2.conv", "head"):
        MADE[kind](model.get_submodule(name))
    expected = answer(model)
    assert torch.equal(answer(model), expected)  # a power iteration only in training
    state = {key: value.clone() for key, value in model.state_dict().items()}
    fast = replknet.reparameterize(model, level="kernels")
    assert relative_error(answer(fast), expected) < 1e-10
    head = fast.get_submodule("head")
    learnt = dict(head.named_parameters())
    torch.autograd.backward(fast(IMAGES).square().sum())
    assert all(value.grad is not None for value in learnt.values())
    with torch.no_grad():
        for value in learnt.values():
            value.mul_(3)
    assert relative_error(answer(fast), expected) > 1e-3
    assert torch.equal(answer(model), expected)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_quantised_and_lazy_layers_stay_beside_their_norms() -> None:
    model = tiny_model().float()
    lazy = nn.LazyConv2d(32, 1, bias=False)
    twin = copy.deepcopy(model)
    model.get_submodule(f"{BLOCK}.pw2").conv = lazy
    fast = replknet.reparameterize(model)
    assert isinstance(fast.get_submodule(f"{BLOCK}.pw2.bn"), nn.BatchNorm2d)
    assert isinstance(fast.get_submodule(f"{BLOCK}.pw2.conv"), nn.LazyConv2d)
    config: Any = torch.ao.quantization.get_default_qat_qconfig()  # type: ignore[no-untyped-call]
    rounded = torch.ao.nn.qat.Conv2d(16, 16, 1, bias=False, qconfig=config)
    twin.get_submodule(f"{BLOCK}.pw2").conv = rounded.eval()
    fast = replknet.reparameterize(twin)
    assert isinstance(fast.get_submodule(f"{BLOCK}.pw2.bn"), nn.BatchNorm2d)
    with torch.no_grad():
        found, expected = fast(IMAGES.float()), twin(IMAGES.float())
    assert relative_error(found, expected) < 1e-3
