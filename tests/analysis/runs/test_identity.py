"""What names a network in records: its weights, its printed form, and its code by version or source."""

import sys
import types

import pytest
import torch
from torch import Tensor, nn

import replknet
from analysis.runs.identity import hash_code, hash_weights

SOURCE = """
from torch import nn


class Doubling(nn.Module):
    def forward(self, x):
        return {} * x
"""


def package(monkeypatch: pytest.MonkeyPatch, module: str, factor: int, version: int | None) -> nn.Module:
    """A network in a module of a package that is written for the purpose."""
    top = types.ModuleType("somebodys")
    if version is not None:
        top.CODE_VERSION = version  # type: ignore[attr-defined]
    inner = types.ModuleType(module)
    monkeypatch.setitem(sys.modules, "somebodys", top)
    monkeypatch.setitem(sys.modules, module, inner)
    exec(SOURCE.format(factor), inner.__dict__)
    made: nn.Module = inner.Doubling()
    return made


def test_code_with_a_version_may_move_and_be_tidied(monkeypatch: pytest.MonkeyPatch) -> None:
    first = hash_code(package(monkeypatch, "somebodys.networks", 2, version=1))
    assert hash_code(package(monkeypatch, "somebodys.other.place", 2, version=1)) == first
    assert hash_code(package(monkeypatch, "somebodys.networks", 3, version=2)) != first


def test_code_without_one_is_its_place_and_source(monkeypatch: pytest.MonkeyPatch) -> None:
    first = hash_code(package(monkeypatch, "somebodys.networks", 2, version=None))
    assert hash_code(package(monkeypatch, "somebodys.networks", 2, version=None)) == first
    assert hash_code(package(monkeypatch, "somebodys.other.place", 2, version=None)) != first

    class Mine(replknet.RepLKNet):
        def forward(self, x: Tensor) -> Tensor | list[Tensor]:
            return super().forward(2 * x)

    own = replknet.create_model("replknet_nano_k3", pretrained=True)
    mine = Mine(own.config)
    mine.load_state_dict(own.state_dict())
    assert hash_weights(mine) == hash_weights(own)
    assert hash_code(mine) != hash_code(own)


def test_the_version_of_the_networks_code_stands_for_these_outputs() -> None:
    """If this fails by more than rounding, outputs have changed: raise `CODE_VERSION` and record them anew.

    Of the shipped networks in float64, for an image of sines; recorded with the code before it had a version (42a033c).
    """
    rows = torch.arange(64, dtype=torch.float64)
    image = torch.stack([torch.sin(rows[:, None] / (3 + c) + rows / (5 - c)) for c in range(3)])[None]
    found = {}
    for name in replknet.SHIPPED:
        model = replknet.create_model(name, pretrained=True).double().eval()
        with torch.no_grad():
            logits = model(image)
        assert isinstance(logits, Tensor)
        found[name] = logits[0, :3].tolist()
    assert replknet.CODE_VERSION == 1
    assert found["replknet_nano_k3"] == pytest.approx(
        [-0.91667059573308, 0.22051657816487, 0.071252258427817], rel=1e-9
    )
    assert found["replknet_nano_k31"] == pytest.approx(
        [-0.58554120377089, -0.3058905865646, -0.26241586725476], rel=1e-9
    )
