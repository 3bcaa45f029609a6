"""What a network is, for results that name it and for saved outputs that must not be taken for another's."""

import hashlib
import inspect
import platform
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn


def hash_weights(model: nn.Module) -> str:
    """SHA-256, in hexadecimal, of every parameter and buffer with its name, dtype and shape."""
    digest = hashlib.sha256()
    for key, tensor in model.state_dict().items():
        if isinstance(tensor, Tensor):
            digest.update(f"{key} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def hash_code(model: nn.Module) -> str:
    """SHA-256, in hexadecimal, of the printed architecture and of the code of every class in it.

    The code of a package that states a `CODE_VERSION` (as replknet does) is that version and the name of the class,
    wherever in the package it is kept; of any other class its module and its source, where it has one. The same weights
    under another `forward` are another network.
    """
    digest = hashlib.sha256(repr(model).encode())
    for kind in sorted({type(module) for module in model.modules()}, key=lambda kind: kind.__qualname__):
        package = kind.__module__.partition(".")[0]
        version = getattr(sys.modules.get(package), "CODE_VERSION", None)
        if version is not None:
            digest.update(f"{package} {version} {kind.__qualname__}".encode())
            continue
        digest.update(f"{kind.__module__}.{kind.__qualname__}".encode())
        try:
            digest.update(inspect.getsource(kind).encode())
        except (OSError, TypeError):  # made at run time
            continue
    return digest.hexdigest()


def describe_environment(reference: Tensor) -> dict[str, str]:
    """Device and dtype of `reference`, and the versions of what computes."""
    return {
        "device": str(reference.device),
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
