"""Networks by name or from a weight file."""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from importlib import resources
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from replknet.checkpoints.describing import describe, find_config
from replknet.checkpoints.published import download_weights, published_name
from replknet.checkpoints.reading import CheckpointError, load_state_dict
from replknet.networks import PRESETS, PUBLISHED, build, weight_form
from replknet.networks.family import Network
from replknet.networks.reparameterize import match_form

SHIPPED = ("replknet_nano_k3", "replknet_nano_k31")
"""Networks whose trained weights come with the package."""
_NUM_LISTED = 10
_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
"""Of weights; others are codes that mean nothing without what belongs to them."""


def shipped_weights(name: str) -> AbstractContextManager[Path]:
    """The safetensors file of one of `SHIPPED`; it may be a temporary one (a package in a zip file)."""
    return resources.as_file(resources.files("replknet") / "weights" / f"{name}.safetensors")


def create_model(
    name: str,
    *,
    pretrained: bool = False,
    progress: bool = True,
    checkpoint: str | PathLike[str] | None = None,
    **overrides: Any,
) -> Network:
    """A network by name, in float32, with or without somebody's weights.

    Args:
        name: A key of `PRESETS`, such as "replknet_31b", or of `PUBLISHED`, such as "replknet_31b.in1k_224".
        pretrained: Load published weights, downloaded once (`download_weights`); of an architecture without a tag, the
            first in `PUBLISHED`. Those of "replknet_nano_k3" and "replknet_nano_k31", trained on the generated images
            of the kernel-size study, come with the package.
        progress: Show a bar on the standard error stream while weights are downloaded.
        checkpoint: A weight file in any format that `load_state_dict` reads. It is loaded strictly; a merged or fully
            folded file gives a model of that form.
        **overrides: Fields of its configuration (`RepLKNetConfig`, ...) that replace the preset's, e.g.
            `kernel_sizes=(3, 3, 3, 3)`, `small_kernel=None`, `num_classes=10`. With a checkpoint, an explicit
            `num_classes=0` leaves the file's head out.

    Returns:
        The model, in training mode as every new module is; without a checkpoint its weights are random.

    Raises:
        ValueError: If the name or an override is unknown or out of range.
        DownloadError: If published weights cannot be had; the message says where to put a file fetched by hand.
        CheckpointError: If the file does not fit; the message lists the keys and the architecture it looks like.

    Example:
        >>> import replknet
        >>> replknet.create_model("replknet_nano_k31", pretrained=True).config.kernel_sizes
        (31, 15, 7, 3)
    """
    architecture = PUBLISHED[name].architecture if name in PUBLISHED else name
    if architecture not in PRESETS:
        raise ValueError(f"name={name!r}: expected one of {', '.join([*PRESETS, *PUBLISHED])}")
    preset = PRESETS[architecture]
    known = (published_name(name) if pretrained else None) or name
    if known in PUBLISHED:
        overrides = {"num_classes": PUBLISHED[known].num_classes} | overrides
    unknown = sorted(set(overrides) - set(preset.__dataclass_fields__))
    if unknown:
        fields = ", ".join(preset.__dataclass_fields__)
        raise ValueError(f"{unknown[0]}={overrides[unknown[0]]!r}: no such setting; expected one of {fields}")
    if pretrained:
        if checkpoint is not None:
            raise ValueError(f"checkpoint={str(checkpoint)!r}: expected None with pretrained=True")
        if name in SHIPPED:
            with shipped_weights(name) as file:
                return create_model(name, checkpoint=file, **overrides)
        return create_model(architecture, checkpoint=download_weights(name, progress=progress), **overrides)
    model = build(replace(preset, **overrides))
    if checkpoint is not None:
        state = load_state_dict(checkpoint)
        if overrides.get("num_classes") == 0:
            state = {key: value for key, value in state.items() if not key.startswith("head.")}
            if isinstance(model.norm, nn.Identity):
                state = {key: value for key, value in state.items() if not key.startswith("norm.")}
        match_form(model, weight_form(state))
        load_into(model, state, source=str(checkpoint))
    return model


