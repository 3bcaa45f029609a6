import argparse
import datetime
import pickle
import sys
import tarfile
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

import replknet
from replknet import CheckpointError
from tests.networks import same, tiny_model


def zeros_like(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: torch.zeros_like(value) for key, value in state.items()}


@pytest.mark.parametrize("wrap", ["flat", "model", "state_dict", "module", "compiled", "nested"])
def test_every_wrapping_gives_the_official_keys(tmp_path: Path, wrap: str) -> None:
    state = dict(tiny_model().state_dict())
    content: dict[str, Any] = {
        "flat": state,
        "model": {"model": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        "state_dict": {"state_dict": state, "meta": {"seed": 1}},
        "module": {"state_dict": {f"module.{key}": value for key, value in state.items()}},
        "compiled": {f"_orig_mod.module.{key}": value for key, value in state.items()},
        "nested": {"model": {"state_dict": state, "version": 2}},
    }[wrap]
    path = tmp_path / "weights.pth"
    torch.save(content, path)
    for use_ema in (True, False):
        assert same(replknet.load_state_dict(path, use_ema=use_ema), state)


def as_mmengine_saves(last: dict[str, Tensor], averaged: dict[str, Tensor]) -> dict[str, Any]:
    """`Runner.save_checkpoint` and then `EMAHook.before_save_checkpoint` of mmengine 0.10.7, line by line.

    `last` and `averaged` are what `runner.model` and `ema_model.module` hold.
    """
    last, averaged = (replknet.convert_state_dict(state, to="mmpretrain") for state in (last, averaged))
    checkpoint: dict[str, Any] = {
        "meta": {"epoch": 3, "iter": 120, "cfg": "model = dict()", "mmengine_version": "0.10.7", "time": "20240101"},
        "state_dict": OrderedDict(last),
        "message_hub": {"log_scalars": OrderedDict(), "runtime_info": OrderedDict(), "resumed_keys": {}},
    }
    checkpoint["ema_state_dict"] = OrderedDict(steps=torch.tensor(120))
    checkpoint["ema_state_dict"] |= {f"module.{key}": value for key, value in averaged.items()}
    model_state, ema_state = checkpoint["state_dict"], checkpoint["ema_state_dict"]
    for k in ema_state:
        if k[:7] == "module.":
            tmp = ema_state[k]
            ema_state[k] = model_state[k[7:]]
            model_state[k[7:]] = tmp
    return checkpoint


def averaging(kind: str, averaged: dict[str, Tensor], last: dict[str, Tensor]) -> dict[str, Any]:
    """A file with both, as the code that `kind` names writes it."""
    in_module = {f"module.{key}": value for key, value in averaged.items()}
    by_mmengine = as_mmengine_saves(last, averaged)
    files: dict[str, dict[str, Any]] = {
        "official": {"model": last, "model_ema": averaged, "epoch": 3, "args": argparse.Namespace(lr=0.1)},
        "timm": {"epoch": 3, "arch": "x", "state_dict": last, "state_dict_ema": averaged, "metric": np.float64(0.5)},
        "ours": {"fingerprint": "x", "model": last, "average": {"n_averaged": torch.tensor(5), **in_module}},
        "somebody": {"state_dict": last, "ema_state_dict": averaged},
        "torch": {"state_dict": last, "ema_state_dict": {"n_averaged": torch.tensor(5), **in_module}},
        "mmengine": by_mmengine,
        # `CheckpointHook(published_keys=...)`, and an averaged model without a counter
        "mmengine, published": {key: by_mmengine[key] for key in ("state_dict", "ema_state_dict")},
        "mmengine, own average": by_mmengine | {"ema_state_dict": dict([*by_mmengine["ema_state_dict"].items()][1:])},
    }
    return files[kind]


@pytest.mark.parametrize(
    ("kind", "where", "beside"),
    [
        ("official", "model_ema", "model"),
        ("timm", "state_dict_ema", "state_dict"),
        ("ours", "average", "model"),
        ("somebody", "ema_state_dict", "state_dict"),
        ("torch", "ema_state_dict", "state_dict"),
        ("mmengine", "state_dict", "ema_state_dict"),
        ("mmengine, published", "state_dict", "ema_state_dict"),
        ("mmengine, own average", "state_dict", "ema_state_dict"),
    ],
)
def test_averaged_and_last_weights_by_the_marks_of_the_file(tmp_path: Path, kind: str, where: str, beside: str) -> None:
    averaged = dict(tiny_model().state_dict())
    last = zeros_like(averaged)
    path = tmp_path / "weights.pth"
    torch.save(averaging(kind, averaged, last), path)
    assert same(replknet.load_state_dict(path), averaged)
    assert same(replknet.load_state_dict(path, use_ema=False), last)
    info = replknet.inspect_checkpoint(path)
    assert (info.wrapper, info.beside) == (where, beside)
    replknet.convert_checkpoint(path, tmp_path / "converted.pth")
    assert same(replknet.load_state_dict(tmp_path / "converted.pth"), averaged)


def test_last_weights_are_not_made_of_averaged_ones(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"model_ema": tiny_model().state_dict()}, path)
    assert replknet.inspect_checkpoint(path).beside == ""
    with pytest.raises(CheckpointError, match="use_ema=False, but it has averaged weights only"):
        replknet.load_state_dict(path, use_ema=False)


