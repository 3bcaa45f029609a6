"""Reading weight files: the only module that knows other people's key names."""

import argparse
import json
import pickle
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from replknet.config import PRESETS, RepLKNetConfig
from replknet.reparam import Form

Naming = Literal["official", "mmpretrain"]

# Wrappers under which training codes keep weights, the averaged ones first.
_EMA_WRAPPERS = ("state_dict_ema", "model_ema", "ema_state_dict")
_WRAPPERS = ("model", "state_dict")
_PARALLEL_PREFIXES = ("module.", "_orig_mod.")
_NUM_LISTED = 10

DESCRIPTION = "replknet"
"""Key of a safetensors file's metadata under which it describes its network, in JSON; "config" is the architecture."""


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
    wrappers = [*(_EMA_WRAPPERS if use_ema else ()), *_WRAPPERS]
    wrapper = next((key for key in wrappers if isinstance(content.get(key), Mapping)), "")
    keys = [_strip_parallel(str(key)) for key in (content[wrapper] if wrapper else content)]
    naming: Naming = "mmpretrain" if any(key.startswith(("backbone.", "head.fc.")) for key in keys) else "official"
    return FileLayout("safetensors" if _is_safetensors(path) else "torch", wrapper, naming)


def read_metadata(path: Path) -> dict[str, str]:
    """What a safetensors file says of itself; empty for files in another format."""
    if not _is_safetensors(path):
        return {}
    with safe_open(path, framework="pt") as file:
        return file.metadata() or {}


def described_config(path: Path) -> RepLKNetConfig | None:
    """The architecture that a safetensors file names in its metadata."""
    description = read_metadata(path).get(DESCRIPTION)
    if description is None:
        return None
    try:
        return RepLKNetConfig(**json.loads(description)["config"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"checkpoint={str(path)!r}: its description does not fit ({error})") from error


def convert_state_dict(state: Mapping[str, Tensor], to: Naming) -> dict[str, Tensor]:
    """The same tensors under another code base's key names.

    Args:
        state: Weights of a RepLKNet in either naming, training or merged form.
        to: "official" or "mmpretrain". Converting there and back gives the same keys in the same order.

    Raises:
        ValueError: If `to` is unknown, or the norms cannot be named in mmpretrain's way: it has one place for the
            norm on the last stage's map and the norm before the head.

    Example:
        >>> list(convert_state_dict({"head.weight": torch.ones(2, 3)}, to="mmpretrain"))
        ['head.fc.weight']
    """
    if to not in ("official", "mmpretrain"):
        raise ValueError(f"to={to!r}: expected 'official' or 'mmpretrain'")
    official = _to_official(state)
    if to == "official":
        return official
    last = _last_stage(official)
    if any(key.startswith("norm.") for key in official) and any(key.startswith(f"{last}.norm.") for key in official):
        raise ValueError(f"to='mmpretrain': it calls both 'norm' and '{last}.norm' '{last}.norm'; drop one of them")
    renamed = {}
    for key, value in official.items():
        if key.startswith("head."):
            renamed["head.fc." + key.removeprefix("head.")] = value
        elif key.startswith("norm."):
            renamed[f"backbone.{last}.{key}"] = value
        else:
            renamed["backbone." + key] = value
    return renamed


def _to_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    has_head = any(key.startswith("head.") for key in state)
    bare = {key.removeprefix("backbone."): value for key, value in state.items()}
    last = _last_stage(bare)
    norms = {key.split(".norm.")[0] for key in bare if key.startswith("stages.") and ".norm." in key}
    # mmpretrain keeps the norm before the head on the last stage; norms on several stages are intermediate ones.
    final_norm = not any(key.startswith("norm.") for key in bare) and (norms == {last} or (has_head and last in norms))
    renamed = {}
    for key, value in bare.items():
        if key.startswith(("head.fc.", "head.cls_22k.")):
            key = "head." + key.rsplit(".", 1)[1]
        elif final_norm and key.startswith(f"{last}.norm."):
            key = key.removeprefix(f"{last}.")
        renamed[key] = value
    return renamed


def _last_stage(state: Iterable[str]) -> str:
    stages = [int(key.split(".")[1]) for key in state if key.startswith("stages.")]
    return f"stages.{max(stages, default=0)}"


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
    for wrapper in (*(_EMA_WRAPPERS if use_ema else ()), *_WRAPPERS):
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"checkpoint={str(path)!r}: expected a dictionary of tensors")
    state = {}
    for key, value in content.items():
        name = _strip_parallel(str(key))
        if name in ("steps", "n_averaged"):  # bookkeeping of averaged models, not weights
            continue
        if not isinstance(value, Tensor):
            known = ", ".join((*_EMA_WRAPPERS, *_WRAPPERS))
            raise CheckpointError(
                f"checkpoint={str(path)!r}: the entry {key!r} is {type(value).__name__}, not a tensor; "
                f"expected weights at the top level or under one of {known}"
            )
        state[name] = value
    return state


