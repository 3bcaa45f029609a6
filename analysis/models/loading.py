"""One string to a model with its preprocessing."""

import importlib.util
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from os import PathLike
from pathlib import Path

import torch
from torch import nn

from analysis.models.files import SUFFIXES, load_file
from analysis.models.libraries import from_timm, load_library, names_library
from analysis.models.loaded import LoadedModel
from analysis.models.replknets import is_own, load_own
from analysis.models.specs import near_names, network_in, split_name
from analysis.models.weights import with_weights
from analysis.runs.settings import SEEDS, check_number
from analysis.runs.signals import EndedBySignal
from replknet.networks import ANY_FAMILY

SPECS = (
    f"{ANY_FAMILY} (replknet models lists them), timm:NAME, torchvision:NAME, hf:NAME (transformers), "
    "package.module:callable, file.py:callable, a file (weights of one of these families, TorchScript or an exported "
    "program, .pt2), or the folder of a training"
)
"""What `load_model` takes, for messages."""
_INSTALLED = "site-packages"


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
    trust: bool = False,
    seed: int = 0,
) -> LoadedModel:
    """A model by name.

    Args:
        spec: "replknet_31b" or a sibling (random weights without a checkpoint, but for the nano networks),
            "replknet_31b.in1k_224" or another of `replknet.PUBLISHED`, "timm:NAME", "torchvision:NAME", "hf:NAME" (an
            image classifier of transformers, from the hub or a folder), "package.module:callable" or "file.py:callable"
            (a function without arguments that returns a module or a `LoadedModel`; where no such module is installed,
            the current folder or that of the file is added to `sys.path`, last), a file: weights of a network of
            `replknet` in any format (`save_network` also describes the network; each network of a study is such a
            file), TorchScript, or a program of torch.export (.pt2), or the folder of `replknet train` or of a study's
            cell. With "NAME=" before it, the network is called so.
        checkpoint: A weight file for a network by name, or of a function; its head may have other classes, but not that
            of a function. It is loaded strictly, whatever wrapper of training codes is around the weights.
        kernel_sizes: Large kernel of each stage; networks of `replknet` only. A small kernel that does not fit is left
            out.
        small_kernel: Parallel kernel, 0 for none; networks of `replknet` only. By default the published one.
        pretrained: Load the published weights, or those of the nano networks that come with the package.
        trust: Load TorchScript and programs of torch.export. They may run code and write files, as a callable may;
            weights cannot.
        seed: Of random weights.

    Raises:
        ValueError: If the name is unknown, an option does not apply to it, its weights cannot be had, it is a program
            that is not trusted, or the user's own code fails.

    Example:
        >>> loaded = load_model("replknet_nano_k31")
        >>> loaded.input_size, loaded.classes[:3]
        (64, ('arrow', 'bolt', 'crescent'))
    """
    given, spec = split_name(spec)
    options = {"kernel_sizes": kernel_sizes, "small_kernel": small_kernel}
    if not is_own(spec):
        for name, value in options.items():
            if value is not None:
                raise ValueError(f"{name}={value!r}: applies to networks of replknet by name only, not to {spec!r}")
        if not pretrained and not names_library(spec):
            raise ValueError(f"pretrained=False: applies to networks by name only, not to {spec!r}")
    if checkpoint is not None and not pretrained:
        raise ValueError(f"checkpoint={str(checkpoint)!r}: expected none with pretrained=False")
    check_number("seed", seed, SEEDS)
    torch.manual_seed(seed)
    if is_own(spec):
        loaded = load_own(spec, checkpoint, kernel_sizes, small_kernel, pretrained)
    elif checkpoint is None:
        loaded = _load(spec, pretrained, trust)
    elif has_weights(spec):
        raise ValueError(f"checkpoint={str(checkpoint)!r}: applies to networks by name only, not to {spec!r}")
    else:
        loaded = with_weights(lambda classes: _load(spec, False, trust, classes), checkpoint, heads=names_library(spec))
    loaded.module.eval()
    initial = f"{loaded.initial}, seed {seed}" if loaded.initial else ""
    changed = {"kernels": kernel_sizes and "-".join(map(str, kernel_sizes)), "small kernel": small_kernel}
    told = [spec, *(f"{name} {value}" for name, value in changed.items() if value is not None)]
    told += [] if checkpoint is None else [f"weights of {checkpoint}"]
    return replace(loaded, name=given or loaded.name, initial=initial, source=", ".join(told))


