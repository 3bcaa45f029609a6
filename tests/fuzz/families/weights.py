"""Weight files: changed bytes, changed archives and headers, and contents that are no weights of a RepLKNet."""

import functools
import json
import os
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load, save, save_file
from torch import Tensor, nn

import analysis
import replknet
from analysis.training.state import load_state, store_state
from replknet import CheckpointError
from tests.fuzz.engine import Case, WrongError, family
from tests.fuzz.mutating import INTERESTING, TEXTS, VALUES, mutated_bytes, mutated_json, mutated_zip

_REFERENCES = Path(os.environ.get("REPLKNET_DATA", Path(__file__).parents[3].parent / "shared"), "reference")
_ALL = (CheckpointError,)


@functools.cache
def _network() -> replknet.RepLKNet:
    torch.manual_seed(0)
    config = replknet.RepLKNetConfig(
        layers=(1, 1), channels=(4, 6), kernel_sizes=(5, 3), small_kernel=3, ffn_ratio=2.0, num_classes=3
    )
    return replknet.RepLKNet(config).eval()


@functools.cache
def _state() -> dict[str, Tensor]:
    return dict(_network().state_dict())


def _saved(folder: Path, content: Any, *, legacy: bool = False) -> bytes:
    path = folder / "original"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    found = path.read_bytes()
    path.unlink()
    return found


def _described(folder: Path) -> bytes:
    path = folder / "original.safetensors"
    analysis.save_network(path, _network(), classes=("a", "b", "c"), input_size=32)
    found = path.read_bytes()
    path.unlink()
    return found


def _training(folder: Path) -> bytes:
    content = {
        "model": _state(),
        "model_ema": {f"module.{key}": value for key, value in _state().items()},
        "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "epoch": 3,
    }
    return _saved(folder, content)


_MADE: dict[str, Callable[[Path], bytes]] = {
    "zip": lambda folder: _saved(folder, _state()),
    "legacy": lambda folder: _saved(folder, _state(), legacy=True),
    "safetensors": lambda folder: save(_state()),
    "described": _described,
    "training": _training,
}


def _original(random: Random, folder: Path) -> tuple[str, bytes]:
    references = sorted(_REFERENCES.glob("*.pth"))
    if references and random.random() < 0.3:
        path = random.choice(references)
        return path.name, path.read_bytes()
    name = random.choice(list(_MADE))
    return name, _MADE[name](folder)


def _reader(random: Random, path: Path, folder: Path) -> tuple[str, Callable[[], object], tuple[type[Exception], ...]]:
    """A public function that reads a weight file, and what it may raise."""
    destination = folder / f"new{random.choice(replknet.converting.SUFFIXES)}"
    level = random.choice((None, "kernels", "full"))
    readers: tuple[tuple[str, Callable[[], object], tuple[type[Exception], ...]], ...] = (
        ("load_state_dict", lambda: _check_state(replknet.load_state_dict(path)), _ALL),
        ("load_checkpoint", lambda: _check_network(replknet.load_checkpoint(path)), _ALL),
        ("create_model", lambda: _check_network(replknet.create_model("replknet_nano_k3", checkpoint=path)), _ALL),
        ("inspect_checkpoint", lambda: replknet.inspect_checkpoint(path), _ALL),
        ("load_model", lambda: _check_network(analysis.load_model(str(path)).module), (ValueError,)),
        (f"convert_checkpoint(level={level!r})", lambda: _convert(path, destination, level), (ValueError,)),
    )
    return random.choice(readers)


def _convert(source: Path, destination: Path, level: Any) -> None:
    try:
        replknet.convert_checkpoint(source, destination, level=level)
    finally:
        left = sorted(path.name for path in source.parent.iterdir() if path not in (source, destination))
        if left:
            raise WrongError(f"leaves {left[0]}")
    _check_network(replknet.load_checkpoint(destination))


def _check_state(state: dict[str, Tensor]) -> None:
    for key, value in state.items():
        if not isinstance(key, str) or not isinstance(value, Tensor):
            raise WrongError(f"{key!r} is {type(value).__name__}")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise WrongError(f"{key!r} is not a plain tensor: {value.layout}, {value.device}, {value.dtype}")


