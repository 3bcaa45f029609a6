"""Outputs are always those of the present weights, however they were changed, in training form and folded.

Every network has answered once before the change; what it answers after it is compared with a new network, in float64,
that was given the same weights.
"""

import copy
import pickle
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from timm.utils import ModelEmaV2, ModelEmaV3
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, prune
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import replknet
from replknet import RepLKNet
from tests.networks import randomize_norms

FORMS = ("training", "folded")
SMALL: dict[str, Any] = {
    "layers": (1, 1, 1, 1),
    "channels": (8, 16, 16, 32),
    "kernel_sizes": (31, 13, 7, 3),
    "small_kernel": 3,
    "num_classes": 10,
}
"""Kernels that go by FFTs, by either arrangement of conv2d, and by conv2d as it is."""


def network(form: str) -> RepLKNet:
    torch.manual_seed(0)
    model = replknet.create_model("replknet_31b", **SMALL)
    assert isinstance(model, RepLKNet)
    randomize_norms(model)
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:  # statistics of their own inputs, so that every layer matters
        norm.momentum = 1.0
    with torch.no_grad():
        model.train()(images(8))
    for norm in norms:
        norm.momentum = 0.1
    return replknet.reparameterize(model.eval()) if form == "folded" else model.eval()


def images(number: int = 3) -> Tensor:
    return torch.randn(number, 3, 96, 96, generator=torch.Generator().manual_seed(1))


def expected(model: nn.Module, form: str) -> Tensor:
    """What a new network of the same weights answers."""
    fresh = network(form).double()
    fresh.load_state_dict({key: value.detach().clone().double() for key, value in model.state_dict().items()})
    with torch.no_grad():
        out: Tensor = fresh(images().double())
    return out


def answer(model: nn.Module) -> Tensor:
    with torch.no_grad():
        out: Tensor = model.eval()(images())
    return out.double()


def noise(tensor: Tensor) -> Tensor:
    return 0.5 * tensor.detach().abs().mean() * torch.randn_like(tensor)


def train(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """A training as most are written: batches, and a validation after each."""
    for _ in range(3):
        model.train()
        optimizer.zero_grad()
        torch.autograd.backward(F.cross_entropy(model(images()), torch.tensor([1, 5, 7])))
        optimizer.step()
        answer(model)


def by_optimizer(make: Callable[..., torch.optim.Optimizer], **options: Any) -> Callable[[RepLKNet], RepLKNet]:
    def change(model: RepLKNet) -> RepLKNet:
        train(model, make(model.parameters(), lr=0.05, **options))
        return model

    return change


def each(write: Callable[[nn.Parameter], object]) -> Callable[[RepLKNet], RepLKNet]:
    def change(model: RepLKNet) -> RepLKNet:
        with torch.no_grad():
            for parameter in model.parameters():
                write(parameter)
        return model

    return change


def replace_data(parameter: nn.Parameter) -> None:
    parameter.data = parameter.data + noise(parameter)


def swap_data(parameter: nn.Parameter) -> None:
    """Another tensor's memory, as `torch.utils.swap_tensors` and offloading leave it."""
    parameter.data, _ = (parameter.data + noise(parameter)).clone(), parameter.data


def averaged(model: RepLKNet, average: nn.Module, update: Callable[[nn.Module], object]) -> nn.Module:
    """An average that has answered, updated from a network that has changed."""
    answer(average)
    each(lambda parameter: parameter.add_(noise(parameter)))(model)
    update(model)
    inner = average.module
    assert isinstance(inner, nn.Module)
    return inner


def by_ema_v2(model: RepLKNet) -> nn.Module:
    average = ModelEmaV2(model, decay=0.5)
    return averaged(model, average, average.update)


def by_ema_v3(model: RepLKNet) -> nn.Module:
    average = ModelEmaV3(model, decay=0.5)
    return averaged(model, average, average.update)


def by_ema_through_data(model: RepLKNet) -> nn.Module:
    """As many training codes write it themselves."""
    average = copy.deepcopy(model)
    answer(average)
    each(lambda parameter: parameter.add_(noise(parameter)))(model)
    for own, new in zip(average.parameters(), model.parameters(), strict=True):
        own.data.mul_(0.5).add_(new.data, alpha=0.5)
    return average


def by_swa(model: RepLKNet) -> nn.Module:
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))  # type: ignore[no-untyped-call]
    average.update_parameters(model)
    return averaged(model, average, average.update_parameters)


