"""Float32 that is float32, whatever shortcuts PyTorch takes by itself or was told to take."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from operator import attrgetter

import torch

_PLACES = ("cuda.matmul", "cudnn.conv", "cudnn.rnn", "mkldnn.matmul", "mkldnn.conv", "mkldnn.rnn")
"""Where PyTorch 2.9 and later keep a precision each."""
_FULL = ("ieee", "none")


@contextmanager
def true_float32() -> Iterator[None]:
    """Products and convolutions of float32 in float32; the settings are put back at the end.

    On a GPU PyTorch lets cuDNN convolve in TF32, with errors of a thousandth, unless it is told otherwise, and products
    may have been allowed TF32 or bfloat16. Of its two sets of settings the older cannot be read where the newer, which
    came with 2.9, contradicts it; it then stays as it is.
    """
    products = convolutions = None
    with suppress(RuntimeError):
        products = torch.get_float32_matmul_precision()
    with suppress(RuntimeError):
        convolutions = torch.backends.cudnn.allow_tf32
    precisions = _precisions()
    try:
        if products not in (None, "highest"):
            torch.set_float32_matmul_precision("highest")
        if convolutions:
            torch.backends.cudnn.allow_tf32 = False
        for place, name in _precisions().items():
            if name not in _FULL:
                _set(place, "ieee")
        yield
    finally:
        if products not in (None, "highest"):
            torch.set_float32_matmul_precision(products)
        if convolutions:
            torch.backends.cudnn.allow_tf32 = True
        for place, name in precisions.items():
            for choice in ("none", name):  # that of the whole library, where it is the same
                if _precisions()[place] != name:
                    _set(place, choice)


def float32_settings(device: torch.device) -> dict[str, str]:
    """What PyTorch may compute float32 with on a GPU at present, for a record: "tf32", or else float32 itself.

    Empty for another device.
    """
    if device.type != "cuda":
        return {}
    if found := _precisions():
        return {"float32_products": found["cuda.matmul"], "float32_convolutions": found["cudnn.conv"]}
    tf32 = {True: "tf32", False: "ieee"}
    return {
        "float32_products": tf32[torch.backends.cuda.matmul.allow_tf32],
        "float32_convolutions": tf32[torch.backends.cudnn.allow_tf32],
    }


def _precisions() -> dict[str, str]:
    """By place; empty before PyTorch 2.9."""
    if not hasattr(torch.backends, "fp32_precision"):
        return {}
    return {place: str(attrgetter(place)(torch.backends).fp32_precision) for place in _PLACES}


def _set(place: str, name: str) -> None:
    attrgetter(place)(torch.backends).fp32_precision = name
