"""Weight files: what they hold, under the official names."""

import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from replknet.checkpoints import archives
from replknet.checkpoints.naming import (
    BOOKKEEPING,
    EMA_WRAPPERS,
    WRAPPERS,
    Naming,
    convert_state_dict,
    naming_of,
    strip_parallel,
    weight_keys,
)
from replknet.checkpoints.programs import program_in
from replknet.checkpoints.unpickling import StoredTensor, path_of

_BEGINNINGS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file that it stands for; `git lfs pull` fetches that"),
    (b"<!doctype html", "an HTML page; the download went wrong"),
    (b"<html", "an HTML page; the download went wrong"),
    (b"<?xml", "an XML page; the download went wrong"),
    (b"\x1f\x8b", "a gzip archive; unpack it first"),
    (b"\x89hdf", "an HDF5 file, as of Keras"),
    (b"\x93numpy", "an array of NumPy"),
)
"""In lower case."""
_LONGEST_NAME = 200
_LONGEST_REASON = 300


class CheckpointError(ValueError):
    """A weight file that cannot be read, or does not fit the model it is loaded into."""


def load_state_dict(path: str | PathLike[str], *, use_ema: bool = True) -> dict[str, Tensor]:
    """The weights in a file, under the official key names.

    Reads files of `torch.save` (the official repository's, timm's and mmpretrain's layouts: flat, under `model` or
    `state_dict`, with averaged weights, with `module.` prefixes, 22K heads under `head.cls_22k`) and safetensors. Only
    tensors are unpickled: of whatever else a file holds, nothing is imported or called. What weights say of their sizes
    is compared with the file's before memory is taken. Of a zip file of `torch.save` the checksums of what is read are
    verified; safetensors files, and those from before version 1.6 of PyTorch, have none, so that a flipped bit in their
    numbers is not seen.

    Args:
        path: The file.
        use_ema: Take the averaged (EMA) weights where the file has them beside the last ones. Which are which, its own
            marks say: mmengine swaps them.

    Returns:
        Weights on the CPU, in the file's dtype, by official key.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is not a weight file or a damaged one, or its weights are something that is not a
            tensor, have no names that weights can have, or take more memory than the file has bytes.
    """
    return read_weights(Path(path), use_ema=use_ema)[0]


@dataclass(frozen=True)
class FileLayout:
    """How a weight file keeps its weights.

    Args:
        format: Of the file.
        wrapper: The key over the weights that are taken; empty if they are at the top.
        beside: The key over the last weights, where those taken are averaged ones beside them; else empty.
        naming: Whose key names.
    """

    format: Literal["safetensors", "torch"]
    wrapper: str
    beside: str
    naming: Naming


def read_weights(path: Path, *, use_ema: bool = True) -> tuple[dict[str, Tensor], FileLayout]:
    """What `load_state_dict` returns, and the layout of the file."""
    state, layout = read_tensors(path, use_ema=use_ema)
    try:
        return convert_state_dict(state, to="official"), layout
    except ValueError as error:
        raise CheckpointError(f"checkpoint={str(path)!r}: {str(error).removeprefix('state: ')}") from error


def read_tensors(path: Path, *, use_ema: bool = True) -> tuple[dict[str, Tensor], FileLayout]:
    """The weights of any network, read as by `load_state_dict`, under the names in the file, and its layout."""
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "is no regular file"
        reason = kind if path.exists() else "no such file"
        raise FileNotFoundError(f"checkpoint={str(path)!r}: {reason}")
    with _opened(path) as content:
        wrappers, beside = [], ""
        for _ in range(2):  # a wrapper may be in another one
            if not isinstance(content, Mapping):
                break
            averaged, last = weight_keys(content)
            if averaged and not last and not use_ema:
                raise CheckpointError(f"checkpoint={str(path)!r}: use_ema=False, but it has averaged weights only")
            wrapper = averaged if averaged and use_ema else last
            if not wrapper:
                break
            beside = beside or (last if wrapper == averaged else "")
            content = content[wrapper]
            wrappers.append(wrapper)
        state = _tensors(content, path)
    form: Literal["safetensors", "torch"] = "safetensors" if _is_safetensors(path) else "torch"
    try:
        naming = naming_of(state)
    except ValueError as error:
        raise CheckpointError(f"checkpoint={str(path)!r}: {str(error).removeprefix('state: ')}") from error
    return state, FileLayout(form, ".".join(wrappers), beside, naming)


