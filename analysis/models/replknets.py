"""Networks of this family by name, to use and to train."""

from collections.abc import Sequence
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


def is_replknet(spec: str) -> bool:
    """Whether a name is that of an architecture of this family, or of published weights of one."""
    return spec in replknet.PRESETS or spec in replknet.PUBLISHED


def load_replknet(
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
        overrides["kernel_sizes"] = tuple(kernel_sizes)
        label = f"{name} {'-'.join(map(str, kernel_sizes))}"
    if small_kernel is not None:
        overrides["small_kernel"] = small_kernel or None
    elif kernel_sizes is not None and preset.small_kernel and min(kernel_sizes) < preset.small_kernel:
        overrides["small_kernel"] = None
        notes.append(f"{label}: the parallel {preset.small_kernel}x{preset.small_kernel} kernel does not fit, left out")
    preparation = family_preparation(architecture)
    if weights is not None:
        preparation["input_size"] = weights.image_size
    published: dict[str, float] = {}
    if checkpoint is not None:
        # Any head will do for features, so the file decides how large it is, and what a backbone gives.
        found = infer_config(replknet.load_state_dict(checkpoint))
        if found is not None:
            names = ("num_classes", "out_indices", "norm_intermediate_features")
            overrides |= {name: getattr(found, name) for name in names}
    elif weights is not None and pretrained:
        if not as_published:
            raise ValueError(
                f"model={name!r}: these weights have the kernels {preset.kernel_sizes} and small kernel "
                f"{preset.small_kernel}; for others name {architecture!r}"
            )
        published = {"top1": weights.top1, "top5": weights.top5}
    else:
        label += RANDOM
        initial = OWN
    if checkpoint is None and not published and pretrained:
        known = [full for full, entry in replknet.PUBLISHED.items() if entry.architecture == architecture]
        notes.append(f"{label}: no weights were named; published ones are {', '.join(known) or 'none for this form'}")
    module = replknet.create_model(name, pretrained=bool(published), checkpoint=checkpoint, **overrides)
    return LoadedModel(
        name=label,
        module=module,
        fresh=lambda: replknet.RepLKNet(module.config),
        initial=initial,
        published=published,
        notes=tuple(notes),
        **preparation,
    )


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
        kernel_sizes: Large kernel of each stage; RepLKNets only. A small kernel that does not fit is left out.
        small_kernel: Parallel kernel, 0 for none; RepLKNets only.
        seed: Of the first weights.

    Raises:
        ValueError: If the name is unknown, an option does not apply to it, or its weights cannot be had.
    """
    import timm

    from replknet import timm_models  # noqa: F401  the family among timm's own

    check_number("seed", seed, SEEDS)
    _check_kernels(kernel_sizes)
    architecture, _, tag = spec.partition(".")
    if checkpoint is not None and pretrained:
        raise ValueError(f"checkpoint={str(checkpoint)!r}: expected none with pretrained=True")
    if checkpoint is not None and tag:
        raise ValueError(f"checkpoint={str(checkpoint)!r}: expected none, or {architecture!r} without its tag")
    pretrained = pretrained or bool(tag)
    if not is_replknet(spec):
        if kernel_sizes or small_kernel is not None:
            raise ValueError(f"model={spec!r}: expected a RepLKNet beside kernel_sizes or small_kernel")
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
        small = replknet.PRESETS[architecture].small_kernel
        if kernel_sizes is not None:
            options["kernel_sizes"] = tuple(kernel_sizes)
            small = small if small and min(kernel_sizes) >= small else None
        options["small_kernel"] = small if small_kernel is None else small_kernel or None
        module = timm.create_model(spec, pretrained=pretrained, **options)
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
    """Load a RepLKNet's weights, but for a head of another size; returns what to tell the user."""
    state = replknet.load_state_dict(checkpoint)
    own = module.state_dict()
    heads = [key for key in ("head.weight", "head.bias") if key in own]
    fits = all(key in state and state[key].shape == own[key].shape for key in heads)
    if not fits:
        state |= {key: own[key] for key in heads}
    load_into(module, state, source=str(checkpoint))
    return () if fits else (f"{Path(checkpoint).name}: its head has other classes; a new one is trained",)
