"""Networks in files: those of studies, weights of a network of `replknet`, TorchScript and programs of torch.export."""

import json
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn

import replknet
from analysis.images.imagenet import IMAGENET_MEAN, IMAGENET_STD
from analysis.images.preparing import check_normalization
from analysis.models.layers import kind_of, missing_head
from analysis.models.libraries import load_library, quiet
from analysis.models.loaded import DEFAULT_SIZE, LoadedModel
from analysis.models.weights import put
from analysis.runs.settings import SIDES, check_number
from analysis.runs.texts import printable
from analysis.runs.writing import plain, replacing
from replknet.checkpoints.describing import DESCRIPTION, architecture_of, infer_config
from replknet.checkpoints.programs import check_exported, program_in
from replknet.checkpoints.reading import CheckpointError, read_metadata, read_tensors, read_weights
from replknet.checkpoints.writing import write_safetensors
from replknet.creating import Misfit
from replknet.networks import build, family_of, weight_form
from replknet.networks.reparameterize import match_form

NETWORK_SUFFIX = ".safetensors"
STUDY_NETWORK = "network"
"""Name, without its suffix, of the file of a cell of a study, which is then named for its folder."""
ONNX_SUFFIX = ".onnx"
PREPARATION = "replknet.json"
"""Name inside an exported program of the description of its preprocessing."""
LIBRARY_NETWORK = "network"
"""Key of a safetensors file's metadata under which it describes a network of another library, in JSON."""
SUFFIXES = (NETWORK_SUFFIX, ".pth", ".pt", ".tar", ".bin", ".ckpt", ".ts", ".pt2", ONNX_SUFFIX)


def family_preparation(architecture: str) -> dict[str, Any]:
    """The preprocessing of an architecture of `replknet`, as arguments of `LoadedModel`; empty for another.

    Published weights of one architecture differ in the image size alone, which is left out.
    """
    if architecture in replknet.SHIPPED:
        with replknet.shipped_weights(architecture) as file:
            return _described_preparation(json.loads(read_metadata(file)[DESCRIPTION]))
    weights = next((entry for entry in replknet.PUBLISHED.values() if entry.architecture == architecture), None)
    return {} if weights is None else {"mean": weights.mean, "std": weights.std}


def _described_preparation(content: Mapping[str, Any]) -> dict[str, Any]:
    """Of a file of `save_network`, or an exported program; networks of a study are trained and tested on whole images.

    Raises:
        KeyError: If a part is missing.
        TypeError: If one is of another type.
        ValueError: If one is out of range.
    """
    mean, std, size, crop = tuple(content["mean"]), tuple(content["std"]), content["input_size"], content.get("crop", 1)
    check_normalization(mean, std)
    if size is not None and not (type(size) is int and size > 0):
        raise ValueError(f"input_size={size!r}: expected a positive number of pixels")
    if crop is not None and not 0 < crop <= 1:
        raise ValueError(f"crop={crop!r}: expected a number in (0, 1]")
    return {"mean": mean, "std": std, "input_size": size, "crop": crop}


def _described_classes(content: Mapping[str, Any]) -> tuple[str, ...]:
    names = content["classes"]
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise TypeError("classes: expected a list of names")
    return tuple(names)


def save_network(
    path: str | PathLike[str],
    module: replknet.Network,
    *,
    classes: Sequence[str],
    input_size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
    crop: float | None = 1.0,
    training: Mapping[str, Any] | None = None,
) -> None:
    """Write weights, architecture and preprocessing to one safetensors file, whole or not at all.

    The network may be in any form; a re-parameterised one is read back as such.

    Args:
        path: Ends in .safetensors.
        module: The network.
        classes: Names of its outputs.
        input_size: Side in pixels that it was trained for.
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, divided by.
        crop: See `LoadedModel`.
        training: How it was trained, anything that JSON holds; see `plain` for infinite numbers.

    Raises:
        ValueError: If a value is out of range, or the network has layers that its configuration does not tell; nothing
            is written then.
    """
    state = module.state_dict()
    with torch.device("meta"):
        readable = build(module.config)
        match_form(readable, weight_form(state))
    misfit = str(Misfit.of(readable, state))
    if misfit:
        raise ValueError(
            "module: it has other layers than its configuration says (parametrized, pruned or replaced ones?), and its "
            f"file could not be read back: {misfit}"
        )
    family = family_of(module.config)
    content: dict[str, Any] = {} if family.name == "RepLKNet" else {"family": family.name}
    content |= {"config": asdict(module.config), "classes": list(classes), "input_size": input_size}
    check_normalization(mean, std)
    check_number("input_size", input_size, SIDES)
    content |= {"mean": list(mean), "std": list(std), "crop": crop, "training": dict(training or {})}
    save_weights(path, module, {DESCRIPTION: json.dumps(plain(content), allow_nan=False)})


