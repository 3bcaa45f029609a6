"""Weight files: what they hold, under the official names."""

import argparse
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from replknet.checkpoints.naming import (
    BOOKKEEPING,
    EMA_WRAPPERS,
    WRAPPERS,
    Naming,
    convert_state_dict,
    naming_of,
    strip_parallel,
)


class CheckpointError(ValueError):
    """A weight file that cannot be read, or does not fit the model it is loaded into."""


def load_state_dict(path: str | PathLike[str], *, use_ema: bool = True) -> dict[str, Tensor]:
    """The weights in a file, under the official key names.

    Reads files of `torch.save` (the official repository's, timm's and mmpretrain's layouts: flat, under `model` or
    `state_dict`, with averaged weights, with `module.` prefixes, 22K heads under `head.cls_22k`) and safetensors. Only
    tensors are unpickled (`weights_only=True`).

    Args:
        path: The file.
        use_ema: Take the averaged (EMA) weights where the file has them beside the last ones.

    Returns:
        Weights on the CPU, in the file's dtype, by official key.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is not a weight file or holds something that is not a tensor.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint={str(path)!r}: {'is a folder' if path.is_dir() else 'no such file'}")
    return convert_state_dict(_unwrap(_read(path), path, use_ema), to="official")


@dataclass(frozen=True)
class FileLayout:
    """How a weight file keeps its weights: its format, the key over them (empty if none), and whose key names."""

    format: Literal["safetensors", "torch"]
    wrapper: str
    naming: Naming


def file_layout(path: Path, *, use_ema: bool = True) -> FileLayout:
    """The layout of a file that `load_state_dict` reads."""
    content = _read(path)
    wrappers = [*(EMA_WRAPPERS if use_ema else ()), *WRAPPERS]
    wrapper = next((key for key in wrappers if isinstance(content.get(key), Mapping)), "")
    keys = [strip_parallel(str(key)) for key in (content[wrapper] if wrapper else content)]
    return FileLayout("safetensors" if _is_safetensors(path) else "torch", wrapper, naming_of(keys))


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; empty for files in another format."""
    if not _is_safetensors(path):
        return {}
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def _is_safetensors(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(9)[8:9] == b"{"  # eight bytes of length, then a JSON header


def _read(path: Path) -> Any:
    try:
        if _is_safetensors(path):
            return load_file(path)
        # The official training code saves its command line beside the weights.
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, EOFError, RuntimeError, ValueError, KeyError) as error:
        # torch's own text on what it refuses to unpickle advises to do it unsafely.
        refused = isinstance(error, pickle.UnpicklingError)
        reason = "it holds something else than tensors" if refused else str(error).strip().partition("\n")[0]
        raise CheckpointError(f"checkpoint={str(path)!r}: not a readable weight file ({reason})") from error


def _unwrap(content: Any, path: Path, use_ema: bool) -> dict[str, Tensor]:
    for wrapper in (*(EMA_WRAPPERS if use_ema else ()), *WRAPPERS):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"checkpoint={str(path)!r}: expected a dictionary of tensors")
    state = {}
    for key, value in content.items():
        name = strip_parallel(str(key))
        if name in BOOKKEEPING:
            continue
        if not isinstance(value, Tensor):
            known = ", ".join((*EMA_WRAPPERS, *WRAPPERS))
            raise CheckpointError(
                f"checkpoint={str(path)!r}: the entry {key!r} is {type(value).__name__}, not a tensor; "
                f"expected weights at the top level or under one of {known}"
            )
        state[name] = value
    return state
