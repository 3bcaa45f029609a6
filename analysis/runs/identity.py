"""What a network is, for results that name it and for saved outputs that must not be taken for another's."""

import hashlib
import importlib.metadata
import inspect
import platform
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@dataclass(frozen=True)
class NetworkIdentity:
    """What a network is: `hash_weights` and `hash_code` of it, taken once for everything that is measured on it."""

    weights: str
    code: str


def identify(model: nn.Module) -> NetworkIdentity:
    """Hash a network; a measuring function that is given the outcome does not do it again."""
    return NetworkIdentity(hash_weights(model), hash_code(model))


def check_values(model: nn.Module) -> None:
    """Refuse a network whose parameters have no values yet.

    Raises:
        ValueError: Naming some of them.
    """
    lazy = [name for name, parameter in model.named_parameters() if is_lazy(parameter)]
    if lazy:
        raise ValueError(
            f"model: {type(model).__name__} has parameters without values ({', '.join(lazy[:3])}: lazy layers); run it "
            "once on an image first"
        )


def hash_weights(model: nn.Module) -> str:
    """SHA-256, in hexadecimal, of every parameter and buffer with its name, dtype and shape.

    Raises:
        ValueError: If parameters have no values yet.
    """
    check_values(model)
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def hash_code(model: nn.Module) -> str:
    """SHA-256, in hexadecimal, of the printed architecture and of the code of every class in it.

    The code of a package that states a `CODE_VERSION` (as replknet does) is that version and the name of the class,
    wherever in the package it is kept; of any other class its name and the file that it stands in, where there is one:
    a `forward` calls what stands beside it. The same weights under another `forward` are another network.
    """
    digest = hashlib.sha256(repr(model).encode())
    files = set()
    for kind in sorted({type(module) for module in model.modules()}, key=lambda kind: kind.__qualname__):
        package = kind.__module__.partition(".")[0]
        version = getattr(sys.modules.get(package), "CODE_VERSION", None)
        if version is not None:
            digest.update(f"{package} {version} {kind.__qualname__}".encode())
            continue
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        with suppress(OSError, TypeError):  # made at run time
            files.add(inspect.getsourcefile(kind))
    for file in sorted(filter(None, files)):
        digest.update(Path(file).read_bytes())
    return digest.hexdigest()


def describe_device(device: torch.device) -> dict[str, str]:
    """Its name in PyTorch, and that of an NVIDIA or AMD GPU."""
    name = {"gpu": torch.cuda.get_device_name(device)} if device.type == "cuda" else {}
    return {"device": str(device)} | name


def describe_environment(reference: Tensor) -> dict[str, str]:
    """Device and dtype of `reference`, and the versions of what computes."""
    return describe_device(reference.device) | {
        "dtype": str(reference.dtype),
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
    }


def processor_name() -> str:
    """The model of the processor, as the system names it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    return platform.processor()


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Of installed packages, by name."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def commit() -> str | None:
    """The commit that this code is checked out at, with a note of local changes; None where git does not say."""
    folder = Path(__file__).parents[1]
    try:
        answers = [
            subprocess.run(["git", *words], cwd=folder, capture_output=True, text=True, timeout=10, check=True).stdout
            for words in (
                ["ls-files", "--error-unmatch", str(Path(__file__).relative_to(folder))],
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--", "."],
            )
        ]
    except (OSError, subprocess.SubprocessError):
        return None
    return answers[1].strip() + (" with local changes" if answers[2].strip() else "")