def _check_network(module: nn.Module) -> None:
    """Weights are numbers, and an image goes through."""
    _check_state(dict(module.state_dict()))
    odd = [value.dtype for value in module.parameters() if not value.is_floating_point()]
    if odd:
        raise WrongError(f"a weight is of {odd[0]}")
    if sum(value.numel() for value in module.state_dict().values()) < 1_000_000:
        with torch.no_grad():
            channels = getattr(module, "config", _network().config).in_channels
            module.float().eval()(torch.zeros(1, channels, 32, 32))


@family()
def weight_bytes(random: Random, folder: Path) -> Case:
    """Where the format has checksums (torch's zip) no changed byte changes a value."""
    name, content = _original(random, folder)
    path = folder / f"w{'.safetensors' if name in ('safetensors', 'described') else random.choice(('.pth', '.pt'))}"
    path.write_bytes(content)
    whole = replknet.load_state_dict(path) if content.startswith(b"PK") and random.random() < 0.6 else None
    path.write_bytes(mutated_bytes(random, content))
    if whole is not None:
        return Case(f"load_state_dict of {name}, other bytes", lambda: _check_same(path, whole), _ALL)
    label, run, refusals = _reader(random, path, folder)
    return Case(f"{label} of {name}, other bytes", run, refusals)


def _check_same(path: Path, whole: dict[str, Tensor]) -> None:
    found = replknet.load_state_dict(path)
    for key in found.keys() & whole.keys():
        if found[key].dtype != whole[key].dtype or not torch.equal(found[key], whole[key]):
            raise WrongError(f"{key!r} has other values, although the archive has checksums")
    if found.keys() != whole.keys():
        raise WrongError(f"{len(found)} of {len(whole)} tensors, although the archive has checksums")


@family()
def weight_archives(random: Random, folder: Path) -> Case:
    """Members of an archive with right checksums, and headers of safetensors."""
    name, content = _original(random, folder)
    path = folder / "w.pth"
    if content.startswith(b"PK"):
        changed, what = mutated_zip(random, content)
    elif content[8:9] == b"{":
        path = folder / "w.safetensors"
        size = int.from_bytes(content[:8], "little")
        header, what = mutated_json(random, content[8 : 8 + size])
        changed = len(header).to_bytes(8, "little") + header + content[8 + size :]
    else:
        changed, what = mutated_bytes(random, content[:2000]) + content[2000:], "other bytes at the beginning"
    path.write_bytes(changed)
    label, run, refusals = _reader(random, path, folder)
    return Case(f"{label} of {name}, {what}", run, refusals)


def _odd_tensor(random: Random, value: Tensor) -> tuple[Any, str]:
    base = value if value.is_floating_point() else value.float()
    makers: dict[str, Callable[[], Any]] = {
        "int64": lambda: base.long(),
        "bool": lambda: base > 0,
        "uint8": lambda: base.byte(),
        "complex64": lambda: base.to(torch.complex64),
        "float16": lambda: base.half(),
        "bfloat16": lambda: base.bfloat16(),
        "float8": lambda: base.to(torch.float8_e4m3fn),
        "float64": lambda: base.double(),
        "sparse": lambda: base.to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(base, 0.1, 0, torch.qint8),
        "meta": lambda: base.to("meta"),
        "empty": lambda: base.new_zeros(0),
        "a scalar": lambda: base.new_zeros(()),
        "without a dimension": lambda: base.flatten(),
        "with one more dimension": lambda: base[None],
        "transposed": lambda: base.T.contiguous() if base.ndim == 2 else base.movedim(0, -1).contiguous(),
        "of a huge size and one element": lambda: torch.zeros(1).expand(1 << 40),
        "of its shape, expanded": lambda: torch.zeros(1).expand(base.shape),
        "a parameter": lambda: nn.Parameter(base),
        "a longer one": lambda: torch.cat([base, base]) if base.ndim else base.repeat(2),
        "NaN": lambda: torch.full_like(base, float("nan")),
        "an array": lambda: base.numpy(),
        "a list": lambda: base.tolist(),
        "a value": lambda: random.choice(VALUES),
        "nothing": lambda: None,
    }
    kind = random.choice(list(makers))
    return makers[kind](), kind