def save_weights(path: str | PathLike[str], module: nn.Module, metadata: Mapping[str, str] | None = None) -> None:
    """Write the weights of any module to a safetensors file, whole or not at all."""
    with replacing(path) as temporary:
        write_safetensors(temporary, module.state_dict(), metadata)


def load_file(path: Path, *, trust: bool = False) -> LoadedModel:
    """The network in a file, of the kind that its content shows.

    Args:
        path: The file.
        trust: Load programs.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds none, its description does not fit, or it is a program that is not trusted.
    """
    try:
        program = program_in(path) if path.is_file() else ""
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OSError) as error:
        raise ValueError(f"model={str(path)!r}: a damaged zip archive ({error})") from error
    if program and not trust:
        raise ValueError(
            f"model={str(path)!r}: a {program}, which may run code and write files; if you trust whoever made it, "
            "load it with trust=True"
        )
    if program:
        return _load_program(path, _load_scripted if program == "TorchScript program" else _load_exported)
    if path.suffix == ONNX_SUFFIX:
        raise ValueError(
            f"model={str(path)!r}: ONNX files are run by onnxruntime, not by this toolkit; expected a file of PyTorch, "
            "such as the network exported to .pt or .pt2"
        )
    if not path.is_file():
        kind = "is a folder" if path.is_dir() else "is no regular file"
        reason = kind if path.exists() else "no such file"
        raise FileNotFoundError(f"model={str(path)!r}: {reason}")
    if path.suffix == NETWORK_SUFFIX:
        try:
            description = read_metadata(path).get(DESCRIPTION)
        except SafetensorError as error:
            raise ValueError(f"model={str(path)!r}: not a safetensors file ({error})") from error
        if description is not None:
            return _load_described(path, description)
        if LIBRARY_NETWORK in read_metadata(path):
            return _load_of_library(path)
    return _load_weights(path)


def _name(path: Path) -> str:
    return printable(path.resolve().parent.name if path.stem == STUDY_NETWORK else path.stem)


def _load_described(path: Path, description: str) -> LoadedModel:
    """A file of `save_network`."""
    try:
        content = json.loads(description)
        module = replknet.load_checkpoint(path)
        return LoadedModel(
            name=_name(path),
            module=module,
            fresh=lambda: build(module.config),
            classes=_described_classes(content),
            training=dict(content["training"]),
            **_described_preparation(content),
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"model={str(path)!r}: its description does not fit ({error})") from error


def _load_weights(path: Path) -> LoadedModel:
    """Weights in any format, whose architecture is read from their shapes."""
    try:
        module = replknet.load_checkpoint(path)
    except CheckpointError as error:
        state = read_weights(path)[0]
        if infer_config(state) is not None:
            raise
        raise ValueError(
            f"model={str(path)!r}: weights, which do not tell their architecture (the first keys are "
            f"{', '.join(list(state)[:3])}); name that, such as timm:resnet50, torchvision:resnet50 or "
            f"file.py:callable, with checkpoint={str(path)!r}"
        ) from error
    own = family_preparation(architecture_of(module.config))
    size = own.get("input_size", DEFAULT_SIZE)
    return LoadedModel(
        name=_name(path),
        module=module,
        fresh=lambda: build(module.config),
        notes=(
            f"{path.name}: bare weights; the architecture was read from them, images get the preprocessing of its "
            f"family at {size} pixels, and the classes have no names",
        ),
        **own,
    )