def read_content(path: Path) -> Any:
    """All that a file of `torch.save` holds, in plain dictionaries, lists and tuples; of other objects their names.

    Raises:
        CheckpointError: If it is damaged.
    """
    with _damage_told(path), archives.opened(path) as content:
        return archives.with_tensors(content)


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; empty for files in another format.

    Raises:
        CheckpointError: If it is damaged.
    """
    if not _is_safetensors(path):
        return {}
    with _damage_told(path), safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:9] == b"{"  # eight bytes of length, then a JSON header


@contextmanager
def _damage_told(path: Path, entry: str = "") -> Iterator[None]:
    """Any error becomes one that names the file, and the entry in it."""
    try:
        yield
    except Exception as error:  # the formats are foreign, and a damaged file raises anything
        reason = str(error).strip().partition("\n")[0][:_LONGEST_REASON]
        reason = reason if reason.isprintable() else repr(reason)
        if not reason or not isinstance(error, ValueError):
            reason = f"{type(error).__name__}: {reason}".removesuffix(": ")
        if entry:
            reason = f"the entry {entry!r}: {reason}"
        raise CheckpointError(f"checkpoint={str(path)!r}: not a readable weight file ({reason})") from error


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """What a file holds, with its tensors or notes of them."""
    with ExitStack() as stack:
        other = ""
        with _damage_told(path):
            safe = _is_safetensors(path)
            other = "" if safe else _other_kind(path)
            if not other:
                content = _safe_tensors(path) if safe else stack.enter_context(archives.opened(path))
        if other:
            raise CheckpointError(f"checkpoint={str(path)!r}: not a readable weight file (it is {other})")
        yield content


def _safe_tensors(path: Path) -> dict[str, Tensor]:
    """In memory of their own: those of the library change when the file does."""
    return {key: value.clone() for key, value in load_file(path).items()}


def _other_kind(path: Path) -> str:
    """What a file is that `torch.save` has not written; empty for those that it has."""
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "empty"
    if not any(head):
        return "nothing but zeros at its beginning; the download or copy did not finish"
    text = head.lstrip().lower()
    known = next((kind for beginning, kind in _BEGINNINGS if text.startswith(beginning)), "")
    if known:
        return known
    if head.startswith(b"PK"):
        return _other_archive(path)
    if tarfile.is_tarfile(path):  # torch would unpack it
        return "a tar archive; unpack it first"
    if archives.OLD_MAGIC in head[:64]:
        return ""
    if head.startswith(b"\x80"):
        return "a pickle that torch.save has not written"
    if text.isascii() and not any(byte < 9 for byte in head):
        return f"text that begins {head[:40].decode()!r}"
    return f"of no known format; it begins {head[:8]!r}"


def _other_archive(path: Path) -> str:
    if not zipfile.is_zipfile(path):
        return "a cut zip archive; the download or copy did not finish"
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    program = program_in(path)
    if program:
        return f"a {program}, not weights alone"
    if not archives.data_names(names):
        return (
            f"a zip archive of other files, such as {names[0][:_LONGEST_NAME]!r}" if names else "an empty zip archive"
        )
    return ""


def _tensors(content: Any, path: Path) -> dict[str, Tensor]:
    where = f"checkpoint={str(path)!r}"
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{where}: it holds a whole object, {path_of(content)[:_LONGEST_NAME]}; expected a dictionary of tensors, "
            "such as module.state_dict()"
        )
    if not content:
        raise CheckpointError(f"{where}: it holds an empty dictionary; expected one of tensors")
    state: dict[str, Tensor] = {}
    sources: dict[str, str] = {}
    wrapped = [key for key in (*EMA_WRAPPERS, *WRAPPERS) if key in content]
    for key in dict.fromkeys((*wrapped, *content)):
        if not isinstance(key, str) or not key.isprintable() or len(key) > _LONGEST_NAME:
            name = repr(key[:_LONGEST_NAME]) if isinstance(key, str) else f"of the type {path_of(key)}"
            raise CheckpointError(f"{where}: it has a key that no weight has, {name}")
        name, value = strip_parallel(key), content[key]
        if name in BOOKKEEPING:
            continue
        if name in sources:
            raise CheckpointError(f"{where}: {sources[name]!r} and {key!r} are both {name!r}; expected one of them")
        sources[name] = key
        if not isinstance(value, (Tensor, StoredTensor)):
            known = ", ".join((*EMA_WRAPPERS, *WRAPPERS))
            raise CheckpointError(
                f"{where}: the entry {key!r} is {path_of(value)[:_LONGEST_NAME]}, not a tensor; expected weights, "
                f"such as module.state_dict(), at the top level or under one of {known}"
            )
        if isinstance(value, StoredTensor):
            with _damage_told(path, key):
                value = value.read()
        if value.is_complex():
            raise CheckpointError(f"{where}: the entry {key!r} is of {value.dtype}; expected real weights")
        state[name] = value
    size, needed = path.stat().st_size, sum(value.numel() * value.itemsize for value in state.values())
    if needed > size:
        largest = max(state, key=lambda name: state[name].numel())
        raise CheckpointError(
            f"{where}: its weights take {needed:,} bytes, and it has {size:,}; expected none that are expanded or "
            f"share memory (the largest, {largest!r}, is of the shape {list(state[largest].shape)})"
        )
    return state
