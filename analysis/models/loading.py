"""One string to a model with its preprocessing."""

import importlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from analysis.models.files import ONNX_SUFFIX, SUFFIXES, load_file
from analysis.models.libraries import LIBRARIES, from_timm
from analysis.models.loaded import LoadedModel
from analysis.models.replknets import is_replknet, load_replknet
from analysis.runs.settings import SEEDS, check_number

SPECS = (
    "a RepLKNet (replknet models lists them), timm:NAME, torchvision:NAME, hf:NAME (transformers), "
    "package.module:callable, or a file: weights of a RepLKNet, TorchScript or an exported program (.pt2)"
)
"""What `load_model` takes, for messages."""


def names_library(spec: str) -> bool:
    """Whether a name is that of a network of another library, such as "timm:resnet18"."""
    prefix, _, rest = spec.partition(":")
    return prefix in LIBRARIES and bool(rest)


def as_loaded(model: LoadedModel | nn.Module | str) -> LoadedModel:
    """A model with its preprocessing: of a name what `load_model` gives, of a module of timm its own.

    Of any other module ImageNet's mean and standard deviation at 224 pixels.
    """
    if isinstance(model, str):
        return load_model(model)
    if isinstance(model, LoadedModel):
        return model
    if isinstance(getattr(model, "pretrained_cfg", None), dict):
        return from_timm(model, type(model).__name__)
    return LoadedModel(name=type(model).__name__, module=model)


def load_model(
    spec: str,
    *,
    checkpoint: str | PathLike[str] | None = None,
    kernel_sizes: Sequence[int] | None = None,
    small_kernel: int | None = None,
    pretrained: bool = True,
    seed: int = 0,
) -> LoadedModel:
    """A model by name.

    Args:
        spec: "replknet_31b" or a sibling (random weights without a checkpoint, but for the nano networks),
            "replknet_31b.in1k_224" or another of `replknet.PUBLISHED`, "timm:NAME", "torchvision:NAME", "hf:NAME" (an
            image classifier of transformers, from the hub or a folder), "package.module:callable" (a function without
            arguments that returns a module or a `LoadedModel`), or a file: weights of a RepLKNet in any format
            (`save_network` also describes the network; each network of a study is such a file), TorchScript, or a
            program of torch.export (.pt2).
        checkpoint: A weight file; RepLKNets only.
        kernel_sizes: Large kernel of each stage; RepLKNets only. A small kernel that does not fit is left out.
        small_kernel: Parallel kernel, 0 for none; RepLKNets only. By default the published one.
        pretrained: Load the published weights, or those of the nano networks that come with the package.
        seed: Of random weights.

    Raises:
        ValueError: If the name is unknown, an option does not apply to it, or its weights cannot be had.

    Example:
        >>> loaded = load_model("replknet_nano_k31")
        >>> loaded.input_size, loaded.classes[:3]
        (64, ('arrow', 'bolt', 'crescent'))
    """
    options = {"checkpoint": checkpoint, "kernel_sizes": kernel_sizes, "small_kernel": small_kernel}
    if not is_replknet(spec):
        for name, value in options.items():
            if value is not None:
                raise ValueError(f"{name}={value!r}: applies to RepLKNets by name only, not to {spec!r}")
        if not pretrained and not names_library(spec):
            raise ValueError(f"pretrained=False: applies to networks by name only, not to {spec!r}")
    if checkpoint is not None and not pretrained:
        raise ValueError(f"checkpoint={str(checkpoint)!r}: expected none with pretrained=False")
    check_number("seed", seed, SEEDS)
    torch.manual_seed(seed)
    prefix, _, rest = spec.partition(":")
    if is_replknet(spec):
        loaded = load_replknet(spec, checkpoint, kernel_sizes, small_kernel, pretrained)
    elif names_library(spec):
        if prefix == "timm":
            from replknet import timm_models  # noqa: F401  the family among timm's own
        loaded = LIBRARIES[prefix](rest, pretrained)
    elif spec.endswith(SUFFIXES):
        loaded = load_file(Path(spec))
    elif spec.endswith(ONNX_SUFFIX):
        raise ValueError(f"model={spec!r}: ONNX files cannot be read back into PyTorch; export to .pt or .pt2 for that")
    elif rest:
        loaded = _load_callable(spec)
    else:
        raise ValueError(f"model={spec!r}: expected {SPECS}")
    loaded.module.eval()
    return replace(loaded, initial=f"{loaded.initial}, seed {seed}") if loaded.initial else loaded


def _load_callable(spec: str) -> LoadedModel:
    module_name, _, function_name = spec.partition(":")
    try:
        function: Callable[[], Any] = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model={spec!r}: cannot be imported ({error})") from error
    try:
        made = function()
    except Exception as error:  # a user's own code
        raise ValueError(f"model={spec!r}: failed with {type(error).__name__}: {error}") from error
    if isinstance(made, LoadedModel):
        return made
    if isinstance(made, nn.Module):
        return LoadedModel(name=function_name, module=made)
    raise ValueError(f"model={spec!r}: returned {type(made).__name__}; expected a torch.nn.Module or a LoadedModel")
