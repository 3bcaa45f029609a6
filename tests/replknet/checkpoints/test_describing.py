import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import replknet
from replknet import CheckpointError
from replknet.checkpoints.describing import describe, infer_config
from tests.networks import tiny_model


@pytest.mark.parametrize("overrides", [{}, {"small_kernel": None, "dw_ratio": 1.5, "num_classes": 0}])
def test_the_architecture_is_inferred_from_the_shapes(overrides: dict[str, Any]) -> None:
    model = tiny_model(**overrides)
    assert infer_config(model.state_dict()) == model.config


def test_a_sentence_names_what_the_shapes_say() -> None:
    with torch.device("meta"):
        published = replknet.create_model("replknet_31l").state_dict()
    assert "looks like replknet_31l" in describe(published)
    assert "does not look like a RepLKNet" in describe({"conv1.weight": torch.zeros(1)})


DESCRIPTIONS: dict[str, Any] = {
    "1e9 layers": {"layers": [10**9] * 4},
    "1e7 channels": {"channels": [10**7] * 4},
    "1e30 channels": {"channels": [10**30] * 4},
    "a kernel": {"kernel_sizes": [10**9 + 1] * 4},
    "a head": {"num_classes": 10**15},
    "an image": {"in_channels": 10**12},
    "a ratio": {"ffn_ratio": 1e308},
    "many stages": {"layers": [1] * 500, "channels": [8] * 500, "kernel_sizes": [5] * 500},
    "no number": {"layers": [1.5] * 4},
    "no sequence": {"layers": 3.5},
    "another field": {"depth": 3},
}


@pytest.mark.parametrize("kind", DESCRIPTIONS)
def test_a_description_is_compared_with_the_file(tmp_path: Path, kind: str) -> None:
    model, path = tiny_model(), tmp_path / "weights.safetensors"
    text = json.dumps({"config": asdict(model.config) | DESCRIPTIONS[kind]})
    save_file(model.state_dict(), path, metadata={"replknet": text})
    with pytest.raises(CheckpointError, match=r"its description does not fit \(") as caught:
        replknet.load_checkpoint(path)
    assert len(str(caught.value)) < 1000
    assert "its description does not fit" in replknet.inspect_checkpoint(path).problems[0]


@pytest.mark.parametrize("text", ["[" * 100_000, "9" * 5000, "null", "{}", '{"config": []}', '{"config": 3}', ""])
def test_a_description_that_is_none(tmp_path: Path, text: str) -> None:
    save_file(tiny_model().state_dict(), tmp_path / "weights.safetensors", metadata={"replknet": text})
    with pytest.raises(CheckpointError, match="its description does not fit"):
        replknet.load_checkpoint(tmp_path / "weights.safetensors")


LARGE = "blocks.0.large_kernel.lkb_origin.conv.weight"


@pytest.mark.parametrize(
    "added",
    [
        {f"stages.{10**18}.{LARGE}": torch.zeros(1)},
        {f"stages.{'9' * 100}.{LARGE}": torch.zeros(1)},
        {f"transitions.{2**63 - 1}.{LARGE}": torch.zeros(1)},
        {f"stages.-1.{LARGE}": torch.zeros(1)},
        {f"stages.1_0.{LARGE}": torch.zeros(1)},
        {f"stages.\u0664.{LARGE}": torch.zeros(1)},
        {"head.weight": torch.zeros(10**12, 0)},
        {"stem.0.conv.weight": torch.zeros(0, 10**12, 3, 3)},
        {"stages.0.blocks.0.pw1.conv.weight": torch.zeros(8, 0, 1, 1)},
        {f"stages.0.{LARGE}": torch.zeros(0, 1, 2**31 - 1, 2**31 - 1)},
    ],
)
def test_keys_and_shapes_are_compared_with_what_is_there(tmp_path: Path, added: dict[str, torch.Tensor]) -> None:
    """No stage is made for a number in a key, and no layer for a shape without numbers."""
    state = tiny_model().state_dict() | added
    assert infer_config(state) is None
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="does not look like a RepLKNet"):
        replknet.load_checkpoint(tmp_path / "weights.pth")


def test_missing_weights_are_still_named(tmp_path: Path) -> None:
    state = {key: value for key, value in tiny_model().state_dict().items() if "bn.bias" not in key}
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match=r"looks like a RepLKNet with layers=\(1, 1, 2, 1\)"):
        replknet.load_checkpoint(tmp_path / "weights.pth")
