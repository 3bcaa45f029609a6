"""Networks of other libraries to train, with a new head."""

from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from analysis.models.libraries import load_library, names_library
from analysis.models.loaded import RANDOM, LoadedModel
from analysis.models.specs import NETWORK_FILE, near_names
from analysis.models.weights import fitted, put
from replknet.networks import ANY_FAMILY


def new_library_model(
    spec: str,
    *,
    num_classes: int,
    pretrained: bool,
    drop_path_rate: float,
    gradient_checkpointing: bool,
    checkpoint: str | PathLike[str] | None,
    seed: int,
) -> LoadedModel:
    """See `new_model`, for "timm:NAME" and "torchvision:NAME"."""
    if not names_library(spec) or spec.startswith("hf:"):
        raise ValueError(f"model={spec!r}: expected {ANY_FAMILY}, timm:NAME or torchvision:NAME{_hint(spec)}")
    options: dict[str, Any] = {"drop_path_rate": drop_path_rate} if drop_path_rate else {}  # some take none
    if options and spec.startswith("torchvision:"):
        raise ValueError(f"drop_path_rate={drop_path_rate}: expected 0 for {spec!r}; torchvision knows no such option")
    torch.manual_seed(seed)
    loaded = load_library(spec, pretrained=pretrained, num_classes=num_classes, **options)
    notes = loaded.notes
    if checkpoint is not None:
        state, new_head = fitted(loaded.module, checkpoint, loaded.name.removesuffix(RANDOM))
        put(loaded.module, state)
        if new_head:
            notes = (*notes, f"{Path(checkpoint).name}: its head has other classes; a new one is trained")
    if gradient_checkpointing:
        saving = getattr(loaded.module, "set_grad_checkpointing", None)
        if saving is None:
            raise ValueError(f"gradient_checkpointing=True: {spec} knows no such option")
        saving(True)
    return replace(loaded, name=spec, notes=notes)


def _hint(spec: str) -> str:
    """How to go on from a file or the folder of a training, or else names that are near."""
    file = Path(spec) / NETWORK_FILE if Path(spec).is_dir() else Path(spec)
    if not file.is_file():
        return near_names(spec)
    return f"; to go on from these weights, their architecture by name with checkpoint={str(file)!r}"