def test_an_average_of_torch_alone_is_read(tmp_path: Path) -> None:
    model = tiny_model()
    torch.save(AveragedModel(model).state_dict(), tmp_path / "weights.pth")
    assert same(replknet.load_state_dict(tmp_path / "weights.pth"), dict(model.state_dict()))


def test_safetensors_whatever_the_suffix(tmp_path: Path) -> None:
    state = dict(tiny_model().state_dict())
    for name in ("weights.safetensors", "weights.bin"):
        save_file(state, tmp_path / name)
        loaded = replknet.load_state_dict(tmp_path / name)
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], value) for key, value in state.items())


class HistoryBuffer:
    """What mmengine's class of this name keeps."""

    def __init__(self) -> None:
        self.max_length = 1_000_000
        self._log_history = np.array([0.5, 0.25])
        self._count_history = np.array([1, 1])


class Everything(dict[str, Any]):
    """Of a training code: a dictionary and a list of their own kinds, with a state."""

    def __init__(self, **items: Any) -> None:
        super().__init__(**items)
        self.frozen = True


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, Path, bool], None]:
    """Saves, and then has nothing of the modules that the file names."""

    def save(content: Any, path: Path, zipped: bool) -> None:
        with monkeypatch.context() as patched:
            for kind, module in ((HistoryBuffer, "mmengine.logging.history_buffer"), (Everything, "easydict")):
                patched.setattr(kind, "__module__", module)
                for name in ("mmengine", "mmengine.logging", module):
                    patched.setitem(sys.modules, name, types.SimpleNamespace(**{kind.__name__: kind}))
            torch.save(content, path, _use_new_zipfile_serialization=zipped)

    return save


@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code:UserWarning")  # by torch, of a whole old module
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_read_whatever_is_beside_them(tmp_path: Path, elsewhere: Any, zipped: bool) -> None:
    state = dict(tiny_model().state_dict())
    path = tmp_path / "epoch_3.pth"
    hub = {"log_scalars": OrderedDict({"train/loss": HistoryBuffer()}), "runtime_info": OrderedDict(epoch=3)}
    content = {
        "meta": {"time": datetime.datetime(2024, 1, 1), "zone": datetime.UTC, "size": (np.int64(3), 2.5)},
        "args": argparse.Namespace(output=Path("runs/1"), images={"a", "b"}, raw=b"\x00\xff", span=range(3)),
        "message_hub": hub,
        "config": Everything(lr=np.float32(0.1), names=["a"]),
        "best": np.float64(0.5),
        "random": (np.random.default_rng(0), torch.get_rng_state(), np.arange(6).reshape(2, 3)),
        "dtype": torch.bfloat16,
        "shape": torch.Size([2, 3]),
        "device": torch.device("cpu"),
        "module": nn.Linear(2, 3),
        "state_dict": state,
    }
    elsewhere(content, path, zipped)
    assert same(replknet.load_state_dict(path), state)
    assert replknet.inspect_checkpoint(path).problems == ()
    assert not {"easydict", "mmengine"} & set(sys.modules)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)


HELD: dict[str, tuple[Callable[[], Any], str]] = {
    "a module": (Net, r"it holds a whole object, tests\S*test_reading\.Net; expected a dictionary of tensors, such as"),
    "a module inside": (
        lambda: {"epoch": 3, "model": Net()},
        r"entry 'model' is tests\S*test_reading\.Net, not a tensor",
    ),
    "a class": (lambda: {"model": Path}, r"the entry 'model' is pathlib\S*Path, not a tensor"),
    "a scalar of numpy": (lambda: np.float64(3), r"a whole object, numpy\S*multiarray\.scalar"),
    "arrays of numpy": (lambda: {"stem": np.ones(3)}, r"the entry 'stem' is numpy\.ndarray, not a tensor"),
    "a tensor": (lambda: torch.ones(3), "a whole object, Tensor"),
    "a list": (lambda: [torch.ones(3)], "a whole object, list"),
    "no weights": (lambda: {"epoch": 3}, "the entry 'epoch' is int, not a tensor; expected weights, such as module"),
    "nothing": (dict, "an empty dictionary"),
    "an optimizer": (lambda: torch.optim.SGD([torch.ones(1)], 0.1), r"a whole object, torch\.optim\.sgd\.SGD"),
    "a quantised tensor": (
        lambda: {"stem": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)},
        r"the entry 'stem' is torch\._utils\._rebuild_qtensor",
    ),
    "a sparse tensor": (
        lambda: {"stem": torch.eye(2).to_sparse()},
        r"the entry 'stem' is torch\S*_rebuild_sparse_tensor",
    ),
    "a lazy module": (lambda: nn.LazyLinear(2).state_dict(), r"the entry 'weight' is torch\S*UninitializedParameter"),
}


