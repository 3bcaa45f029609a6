"""Networks of this project's families by name, to use and to train."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

import replknet
from analysis.images.imagenet import IMAGENET_MEAN, IMAGENET_STD
from analysis.models.beginning import new_library_model
from analysis.models.files import family_preparation, load_file
from analysis.models.loaded import OWN, RANDOM, LoadedModel
from analysis.runs.settings import LARGEST_KERNEL, SEEDS, check_number
from replknet.checkpoints.describing import infer_config
from replknet.creating import load_into
from replknet.networks import ANY_FAMILY, build


def is_own(spec: str) -> bool:
    """Whether a name is that of an architecture of a family of `replknet`, or of published weights of one."""
    return spec in replknet.PRESETS or spec in replknet.PUBLISHED


def load_own(
    name: str,
    checkpoint: str | PathLike[str] | None,
    kernel_sizes: Sequence[int] | None,
    small_kernel: int | None,
    pretrained: bool,
) -> LoadedModel:
    _check_kernels(kernel_sizes)
    as_published = kernel_sizes is None and small_kernel is None
    if pretrained and name in replknet.SHIPPED and checkpoint is None and as_published:
        with replknet.shipped_weights(name) as file:
            return replace(load_file(file), name=name)
    weights = replknet.PUBLISHED.get(name)
    architecture = name if weights is None else weights.architecture
    preset = replknet.PRESETS[architecture]
    overrides: dict[str, Any] = {}
    notes, label, initial = [], name, ""
    if kernel_sizes is not None:
        label = f"{name} {'-'.join(map(str, kernel_sizes))}"
    if not as_published:
        changed, left_out = preset.with_kernels(kernel_sizes, small_kernel)
        overrides = changes(preset, changed)
        notes += [f"{label}: {left_out}"] if left_out else []
    preparation = family_preparation(architecture)
    if weights is not None:
        preparation["input_size"] = weights.image_size
    published: dict[str, float] = {}
    trained = False
    if checkpoint is not None:
        # Any head will do for features, so the file decides how large it is, and what a backbone gives.
        found = infer_config(replknet.load_state_dict(checkpoint))
        if found is not None:
            names = ("num_classes", "out_indices", "norm_intermediate_features")
            overrides |= {name: getattr(found, name) for name in names}
    elif weights is not None and pretrained:
        if not as_published:
            raise ValueError(
                f"model={name!r}: these weights have the kernels of {architecture!r} "
                f"({_listed(preset.kernels(merged=False))}); for others name that"
            )
        published = weights.accuracies
        trained = True
    else:
        label += RANDOM
        initial = OWN
    if checkpoint is None and not trained and pretrained:
        known = [full for full, entry in replknet.PUBLISHED.items() if entry.architecture == architecture]
        notes.append(f"{label}: no weights were named; published ones are {', '.join(known) or 'none for this form'}")
    module = replknet.create_model(name, pretrained=trained, checkpoint=checkpoint, **overrides)
    return LoadedModel(
        name=label,
        module=module,
        fresh=lambda: build(module.config),
        initial=initial,
        published=published,
        notes=tuple(notes),
        **preparation,
    )


def changes(preset: Any, changed: Any) -> dict[str, Any]:
    """The fields in which a configuration differs from a preset."""
    return {name: value for name, value in vars(changed).items() if value != getattr(preset, name)}


def _listed(kernels: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {value}" for name, value in kernels.items())


def _check_kernels(sizes: Sequence[int] | None) -> None:
    """Refuse what would not fit into memory; all else is refused where the network is made."""
    for size in sizes or ():
        check_number("kernel_sizes", size, (1, LARGEST_KERNEL, f"odd numbers up to {LARGEST_KERNEL}"), shown=sizes)


def new_model(
    spec: str,
    *,
    num_classes: int,
    pretrained: bool = False,
    drop_path_rate: float = 0.0,
    gradient_checkpointing: bool = False,
    checkpoint: str | PathLike[str] | None = None,
    kernel_sizes: Sequence[int] | None = None,
    small_kernel: int | None = None,
    seed: int = 0,
) -> LoadedModel:
    """A network to train.

    Args:
        spec: "replknet_31b" or a sibling, from random weights; with a tag, such as "replknet_31b.in1k_224", from
            published ones; "timm:NAME", likewise; or "torchvision:NAME".
        num_classes: Outputs; a head of another size is replaced by a new one.
        pretrained: Begin with published weights though no tag names them.
        drop_path_rate: Of the last pair of blocks.
        gradient_checkpointing: Recompute activations in the backward pass.
        checkpoint: Weights to begin with.
        kernel_sizes: Large kernel of each stage; networks of `replknet` only. A small kernel that does not fit is left
            out.
        small_kernel: Parallel kernel, 0 for none; networks of `replknet` only.
        seed: Of the first weights.

    Raises:
        ValueError: If the name is unknown, an option does not apply to it, or its weights cannot be had.
    """
    from replknet import timm_models

    check_number("seed", seed, SEEDS)
    _check_kernels(kernel_sizes)
    architecture, _, tag = spec.partition(".")
    if checkpoint is not None and pretrained:
        raise ValueError(f"checkpoint={str(checkpoint)!r}: expected none with pretrained=True")
    if checkpoint is not None and is_own(spec) and tag:
        raise ValueError(f"checkpoint={str(checkpoint)!r}: expected none, or {architecture!r} without its tag")
    pretrained = pretrained or bool(tag)
    if not is_own(spec):
        if kernel_sizes or small_kernel is not None:
            raise ValueError(f"model={spec!r}: expected {ANY_FAMILY} beside kernel_sizes or small_kernel")
        return new_library_model(
            spec,
            num_classes=num_classes,
            pretrained=pretrained,
            drop_path_rate=drop_path_rate,
            gradient_checkpointing=gradient_checkpointing,
            checkpoint=checkpoint,
            seed=seed,
        )
    options: dict[str, Any] = {"num_classes": num_classes, "drop_path_rate": drop_path_rate}
    notes: tuple[str, ...] = ()
    torch.manual_seed(seed)
    try:
        preset = replknet.PRESETS[architecture]
        if kernel_sizes is not None or small_kernel is not None:
            options |= changes(preset, preset.with_kernels(kernel_sizes, small_kernel)[0])
        module: Any = timm_models.create(spec, pretrained=pretrained, **options)
        if checkpoint is not None:
            notes = _put_weights(module, checkpoint)
        if gradient_checkpointing:
            module.set_grad_checkpointing(True)
    except (RuntimeError, TypeError, AttributeError, AssertionError) as error:  # timm's own
        raise ValueError(f"model={spec!r}: cannot be made ({str(error).partition(chr(10))[0]})") from error
    preparation = family_preparation(architecture)
    return LoadedModel(
        name=spec,
        module=module,
        mean=preparation.get("mean", tuple(module.pretrained_cfg.get("mean", IMAGENET_MEAN))),
        std=preparation.get("std", tuple(module.pretrained_cfg.get("std", IMAGENET_STD))),
        notes=notes,
    )


def _put_weights(module: nn.Module, checkpoint: str | PathLike[str]) -> tuple[str, ...]:
    """Load weights, but for a head of another size; returns what to tell the user."""
    state = replknet.load_state_dict(checkpoint)
    own = module.state_dict()
    heads = [key for key in ("head.weight", "head.bias") if key in own]
    fits = all(key in state and state[key].shape == own[key].shape for key in heads)
    if not fits:
        state |= {key: own[key] for key in heads}
    load_into(module, state, source=str(checkpoint))
    return () if fits else (f"{Path(checkpoint).name}: its head has other classes; a new one is trained",)