def save_library_network(
    path: str | PathLike[str],
    loaded: LoadedModel,
    *,
    classes: Sequence[str],
    input_size: int,
    training: Mapping[str, Any],
) -> None:
    """Write a network of timm or torchvision, with its name there and its preprocessing, for `load_model`.

    Args:
        path: Ends in .safetensors.
        loaded: The network, made by `load_library` with that name, such as "timm:resnet18", in its `name`.
        classes: Names of its outputs.
        input_size: Side in pixels that it was trained for.
        training: How, anything that JSON holds.
    """
    content = {"spec": loaded.name, "classes": list(classes), "input_size": input_size, "training": dict(training)}
    content |= {"mean": list(loaded.mean), "std": list(loaded.std), "crop": None}
    save_weights(path, loaded.module, {LIBRARY_NETWORK: json.dumps(plain(content), allow_nan=False)})


def _load_of_library(path: Path) -> LoadedModel:
    """A file of `save_library_network`."""
    try:
        content = json.loads(read_metadata(path)[LIBRARY_NETWORK])
        spec, classes = content["spec"], _described_classes(content)
        if not isinstance(spec, str) or not spec.startswith(("timm:", "torchvision:")):
            raise ValueError(f"spec={spec!r}: expected timm:NAME or torchvision:NAME")
        state = read_tensors(path)[0]
        with torch.device("meta"):  # a file takes no more memory than it has bytes
            misfit = str(Misfit.of(load_library(spec, pretrained=False, num_classes=len(classes)).module, state))
        if misfit:
            raise ValueError(misfit)
        made = load_library(spec, pretrained=False, num_classes=len(classes))
        put(made.module, state)
        return replace(
            made,
            name=_name(path),
            transform=None,
            initial="",
            classes=classes,
            training=dict(content["training"]),
            **_described_preparation(content),
        )
    except (KeyError, TypeError, ValueError, RuntimeError, RecursionError) as error:
        raise ValueError(f"model={str(path)!r}: its description does not fit ({error})") from error


class _Scripted(nn.Module):
    """A TorchScript program, which takes no hooks, in a module that does."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    @property
    def original_name(self) -> str:
        """Of the class that it was made of."""
        return kind_of(self.program)

    def forward(self, x: torch.Tensor) -> Any:
        return self.program(x)


def _load_scripted(path: Path, kept: dict[str, Any]) -> nn.Module:
    return _Scripted(torch.jit.load(path, "cpu", kept))  # type: ignore[no-untyped-call]


def _load_exported(path: Path, kept: dict[str, Any]) -> nn.Module:
    check_exported(path)
    return torch.export.unflatten(torch.export.load(path, extra_files=kept))


def _load_program(path: Path, load: Callable[[Path, dict[str, Any]], nn.Module]) -> LoadedModel:
    kept: dict[str, Any] = {PREPARATION: ""}
    try:
        with warnings.catch_warnings(), quiet("torch"):
            warnings.simplefilter("ignore")  # TorchScript is on its way out; its files are still there
            module = load(path, kept)
    except Exception as error:  # torch raises RuntimeErrors, KeyErrors and its own types here
        raise ValueError(
            f"model={str(path)!r}: cannot be loaded ({str(error).strip().partition(chr(10))[0]})"
        ) from error
    if not kept[PREPARATION]:
        note = f"{path.name}: names no preprocessing; ImageNet's at {DEFAULT_SIZE} pixels is used"
        return LoadedModel(name=_name(path), module=module, notes=(note,))
    try:
        known = json.loads(kept[PREPARATION])
        prepared = _described_preparation(known) | {"classes": _described_classes(known)}
        headless, own_transform = known.get("headless"), known["own_transform"]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"model={str(path)!r}: its description does not fit ({error})") from error
    if headless:
        vars(module)["num_classes"] = 0  # as timm says it, for `missing_head`
    notes: tuple[str, ...] = ()
    if own_transform:
        notes = (f"{path.name}: the file keeps size, mean and standard deviation, not the library's own resizing",)
    return LoadedModel(name=_name(path), module=module, notes=notes, **prepared)


def describe_preparation(loaded: LoadedModel, num_outputs: int) -> str:
    """What an exported program keeps of the preprocessing, and whether it has class scores, as JSON."""
    names = ("mean", "std", "input_size", "crop", "classes")
    kept = {name: getattr(loaded, name) for name in names}
    headless = bool(missing_head(loaded.module, num_outputs))
    return json.dumps(kept | {"own_transform": loaded.transform is not None, "headless": headless})