def by_foreach(model: RepLKNet) -> RepLKNet:
    torch._foreach_mul_([parameter.data for parameter in model.parameters()], 1.3)
    return model


def changed_state(model: RepLKNet) -> dict[str, Tensor]:
    """Its state with other parameters, in memory of its own."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    return state | {key: value.detach() + noise(value) for key, value in model.named_parameters()}


def by_state_dict(model: RepLKNet) -> RepLKNet:
    model.load_state_dict(changed_state(model))
    return model


def by_assigning_state(model: RepLKNet) -> RepLKNet:
    model.load_state_dict(changed_state(model), assign=True)
    return model


def by_new_parameters(model: RepLKNet) -> RepLKNet:
    for module in model.modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(parameter.detach() + noise(parameter)))
    return model


def by_all_reduce(model: RepLKNet) -> RepLKNet:
    each(lambda parameter: parameter.data.add_(noise(parameter)))(model)
    for parameter in model.parameters():
        dist.all_reduce(parameter.data)
        dist.broadcast(parameter.data, 0)
    return model


def by_copy(model: RepLKNet) -> RepLKNet:
    twin = copy.deepcopy(model)
    each(lambda parameter: parameter.data.add_(noise(parameter)))(model)
    each(lambda parameter: parameter.data.add_(noise(parameter)))(twin)
    answer(model)
    return twin


def by_pickle(model: RepLKNet) -> RepLKNet:
    twin: RepLKNet = pickle.loads(pickle.dumps(model))
    each(lambda parameter: parameter.data.mul_(1.2))(twin)
    return twin


def by_statistics(model: RepLKNet) -> RepLKNet:
    """New running statistics, where there are any, and new biases."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            module.running_mean.data.add_(0.3)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.data.add_(0.2)
    return model


CHANGES: dict[str, Callable[[RepLKNet], nn.Module]] = {
    "AdamW, fused": by_optimizer(torch.optim.AdamW, fused=True),
    "Adam, fused": by_optimizer(torch.optim.Adam, fused=True),
    "SGD, fused": by_optimizer(torch.optim.SGD, fused=True, momentum=0.9),
    "Adagrad, fused": by_optimizer(torch.optim.Adagrad, fused=True),
    "AdamW, foreach": by_optimizer(torch.optim.AdamW, foreach=True),
    "SGD, one by one": by_optimizer(torch.optim.SGD, foreach=False),
    "data.copy_": each(lambda parameter: parameter.data.copy_(parameter.data + noise(parameter))),
    "data.mul_": each(lambda parameter: parameter.data.mul_(1.2)),
    "data[...] =": each(lambda parameter: parameter.data.__setitem__(..., parameter.data * 1.2)),
    "data.lerp_": each(lambda parameter: parameter.data.lerp_(noise(parameter), 0.5)),
    "data.normal_": each(lambda parameter: parameter.data.normal_(std=0.1)),
    "data.view(-1)[::3]": each(lambda parameter: parameter.data.view(-1)[::3].mul_(2)),
    "data =": each(replace_data),
    "data swapped": each(swap_data),
    "a numpy view": each(lambda parameter: parameter.detach().numpy().__imul__(1.2)),
    "one value of a numpy view": each(lambda parameter: parameter.detach().numpy().flat.__setitem__(0, 0.4)),
    "detach().add_": each(lambda parameter: parameter.detach().add_(noise(parameter))),
    "in place": each(lambda parameter: parameter.add_(noise(parameter))),
    "nn.init": each(lambda parameter: nn.init.normal_(parameter, std=0.1)),
    "_foreach_": by_foreach,
    "all_reduce": by_all_reduce,
    "ModelEmaV2": by_ema_v2,
    "ModelEmaV3": by_ema_v3,
    "average through data": by_ema_through_data,
    "swa_utils": by_swa,
    "load_state_dict": by_state_dict,
    "load_state_dict(assign=True)": by_assigning_state,
    "new parameters": by_new_parameters,
    "deepcopy": by_copy,
    "pickle": by_pickle,
    "buffers and biases": by_statistics,
}


