import pytest
import torch

import replknet
from tests.conftest import Reference
from tests.networks import same, tiny_model


@pytest.mark.parametrize("file", ["tiny_official_flat", "tiny_official_merged"])
def test_official_to_mmpretrain_and_back_is_exact(reference: Reference, file: str) -> None:
    state = replknet.load_state_dict(reference.path / f"{file}.pth")
    renamed = replknet.convert_state_dict(state, to="mmpretrain")
    assert all(key.startswith(("backbone.", "head.fc.")) for key in renamed)
    assert same(replknet.convert_state_dict(renamed, to="official"), state)


@pytest.mark.parametrize("file", ["tiny_mmpretrain", "tiny_mmpretrain_deploy"])
def test_mmpretrain_to_official_and_back_is_exact(reference: Reference, file: str) -> None:
    raw = torch.load(reference.path / f"{file}.pth", weights_only=True)["state_dict"]
    state = replknet.convert_state_dict(raw, to="official")
    assert "norm.weight" in state
    assert "head.weight" in state
    assert same(replknet.convert_state_dict(state, to="mmpretrain"), dict(raw))


def test_intermediate_norms_keep_their_names() -> None:
    backbone = tiny_model(out_indices=(0, 3), norm_intermediate_features=True, num_classes=0).state_dict()
    assert same(replknet.convert_state_dict(backbone, to="official"), dict(backbone))
    renamed = replknet.convert_state_dict(backbone, to="mmpretrain")
    assert same(replknet.convert_state_dict(renamed, to="official"), dict(backbone))
    both = tiny_model(norm_intermediate_features=True).state_dict()
    with pytest.raises(ValueError, match="to='mmpretrain'"):
        replknet.convert_state_dict(both, to="mmpretrain")
    with pytest.raises(ValueError, match="to='timm'"):
        replknet.convert_state_dict(both, to="timm")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("stem.0.conv.weight", "backbone.stem.0.conv.weight", "stem.0.conv.weight"),
        ("head.weight", "head.fc.weight", "head.weight"),
        ("head.fc.bias", "head.cls_22k.bias", "head.bias"),
    ],
)
def test_two_weights_of_one_name_are_refused(first: str, second: str, name: str) -> None:
    state = {first: torch.zeros(1), second: torch.ones(1)}
    with pytest.raises(ValueError, match=f"state: {first!r} and {second!r} are both {name!r}; expected one of them"):
        replknet.convert_state_dict(state, to="official")