def _odd_content(random: Random) -> tuple[Any, str]:
    """Something that `torch.save` writes and no network reads as it is."""
    state: dict[Any, Any] = dict(_state())
    key = random.choice(list(state))
    kind = random.randrange(9)
    if kind <= 2:
        for _ in range(random.choice((1, 1, 3))):
            key = random.choice(list(state))
            state[key], what = _odd_tensor(random, _state()[key])
        return state, f"{key} {what}"
    if kind == 3:
        new: Any = random.choice(
            (*TEXTS, 3, None, (1, 2), b"x", f"module.{key}", f"_orig_mod.{key}", f"backbone.{key}")
        )
        state[new] = state[key] if random.random() < 0.5 else torch.zeros(2)
        return state, f"also the key {str(new)[:40]!r}"
    if kind == 4:
        number = random.choice((*INTERESTING, 10**18))
        stage = random.choice(("stages", "transitions"))
        odd = random.choice(
            (f"{stage}.{number}.blocks.0.large_kernel.lkb_origin.conv.weight", f"{stage}.x.norm.weight")
        )
        state[odd] = torch.zeros(random.choice(((1,), (), (4, 1, 3, 3), (4, 1, 0, 0))))
        return state, f"also the key {odd}"
    if kind == 5:
        del state[key]
        return state, f"without {key}"
    if kind == 6:
        wrapper = random.choice(("model", "state_dict", "model_ema", "state_dict_ema", "average", "ema_state_dict"))
        inner: Any = random.choice((state, {}, [], None, 3, {"model": state}, {"model": {"model": {"model": state}}}))
        return {wrapper: inner, random.choice(TEXTS): random.choice(VALUES)}, f"under {wrapper}: {type(inner).__name__}"
    if kind == 7:
        loop: dict[str, Any] = {}
        loop["model"] = loop
        return loop, "a dictionary in itself"
    value = random.choice((*VALUES, torch.zeros(3), [torch.zeros(3)], {"a": {"b": torch.zeros(2)}}, _network()))
    return value, f"{type(value).__name__} as the whole"


@family()
def weight_contents(random: Random, folder: Path) -> Case:
    """Tensors of other kinds and shapes, other keys, other wrappers."""
    for _ in range(100):
        content, what = _odd_content(random)
        path = folder / f"w{random.choice(('.pth', '.pth', '.safetensors'))}"
        try:
            if path.suffix == ".safetensors":
                save_file(content, path)
            else:
                path.write_bytes(_saved(folder, content, legacy=random.random() < 0.3))
            break
        except Exception:  # not everything can be written
            path.unlink(missing_ok=True)
    label, run, refusals = _reader(random, path, folder)
    return Case(f"{label} of {path.suffix}, {what}", run, refusals)


@family()
def network_descriptions(random: Random, folder: Path) -> Case:
    """What a network's file says of itself."""
    described = _described(folder)
    size = int.from_bytes(described[:8], "little")
    metadata = json.loads(described[8 : 8 + size])["__metadata__"]
    text, what = mutated_json(random, metadata["replknet"].encode())
    path = folder / "w.safetensors"
    save_file(load(described), path, metadata={"replknet": text.decode("utf-8", "replace")})
    label, run, refusals = _reader(random, path, folder)
    if label == "load_model":
        return Case(f"{label}, description {what}", lambda: _check_loaded(path), refusals)
    return Case(f"{label}, description {what}", run, refusals)


def _check_loaded(path: Path) -> None:
    loaded = analysis.load_model(str(path))
    _check_network(loaded.module)
    images = analysis.load_images(size=loaded.input_size or 32, num_images=1, mean=loaded.mean, std=loaded.std)
    analysis.predict(loaded, images[0][None], top=1)
    repr(loaded)


@family()
def training_states(random: Random, folder: Path) -> Case:
    """A state on disk is read whole, or not at all."""
    path = folder / "state.pt"
    state = {"fingerprint": "f", "model": _state(), "step": 7}
    store_state(path, state)
    content = path.read_bytes()
    changed, what = mutated_zip(random, content) if random.random() < 0.3 else (mutated_bytes(random, content), "bytes")
    path.write_bytes(changed)
    archive = what != "bytes"

    def run() -> None:
        found, note = load_state(path, "f")
        if found is None:
            if not note:
                raise WrongError("no state, and no note")
        elif not archive:
            same = found.keys() == state.keys() and found["step"] == 7
            if not same or not all(torch.equal(found["model"][key], value) for key, value in _state().items()):
                raise WrongError("another state, although the archive has checksums")

    return Case(f"load_state, {what}", run, ())
