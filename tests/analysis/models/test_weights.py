"""Weights of anybody for networks of any library; what is expected is what PyTorch's own `load_state_dict` makes."""

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import nn

from analysis import load_model
from analysis.models.files import load_file
from analysis.runs.identity import identify
from replknet.checkpoints.naming import named_as
from replknet.checkpoints.reading import CheckpointError


def network(classes: int = 1000) -> nn.Module:
    made: nn.Module = torchvision.models.squeezenet1_1(num_classes=classes).eval()
    return made


def residual(classes: int) -> nn.Module:
    made: nn.Module = torchvision.models.resnet18(num_classes=classes).eval()
    return made


@pytest.fixture(scope="module")
def own() -> nn.Module:
    torch.manual_seed(7)
    return residual(5)


def prefixed(module: nn.Module, prefix: str) -> dict[str, Any]:
    return OrderedDict((f"{prefix}{key}", value) for key, value in module.state_dict().items())


WRAPPINGS: dict[str, Any] = {
    "flat": lambda own: own.state_dict(),
    "module": lambda own: {"state_dict": prefixed(own, "module."), "epoch": 3, "args": {"lr": 0.1}},
    "tutorial": lambda own: {"epoch": 1, "model_state_dict": own.state_dict(), "loss": 0.5},
    "lightning": lambda own: {"state_dict": prefixed(own, "model."), "pytorch-lightning_version": "2"},
    "twice": lambda own: {"model": prefixed(own, "module.model.backbone.")},
    "compiled": lambda own: prefixed(own, "_orig_mod."),
    "mmpretrain": lambda own: {
        "meta": {},
        "state_dict": {
            key.replace("fc.", "head.fc.") if key.startswith("fc.") else f"backbone.{key}": value
            for key, value in own.state_dict().items()
        },
    },
    "averaged": lambda own: {
        "state_dict": {key: torch.zeros_like(value) for key, value in own.state_dict().items()},
        "model_ema": prefixed(own, "module."),
    },
}


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "timm:resnet18"])
@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_every_wrapper_gives_the_same_outputs(own: nn.Module, tmp_path: Path, spec: str, wrapping: str) -> None:
    torch.save(WRAPPINGS[wrapping](own), tmp_path / "own.pth")
    loaded = load_model(spec, checkpoint=tmp_path / "own.pth")
    assert loaded.name == "resnet18"
    assert not loaded.initial
    assert not loaded.published
    assert "own.pth: images get the preparation of resnet18" in " ".join(loaded.notes)
    assert ("averaged weights (model_ema)" in " ".join(loaded.notes)) == (wrapping == "averaged")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images), own(images))


def test_a_checkpoint_is_read_anew_and_recorded(own: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    torch.save(own.state_dict(), path)
    first = load_model("torchvision:resnet18", checkpoint=path)
    assert identify(first.module).weights == identify(own).weights
    torch.save(residual(5).state_dict(), path)
    second = load_model("torchvision:resnet18", checkpoint=path)
    assert identify(second.module).weights != identify(first.module).weights


def test_what_does_not_fit_is_refused(own: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "own.pth"
    state = own.state_dict()
    cases: list[tuple[dict[str, Any], str]] = [
        (state | {"extra.weight": torch.ones(1)}, "1 unexpected: extra.weight"),
        ({key: value for key, value in state.items() if key != "fc.bias"}, "1 missing: fc.bias"),
        (state | {"conv1.weight": torch.ones(64, 1, 7, 7)}, r"mis-shaped: conv1.weight \[64, 1, 7, 7\]"),
        (state | {"fc.bias": torch.ones(6)}, "mis-shaped: fc.weight"),
        (state | {"fc.bias": torch.ones(5, dtype=torch.complex64)}, "expected real weights"),
    ]
    for content, message in cases:
        torch.save(content, path)
        with pytest.raises(CheckpointError, match=rf"checkpoint='.*own.pth'.*{message}"):
            load_model("torchvision:resnet18", checkpoint=path)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"does not fit resnet50: .* missing: layer1.0.conv3"):
        load_model("torchvision:resnet50", checkpoint=path)
    with pytest.raises(ValueError, match="expected none with pretrained=False"):
        load_model("torchvision:resnet18", checkpoint=path, pretrained=False)


@pytest.mark.filterwarnings("ignore:The default weight initialization")
def test_weights_that_may_want_another_input_are_refused(own: nn.Module, tmp_path: Path) -> None:
    """GoogLeNet's published weights want images scaled anew inside the network; a file does not tell whether its do."""
    torch.save(own.state_dict(), tmp_path / "any.pth")
    with pytest.raises(ValueError, match=r"expected none for googlenet, as no file tells whether.*transform_input"):
        load_model("torchvision:googlenet", checkpoint=tmp_path / "any.pth")


def test_only_tensors_are_unpickled(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "touched",)

    torch.save({"state_dict": {"fc.weight": Evil()}}, tmp_path / "evil.pth")
    with pytest.raises(CheckpointError, match="not a tensor"):
        load_model("torchvision:resnet18", checkpoint=tmp_path / "evil.pth")
    assert not (tmp_path / "touched").exists()


def test_weights_for_a_function_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_weights_net.py").write_text(
        "from torch import nn\n"
        "def small():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(3)
    made = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    torch.save({"net": 1, "state_dict": prefixed(made, "net.")}, "own.pth")
    loaded = load_model("Mine=own_weights_net.py:small", checkpoint="own.pth")
    assert loaded.name == "Mine"
    images = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module(images), made(images))
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3), *made[1:3], nn.Linear(4, 9)).state_dict(), "other.pth")
    with pytest.raises(CheckpointError, match="does not fit small: 2 mis-shaped"):  # the function decides its head
        load_model("own_weights_net.py:small", checkpoint="other.pth")


def test_weights_for_a_network_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], num_labels=3)
    first, second = (transformers.ResNetForImageClassification(config).eval() for _ in range(2))
    first.save_pretrained(tmp_path / "net")
    transformers.ConvNextImageProcessor(size={"shortest_edge": 32}).save_pretrained(tmp_path / "net")
    torch.save(second.state_dict(), tmp_path / "second.pth")
    loaded = load_model(f"hf:{tmp_path / 'net'}", checkpoint=tmp_path / "second.pth")
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(loaded.module.eval()(images), second(images).logits)


def test_bare_weights_say_what_to_do_next(tmp_path: Path) -> None:
    torch.save(network(3).state_dict(), tmp_path / "own.pth")
    message = r"weights, which do not tell their architecture .*name that, such as timm:resnet50.* with checkpoint="
    with pytest.raises(ValueError, match=message):
        load_model(str(tmp_path / "own.pth"))
    with pytest.raises(ValueError, match=message):
        load_file(tmp_path / "own.pth")


def test_prefixes() -> None:
    own = ["stem.weight", "model.weight"]
    assert named_as(own, own) == {key: key for key in own}
    assert named_as(own, ["net.stem.weight", "net.model.weight"]) == {f"net.{key}": key for key in own}
    # Nothing that would give two weights one name, and no prefix that is not known.
    assert named_as(["a", "b"], ["model.a", "a"]) == {"model.a": "model.a", "a": "a"}
    assert named_as(["a"], ["other.a"]) == {"other.a": "other.a"}
