import resource
from pathlib import Path
from typing import Any

import pytest
import torch

from analysis.training.state import StateError, load_state, previous_of, remove_state, store_state


def state(step: int, size: int = 10) -> dict[str, Any]:
    return {"fingerprint": "ours", "step": step, "weights": torch.arange(size)}


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.pt"
    assert load_state(path, "ours") == (None, "")
    for step in range(3):
        store_state(path, state(step))
    found, note = load_state(path, "ours")
    assert found is not None
    assert (found["step"], note) == (2, "")
    assert torch.load(previous_of(path), weights_only=True)["step"] == 1
    assert sorted(file.name for file in path.parent.iterdir()) == ["state.pt", "state.pt.previous"]
    found, note = load_state(path, "another")
    assert found is None
    assert note.startswith("state.pt is of another network, recipe or data, or of a former version")
    assert note.endswith("the training begins anew")
    remove_state(path)
    assert list(path.parent.iterdir()) == []


@pytest.mark.parametrize("damage", ["half", "empty", "noise", "bit", "name", "absent"])
def test_a_damaged_state_gives_way_to_the_one_before(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "state.pt"
    store_state(path, state(1))
    store_state(path, state(2))
    content = path.read_bytes()
    if damage == "absent":  # killed between the two renamings
        path.unlink()
    else:
        bit = bytearray(content)
        bit[content.index(torch.arange(10).numpy().tobytes()) + 8] ^= 1  # of the weights
        damaged = {"half": content[: len(content) // 2], "empty": b"", "noise": b"x" * 999, "bit": bytes(bit)}
        damaged["name"] = content.replace(b"fingerprint", b"fingerprinT")
        path.write_bytes(damaged[damage])
    found, note = load_state(path, "ours")
    assert found is not None
    assert found["step"] == 1
    assert note.startswith("" if damage == "absent" else "state.pt is damaged")
    assert note == "" or note.endswith("the one before it is used")
    previous_of(path).unlink()
    found, note = load_state(path, "ours")
    assert found is None
    assert damage == "absent" or note.endswith("the training begins anew")


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """The system refuses to let a file grow, in the middle of writing it."""
    path = tmp_path / "state.pt"
    store_state(path, state(1))
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(
            StateError, match=r"state\.pt'.*cannot be written \(\[Errno 27\] File too large.*\).*is kept"
        ):
            store_state(path, state(2, size=1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [file.name for file in tmp_path.iterdir()] == ["state.pt"]
    found, _ = load_state(path, "ours")
    assert found is not None
    assert found["step"] == 1