def load_checkpoint(path: str | PathLike[str]) -> Network:
    """The network in a weight file, in the file's form.

    The architecture is the one that the file describes, where it does (each network of a study), else read from the
    shapes of the weights.

    Args:
        path: A weight file in any format that `load_state_dict` reads.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If it does not hold a network of a family.
    """
    state = load_state_dict(path)
    config = find_config(Path(path), state)
    if config is None:
        raise CheckpointError(f"checkpoint={str(path)!r}: {describe(state)}")
    model = build(config)
    match_form(model, weight_form(state))
    load_into(model, state, source=str(path))
    return model


@dataclass(frozen=True)
class Misfit:
    """How weights differ from those of a model: empty, and no text, where they fit."""

    missing: list[str]
    unexpected: list[str]
    misshaped: dict[str, str]
    mistyped: dict[str, str]

    @classmethod
    def of(cls, model: nn.Module, state: Mapping[str, Tensor]) -> "Misfit":
        """Of official-named weights."""
        own = model.state_dict()
        shared = {key: value for key, value in own.items() if key in state}
        return cls(
            # The counter of training batches is absent from some exported files, and no output depends on it.
            missing=[key for key in own if key not in state and not key.endswith("num_batches_tracked")],
            unexpected=[key for key in state if key not in own],
            misshaped={
                key: f"{key} {_shape(state[key])} for {_shape(value)}"
                for key, value in shared.items()
                if _shape(state[key]) != _shape(value)
            },
            mistyped={
                key: f"{key} {_type(state[key])} for {_type(value)}"
                for key, value in shared.items()
                if not _takes(value, state[key])
            },
        )

    def __str__(self) -> str:
        parts = []
        lists = {"missing": self.missing, "unexpected": self.unexpected, "mis-shaped": [*self.misshaped.values()]}
        lists["of another type"] = [*self.mistyped.values()]
        for label, entries in lists.items():
            if entries:
                more = f" and {len(entries) - _NUM_LISTED} more" if len(entries) > _NUM_LISTED else ""
                parts.append(f"{len(entries)} {label}: {', '.join(entries[:_NUM_LISTED])}{more}")
        return "; ".join(parts)


def _shape(value: Tensor) -> list[int] | str:
    return "uninitialized" if is_lazy(value) else list(value.shape)


def _type(value: Tensor) -> str:
    """Of its numbers, and how it keeps them where that is unusual."""
    unusual = "meta" if value.is_meta else str(value.layout).removeprefix("torch.")
    return str(value.dtype).removeprefix("torch.") + ("" if unusual == "strided" else f" ({unusual})")


def _takes(own: Tensor, given: Tensor) -> bool:
    """Whether a weight or counter can be given such numbers without a change of what they mean."""
    there = given.layout == torch.strided and (own.is_meta or not given.is_meta)
    return there and (given.dtype in _DTYPES if own.is_floating_point() else not given.is_complex())


def load_into(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Load official-named weights strictly; `source` names them in the error.

    Raises:
        CheckpointError: If any key is missing, unexpected, or has another shape or numbers that are no weights.
    """
    check_fit(model, state, source=source)
    model.load_state_dict({key: state.get(key, value) for key, value in model.state_dict().items()})


def check_fit(model: nn.Module, state: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse what `load_into` refuses, before anything is changed."""
    misfit = Misfit.of(model, state)
    if not str(misfit):
        return
    built, given = (
        weights["head.weight"].shape[0] if "head.weight" in weights else 0 for weights in (model.state_dict(), state)
    )
    differing = {*misfit.missing, *misfit.unexpected, *misfit.misshaped}
    if not misfit.mistyped and differing <= {"head.weight", "head.bias"}:
        how = "num_classes=0 to leave heads out and call reset_classifier afterwards"
        if given and weight_form(state) == "folded":
            how = f"pass num_classes={given}, as the final norm is folded into that head"
        elif given:
            how = f"pass num_classes={given} to build the file's head, or {how}"
        else:
            how = f"the file has no head, or {how}"
        raise CheckpointError(f"checkpoint={source!r}: its head has {given} classes, the model's {built}; {how}")
    raise CheckpointError(f"checkpoint={source!r} does not fit the model: {misfit}. {describe(state)}")
