import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import replknet
from replknet import CheckpointError
from tests.networks import same, tiny_model


@pytest.mark.parametrize("wrap", ["flat", "model", "state_dict", "module", "compiled", "ema", "mm_ema", "argparse"])
def test_every_wrapping_gives_the_official_keys(tmp_path: Path, wrap: str) -> None:
    state = dict(tiny_model().state_dict())
    other = {key: torch.zeros_like(value) for key, value in state.items()}
    content: dict[str, Any] = {
        "flat": state,
        "model": {"model": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        "state_dict": {"state_dict": state, "meta": {"seed": 1}},
        "module": {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        "compiled": {f"_orig_mod.module.{key}": value for key, value in state.items()},
        "ema": {"model": other, "model_ema": state},
        "mm_ema": {
            "state_dict": other,
            "ema_state_dict": {
                "steps": torch.tensor(5),
                **{f"module.{k}": v for k, v in replknet.convert_state_dict(state, to="mmpretrain").items()},
            },
        },
        "argparse": {"model": state, "args": argparse.Namespace(lr=0.1)},
    }[wrap]
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    assert same(replknet.load_state_dict(path), state)
    if "ema" in wrap:
        assert same(replknet.load_state_dict(path, use_ema=False), other)


def test_safetensors_whatever_the_suffix(tmp_path: Path) -> None:
    state = dict(tiny_model().state_dict())
    for name in ("weights.safetensors", "weights.bin"):
        save_file(state, tmp_path / name)
        loaded = replknet.load_state_dict(tmp_path / name)
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())


@pytest.mark.parametrize("content", ["text", "pickle", "number", "empty"])
def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "weights.pth"
    if content == "text":
        path.write_text("<html>not found</html>")
    else:
        torch.save({"pickle": {"model": Path}, "number": {"epoch": 3}, "empty": {}}[content], path)
    with pytest.raises(CheckpointError, match="checkpoint="):
        replknet.load_state_dict(path)
    with pytest.raises(FileNotFoundError, match="no such file"):
        replknet.load_state_dict(tmp_path / "absent.pth")


def test_nothing_but_tensors_is_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    marker = tmp_path / "executed"

    class Attack:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (marker,))

    torch.save({"model": Attack()}, path)
    with pytest.raises(CheckpointError, match="not a readable weight file"):
        replknet.load_state_dict(path)
    assert not marker.exists()
