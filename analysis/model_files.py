"""Networks in files: those of studies, weights of a RepLKNet, TorchScript and programs of torch.export."""

import json
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

import replknet
from analysis.images import IMAGENET_MEAN, IMAGENET_STD
from analysis.loaded_model import HALF, LoadedModel
from replknet.checkpoints import DESCRIPTION, read_metadata

NETWORK_SUFFIX = ".safetensors"
STUDY_NETWORK = "network"
"""Name, without its suffix, of the file of a cell of a study, which is then named for its folder."""
EXPORTED_SUFFIX = ".pt2"
SUFFIXES = (NETWORK_SUFFIX, ".pth", ".pt", ".tar", ".bin", ".ckpt", ".ts", EXPORTED_SUFFIX)


def save_network(
    path: str | PathLike[str],
    module: replknet.RepLKNet,
    *,
    classes: Sequence[str],
    input_size: int,
    mean: Sequence[float] = IMAGENET_MEAN,
    std: Sequence[float] = IMAGENET_STD,
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
        training: How it was trained, anything that JSON holds.
    """
    content = {"config": asdict(module.config), "classes": list(classes), "input_size": input_size}
    content |= {"mean": list(mean), "std": list(std), "training": dict(training or {})}
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    temporary = Path(f"{path}.new")
    save_file(state, temporary, metadata={DESCRIPTION: json.dumps(content)})
    temporary.chmod(0o644)
    os.replace(temporary, path)  # noqa: PTH105


def load_file(path: Path) -> LoadedModel:
    """The network in a file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it holds none, or its description does not fit.
    """
    if not path.is_file():
        raise FileNotFoundError(f"model={str(path)!r}: no such file")
    if path.suffix == EXPORTED_SUFFIX:
        return _load_program(path, lambda: torch.export.unflatten(torch.export.load(path)))
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            scripted = any("/code/" in name for name in archive.namelist())
        if scripted:
            return _load_program(path, lambda: _Scripted(torch.jit.load(path, map_location="cpu")))  # type: ignore[no-untyped-call]
    if path.suffix == NETWORK_SUFFIX:
        try:
            description = read_metadata(path).get(DESCRIPTION)
        except SafetensorError as error:
            raise ValueError(f"model={str(path)!r}: not a safetensors file ({error})") from error
        if description is not None:
            return _load_described(path, description)
    return _load_weights(path)


def _load_described(path: Path, description: str) -> LoadedModel:
    """A file of `save_network`."""
    try:
        content = json.loads(description)
        module = replknet.load_checkpoint(path)
        return LoadedModel(
            name=path.parent.name if path.stem == STUDY_NETWORK else path.stem,
            module=module,
            mean=tuple(content["mean"]),
            std=tuple(content["std"]),
            input_size=content["input_size"],
            classes=tuple(content["classes"]),
            training=content["training"],
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"model={str(path)!r}: its description does not fit ({error})") from error


def _load_weights(path: Path) -> LoadedModel:
    """A RepLKNet's weights in any format, whose architecture is read from their shapes."""
    module = replknet.load_checkpoint(path)
    half = module.config.channels == replknet.PRESETS["replknet_xl"].channels
    return LoadedModel(
        name=path.stem,
        module=module,
        mean=HALF if half else IMAGENET_MEAN,
        std=HALF if half else IMAGENET_STD,
        notes=(f"{path.name}: the architecture was read from the weights, the preprocessing is that of its family",),
    )


class _Scripted(nn.Module):
    """A TorchScript program, which takes no hooks, in a module that does."""

    def __init__(self, program: nn.Module) -> None:
        super().__init__()
        self.program = program

    def forward(self, x: torch.Tensor) -> Any:
        return self.program(x)


def _load_program(path: Path, load: Callable[[], nn.Module]) -> LoadedModel:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # TorchScript is on its way out; its files are still there
            module = load()
    except Exception as error:  # torch raises RuntimeErrors, KeyErrors and its own types here
        raise ValueError(
            f"model={str(path)!r}: cannot be loaded ({str(error).strip().partition(chr(10))[0]})"
        ) from error
    note = f"{path.name}: a program names no preprocessing; ImageNet's mean and standard deviation are used"
    return LoadedModel(name=path.stem, module=module, notes=(note,))