def has_weights(spec: str) -> bool:
    """Whether a network is a file or folder, which brings its weights."""
    path = Path(spec)
    return not names_library(spec) and (spec.endswith(SUFFIXES) or path.is_file() or path.is_dir())


def _load(spec: str, pretrained: bool, trust: bool, num_classes: int | None = None) -> LoadedModel:
    """A network of no family of this project's by name."""
    if names_library(spec):
        return load_library(spec, pretrained=pretrained, num_classes=num_classes)
    if has_weights(spec):
        path = Path(spec)
        return load_file(network_in(path) if path.is_dir() else path, trust=trust)
    if spec.partition(":")[2]:
        return _load_callable(spec)
    missing = "there is no such file or folder; " if "/" in spec or os.sep in spec else ""
    raise ValueError(f"model={spec!r}: {missing}expected {SPECS}{near_names(spec)}")


def _load_callable(spec: str) -> LoadedModel:
    module_name, _, function_name = spec.rpartition(":")
    name, folder = _importable(spec, module_name)
    with _users_code(spec, folder):
        module = importlib.import_module(name)
        function = getattr(module, function_name, None)
    if not callable(function):
        raise ValueError(
            f"model={spec!r}: cannot be imported: {module.__file__ or name} has no function {function_name!r}"
        )
    with _users_code(spec, folder):
        made = function()
    if isinstance(made, LoadedModel):
        return made
    if isinstance(made, nn.Module):
        return LoadedModel(name=function_name, module=made)
    raise ValueError(f"model={spec!r}: returned {type(made).__name__}; expected a torch.nn.Module or a LoadedModel")


def _importable(spec: str, module_name: str) -> tuple[str, Path]:
    """The name to import a module by, and the folder that it is in, which becomes importable after all others."""
    file = Path(module_name) if module_name.endswith(".py") else None
    if file is not None and not file.is_file():
        raise FileNotFoundError(f"model={spec!r}: no such file")
    name = module_name if file is None else file.stem
    if not all(name.split(".")) or (file is not None and "." in name):
        raise ValueError(f"model={spec!r}: cannot be imported: {name!r} is no name of a Python module")
    first = name.partition(".")[0]
    if importlib.util.find_spec(first) is None:
        sys.path.append(str(Path.cwd() if file is None else file.resolve().parent))
    found = importlib.util.find_spec(first)
    if found is None:
        raise ValueError(
            f"model={spec!r}: cannot be imported: no module {first!r} is installed or in the current folder"
        )
    origin = Path(found.origin or "")
    if file is not None and not (origin.is_file() and file.samefile(origin)):
        raise ValueError(f"model={spec!r}: Python has another module {name!r} ({found.origin}); rename the file")
    return name, next(map(Path, found.submodule_search_locations or ()), origin.parent)


@contextmanager
def _users_code(spec: str, folder: Path) -> Iterator[None]:
    """What the user's code raises, also to leave Python, as an error that names its last line in the folder."""
    try:
        yield
    except (KeyboardInterrupt, EndedBySignal):
        raise
    except BaseException as error:
        lines = [(frame.filename, frame.lineno) for frame in traceback.extract_tb(error.__traceback__)]
        if isinstance(error, SyntaxError):
            lines.append((error.filename or "", error.lineno))
        inside = [(Path(file), line) for file, line in lines if folder in Path(file).parents]
        own = [f" in {file}:{line}" for file, line in inside if _INSTALLED not in file.relative_to(folder).parts]
        where = own[-1] if own else ""
        raise ValueError(f"model={spec!r}: failed with {type(error).__name__}{where}: {error}") from error