def _strip_parallel(key: str) -> str:
    while key.startswith(_PARALLEL_PREFIXES):
        key = key.partition(".")[2]
    return key


def weight_form(state: Mapping[str, Tensor]) -> Form:
    """Whether official-named weights are in training form, have merged kernels, or have every batch norm folded."""
    if not any(".lkb_reparam." in key for key in state):
        return "training"
    return "folded" if "stem.0.conv.bias" in state else "merged"


@dataclass(frozen=True)
class _Misfit:
    missing: list[str]
    unexpected: list[str]
    misshaped: list[str]

    def __str__(self) -> str:
        parts = []
        for name in ("missing", "unexpected", "misshaped"):
            keys = getattr(self, name)
            if keys:
                more = f" and {len(keys) - _NUM_LISTED} more" if len(keys) > _NUM_LISTED else ""
                label = "mis-shaped" if name == "misshaped" else name
                parts.append(f"{len(keys)} {label}: {', '.join(keys[:_NUM_LISTED])}{more}")
        return "; ".join(parts)


def load_into(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load official-named weights strictly; `source` names them in the error.

    Raises:
        CheckpointError: If any key is missing, unexpected or has another shape.
    """
    own = model.state_dict()
    # The counter of training batches is absent from some exported files, and no output depends on it.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    unexpected = [key for key in state if key not in own]
    misshaped = [
        f"{key} {list(state[key].shape)} for {list(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    misfit = _Misfit(missing, unexpected, misshaped)
    if not (missing or unexpected or misshaped):
        model.load_state_dict({key: state.get(key, value) for key, value in own.items()})
        return
    num_classes = state["head.weight"].shape[0] if "head.weight" in state else 0
    differing = [*missing, *unexpected, *(entry.split()[0] for entry in misshaped)]
    if all(key in ("head.weight", "head.bias") for key in differing):
        built = own["head.weight"].shape[0] if "head.weight" in own else 0
        how = f"pass num_classes={num_classes} to build the file's head" if num_classes else "the file has no head"
        raise CheckpointError(
            f"checkpoint={source!r}: its head has {num_classes} classes, the model's {built}; {how}, or "
            "num_classes=0 to leave heads out and call reset_classifier afterwards"
        )
    raise CheckpointError(f"checkpoint={source!r} does not fit the model: {misfit}. {describe(state)}")


def describe(state: Mapping[str, Tensor]) -> str:
    """One sentence on the architecture that official-named weights look like."""
    config = infer_config(state)
    if config is None:
        return f"The file does not look like a RepLKNet; its first keys are {', '.join(list(state)[:3])}"
    small = "merged" if weight_form(state) != "training" else str(config.small_kernel)
    return (
        f"The file looks like {architecture_of(config)} (kernel_sizes={config.kernel_sizes}, small kernel {small}, "
        f"num_classes={config.num_classes})"
    )


def architecture_of(config: RepLKNetConfig) -> str:
    """The name of an architecture in `PRESETS`, whatever its head, or a description."""
    shape = (config.layers, config.channels, config.kernel_sizes)
    names = [name for name, preset in PRESETS.items() if (preset.layers, preset.channels, preset.kernel_sizes) == shape]
    return names[0] if names else f"a RepLKNet with layers={config.layers}, channels={config.channels}"


def infer_config(state: Mapping[str, Tensor]) -> RepLKNetConfig | None:
    """The architecture of official-named weights, from their shapes; None if they are not a RepLKNet's.

    The drop-path rate is not in the weights and stays 0; nor is the small kernel after a merge, which then is None.
    """
    large = {}
    for key, value in state.items():
        if key.endswith(("large_kernel.lkb_origin.conv.weight", "large_kernel.lkb_reparam.weight")):
            large[key.partition(".large_kernel.")[0]] = value
    try:
        num_stages = 1 + max(int(block.split(".")[1]) for block in large)
        firsts = [f"stages.{stage}.blocks.0" for stage in range(num_stages)]
        channels = [state[f"{block}.pw1.conv.weight"].shape[1] for block in firsts]
        smalls = [
            value.shape[-1] for key, value in state.items() if key.endswith("large_kernel.small_conv.conv.weight")
        ]
        norms = [f"stages.{stage}.norm.weight" in state for stage in range(num_stages)]
        return RepLKNetConfig(
            layers=tuple(sum(block.startswith(f"stages.{stage}.") for block in large) for stage in range(num_stages)),
            channels=tuple(channels),
            kernel_sizes=tuple(large[block].shape[-1] for block in firsts),
            small_kernel=smalls[0] if smalls else None,
            dw_ratio=large[firsts[0]].shape[0] / channels[0],
            ffn_ratio=state["stages.0.blocks.1.pw1.conv.weight"].shape[0] / channels[0],
            in_channels=state["stem.0.conv.weight"].shape[1],
            num_classes=state["head.weight"].shape[0] if "head.weight" in state else 0,
            norm_intermediate_features=all(norms),
        )
    except (KeyError, ValueError, IndexError):
        return None