@pytest.fixture(scope="module")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    store: Path = tmp_path_factory.mktemp("group") / "store"
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("group")
@pytest.mark.filterwarnings("ignore")  # of the averages' and gloo's own
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("change", CHANGES)
def test_after_a_change(change: str, form: str) -> None:
    model = network(form)
    before = answer(model)
    torch.manual_seed(2)
    changed = CHANGES[change](model)
    found, exact = answer(changed), expected(changed, form)
    scale = exact.abs().max()
    assert (found - exact).abs().max() < 1e-4 * scale
    assert (before - exact).abs().max() > 1e-3 * scale, "nothing was changed"


@pytest.mark.parametrize("form", FORMS)
def test_functional_calls_use_the_weights_they_are_given(form: str) -> None:
    model = network(form)
    before = answer(model)
    weights = {key: value.detach() + noise(value) for key, value in model.named_parameters()}
    with torch.no_grad():
        found = torch.func.functional_call(model, weights, (images(),)).double()
    torch.testing.assert_close(answer(model), before)
    each_name = dict(model.named_parameters())
    with torch.no_grad():
        for key, value in weights.items():
            each_name[key].copy_(value)
    exact = expected(model, form)
    assert (found - exact).abs().max() < 1e-4 * exact.abs().max()


@pytest.mark.parametrize("form", FORMS)
def test_threads_that_share_a_network_while_its_weights_change(form: str) -> None:
    """Every answer after the last change is that of the last weights, in all threads."""
    model = network(form)
    stop = threading.Event()
    failures: list[BaseException] = []

    def ask() -> None:
        try:
            while not stop.is_set():
                answer(model)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=ask) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(5):
        each(lambda parameter: parameter.data.mul_(1.05))(model)
    stop.set()
    for thread in threads:
        thread.join()
    assert not failures
    exact = expected(model, form)
    found: list[Tensor] = []
    late = [threading.Thread(target=lambda: found.append(answer(model))) for _ in range(3)]
    for thread in late:
        thread.start()
    for thread in late:
        thread.join()
    assert all((out - exact).abs().max() < 1e-4 * exact.abs().max() for out in found)


REPARAMETRIZATIONS: dict[str, tuple[Callable[[nn.Module], object], Callable[[nn.Module], object]]] = {
    "pruning": (
        lambda layer: prune.random_unstructured(layer, "weight", amount=0.5),  # type: ignore[no-untyped-call]
        lambda layer: prune.remove(layer, "weight"),  # type: ignore[no-untyped-call]
    ),
    "weight_norm": (parametrizations.weight_norm, lambda layer: parametrize.remove_parametrizations(layer, "weight")),
    "spectral_norm": (
        parametrizations.spectral_norm,
        lambda layer: parametrize.remove_parametrizations(layer, "weight"),
    ),
    "weight_norm by hooks": (nn.utils.weight_norm, nn.utils.remove_weight_norm),
    "spectral_norm by hooks": (
        lambda layer: nn.utils.spectral_norm(layer).eval(),
        nn.utils.remove_spectral_norm,
    ),
}
LAYERS = {
    "training": (
        "stages.0.blocks.0.pw1.conv",
        "stages.0.blocks.0.large_kernel.lkb_origin.conv",
        "stages.0.blocks.1.pw2.conv",
    ),
    "folded": (
        "stages.0.blocks.0.pw1.conv",
        "stages.0.blocks.0.large_kernel.lkb_reparam",
        "stages.0.blocks.1.pw2.conv",
    ),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning", "ignore:.*spectral_norm:FutureWarning")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("kind", REPARAMETRIZATIONS)
def test_weights_that_are_made_from_others(kind: str, form: str) -> None:
    """The network answers by them; re-parameterising refuses in one line and changes nothing, and works afterwards."""
    apply, remove = REPARAMETRIZATIONS[kind]
    model = network(form)
    before = answer(model)
    for name in LAYERS[form]:
        apply(model.get_submodule(name))
    found = answer(model)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    structure = repr(model)
    for inplace in (False, True):
        with pytest.raises(ValueError, match="is parametrized or pruned; make it a plain parameter first") as caught:
            replknet.reparameterize(model, inplace=inplace)
        assert "\n" not in str(caught.value)
    assert repr(model) == structure
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    for name in LAYERS[form]:
        remove(model.get_submodule(name))
    exact = expected(model, form)
    assert (found - exact).abs().max() < 1e-4 * exact.abs().max()
    assert kind.startswith("weight_norm") or (before - exact).abs().max() > 1e-3 * exact.abs().max()
    folded = answer(replknet.reparameterize(model))
    assert (folded - exact).abs().max() < 1e-4 * exact.abs().max()
