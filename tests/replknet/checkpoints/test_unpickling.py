import argparse
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import replknet
from replknet import CheckpointError
from replknet.checkpoints import unpickling


@pytest.mark.parametrize("zipped", [True, False])
def test_tensors_of_every_kind(tmp_path: Path, zipped: bool) -> None:
    """Strided, sharing memory, parameters, with attributes, of every dtype: as torch itself reads them."""
    whole = torch.arange(24.0).reshape(4, 6)
    marked, learnt = torch.ones(2), nn.Parameter(torch.ones(3))
    marked.note = learnt.note = "mine"  # type: ignore[attr-defined]
    state: dict[str, Tensor] = {
        "part": whole[1:3, ::2],
        "turned": whole.T,
        "none": torch.empty(0, 3),
        "one": whole[0, 0],
    }
    state |= {"parameter": nn.Parameter(whole), "marked": marked, "learnt": learnt}
    dtypes = [torch.float16, torch.bfloat16, torch.float64, torch.int8, torch.bool]
    if zipped:  # newer than the older format
        dtypes += [torch.float8_e4m3fn, torch.uint16]
    state |= {str(dtype): torch.ones(2).to(dtype) for dtype in dtypes}
    path = tmp_path / "weights.pth"
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    found, expected = replknet.load_state_dict(path), torch.load(path, weights_only=True)
    assert list(found) == list(expected)
    for key, value in expected.items():
        assert found[key].dtype == value.dtype
        assert found[key].stride() == value.stride()
        assert found[key].tolist() == value.tolist()
        assert not found[key].requires_grad
    torch.save(state | {"conjugate": torch.tensor(1j).conj()}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(replknet.CheckpointError, match=r"the entry 'conjugate' is of torch\.complex64; expected real"):
        replknet.load_state_dict(path)


class Attack:
    """Calls what it is given when it is unpickled in the ordinary way."""

    def __init__(self, *call: Any, state: Any = None) -> None:
        self.call, self.state = call, state

    def __reduce__(self) -> tuple[Any, ...]:
        function, *arguments = self.call
        return (function, tuple(arguments)) if self.state is None else (function, tuple(arguments), self.state)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_of_a_file_is_executed(tmp_path: Path, zipped: bool) -> None:
    path, marker = tmp_path / "weights.pth", tmp_path / "executed"
    attacks = [
        Attack(Path.touch, marker),
        Attack(eval, f"open({str(marker)!r}, 'w')"),
        Attack(exec, f"open({str(marker)!r}, 'w')"),
        Attack(__import__, "antigravity"),
        Attack(getattr, marker, "touch"),
        Attack(map, marker.touch, [1]),
        Attack(torch.hub.load_state_dict_from_url, "http://localhost:9"),
    ]
    for attack in attacks:
        torch.save({"model": attack}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(CheckpointError, match="the entry 'model' is"):
            replknet.load_state_dict(path)
    torch.save({"model": {"a": torch.ones(1)}, "other": attacks}, path, _use_new_zipfile_serialization=zipped)
    assert list(replknet.load_state_dict(path)) == ["a"]
    assert not marker.exists()
    assert "antigravity" not in sys.modules


@pytest.mark.parametrize(
    ("module", "name"), [("torch._utils", "_rebuild_tensor_v2"), ("collections", "OrderedDict"), ("torch", "float32")]
)
@pytest.mark.parametrize("by_slots", [True, False])
def test_nothing_that_lasts_is_written_by_a_file(tmp_path: Path, module: str, name: str, by_slots: bool) -> None:
    """A pickle can give a state to what it has found, be it a function or a class."""
    attributes = b"}X\x05\x00\x00\x00wroteK\x01s"  # {"wrote": 1}
    state = b"N" + attributes + b"\x86" if by_slots else attributes
    path = tmp_path / "weights.pth"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02c" + f"{module}\n{name}\n".encode() + state + b"b.")
        archive.writestr("archive/version", "3\n")
    with pytest.raises(CheckpointError):
        replknet.load_state_dict(path)
    assert not hasattr(getattr(sys.modules[module], name), "wrote")
    assert not any(hasattr(value, "wrote") for value in vars(unpickling).values())


def test_threads_read_at_the_same_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With `torch.serialization.safe_globals`, which a thread takes from the others, some of these fail.

    Nor does a variable of the environment, which forbids `torch.load` other pickles, or the device of a caller matter.
    """
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "weights.pth"
    torch.save({"model": {"a": torch.ones(1)}, "args": argparse.Namespace(lr=np.float64(0.1))}, path)
    failures: list[Exception] = []
    before = torch.serialization.get_safe_globals()

    def read() -> None:
        for _ in range(150):
            try:
                with torch.device("meta"):
                    assert replknet.load_state_dict(path)["a"].tolist() == [1]
            except CheckpointError as error:
                failures.append(error)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert torch.serialization.get_safe_globals() == before