@pytest.mark.filterwarnings("ignore:.*TypedStorage|.*torch.quantize|.*torch.ao.quantization|.*[Qq]uantiz")
@pytest.mark.filterwarnings("ignore:Couldn't retrieve source code:UserWarning")  # by torch, of a whole old module
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("held", HELD)
def test_what_a_file_holds_instead_of_weights_is_named(tmp_path: Path, held: str, zipped: bool) -> None:
    make, message = HELD[held]
    path = tmp_path / "weights.pth"
    torch.save(make(), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=message) as caught:
        replknet.load_state_dict(path)
    assert str(caught.value).startswith(f"checkpoint={str(path)!r}: ")
    assert "\n" not in str(caught.value)


def cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def write_archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.npy", b"x")


def write_tar(path: Path) -> None:
    with tarfile.open(path, "w") as archive:
        archive.add(__file__, "storages")


def write_scripted(path: Path) -> None:
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), path)


def write_cut(path: Path, **options: Any) -> None:
    torch.save(tiny_model().state_dict(), path, **options)
    cut(path, 0.6)


def write_cut_safetensors(path: Path) -> None:
    save_file(tiny_model().state_dict(), path)
    cut(path, 0.6)


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 12345\n"
OTHERS: dict[str, tuple[bytes | Callable[[Path], None], str]] = {
    "empty": (b"", "it is empty"),
    "LFS": (LFS, "it is a Git LFS pointer, .* `git lfs pull` fetches that"),
    "HTML": (b"\n<!DOCTYPE html>\n<html>", "it is an HTML page; the download went wrong"),
    "HTML too": (b"<html>not found</html>", "it is an HTML page"),
    "XML": (b"<?xml version='1.0'?><Error><Code>AccessDenied", "it is an XML page"),
    "text": (b'{"error": "not found"}', r"it is text that begins '{\"error\": \"not found\"}'"),
    "gzip": (b"\x1f\x8b\x08" + bytes(30), "it is a gzip archive"),
    "HDF5": (b"\x89HDF\r\n\x1a\n" + bytes(30), "it is an HDF5 file"),
    "zeros": (bytes(1000), "nothing but zeros at its beginning"),
    "bytes": (bytes(range(200, 240)), r"of no known format; it begins b'\\xc8"),
    "pickle": (pickle.dumps({"stem": [1.0]}), "a pickle that torch.save has not written"),
    "zip": (write_archive, r"a zip archive of other files, such as 'weights\.npy'"),
    "tar": (write_tar, "a tar archive"),
    "TorchScript": (write_scripted, "a TorchScript program"),
    "cut": (write_cut, "a cut zip archive"),
    "cut, old": (
        lambda path: write_cut(path, _use_new_zipfile_serialization=False),
        r"not a readable weight file \(.*EOF",
    ),
    "cut safetensors": (write_cut_safetensors, r"not a readable weight file \(.*not fully covered"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning", "ignore:.*torch.jit:DeprecationWarning")
@pytest.mark.parametrize("other", OTHERS)
def test_what_a_file_is_instead_of_a_weight_file_is_named(tmp_path: Path, other: str) -> None:
    content, message = OTHERS[other]
    path = tmp_path / "weights.pth"
    if callable(content):
        content(path)
    else:
        path.write_bytes(content)
    for read in (replknet.load_state_dict, replknet.load_checkpoint, replknet.inspect_checkpoint):
        with pytest.raises(CheckpointError, match=message) as caught:
            read(path)
        assert "\n" not in str(caught.value)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        replknet.load_state_dict(tmp_path / "absent.pth")
    with pytest.raises(FileNotFoundError, match="is a folder"):
        replknet.load_state_dict(tmp_path)


@pytest.mark.parametrize("prefix", ["module.", "backbone.", "_orig_mod.module."])
def test_two_entries_of_one_weight_are_named(tmp_path: Path, prefix: str) -> None:
    path, key = tmp_path / "weights.pth", "stem.0.conv.weight"
    torch.save({key: torch.zeros(1), prefix + key: torch.ones(1)}, path)
    with pytest.raises(CheckpointError, match=f"'{key}' and '{prefix}{key}' are both '{key}'; expected one of them"):
        replknet.load_state_dict(path)


@pytest.mark.parametrize("key", [3, (1, 2), "a\nb", "\x1b[31m", "stages." + "9" * 5000, None])
def test_keys_that_no_weight_has(tmp_path: Path, key: Any) -> None:
    torch.save({"stem": torch.ones(1), key: torch.ones(1)}, tmp_path / "weights.pth")
    with pytest.raises(CheckpointError, match="it has a key that no weight has") as caught:
        replknet.load_state_dict(tmp_path / "weights.pth")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_loaded_weights_do_not_change_with_the_file(tmp_path: Path) -> None:
    path = tmp_path / "weights.safetensors"
    save_file({"a": torch.ones(100_000)}, path)
    loaded = replknet.load_state_dict(path)["a"]
    with path.open("r+b") as file:
        file.seek(200_000)
        file.write(bytes(1000))
    assert loaded.eq(1).all()
