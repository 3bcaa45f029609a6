"""One string to a model with its preprocessing."""

import copy
import importlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

import replknet
from analysis.images import IMAGENET_MEAN, IMAGENET_STD

NETWORK_SUFFIX = ".safetensors"
_METADATA = "replknet"
_HALF = (0.5, 0.5, 0.5)


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model and how its input is prepared.

    Args:
        name: For tables and figures.
        module: The network, in evaluation mode.
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, divided by.
        input_size: Side in pixels that the model was trained for; None if any.
        classes: Names of its outputs, where they are known.
        training: How it was trained, as `save_network` was told; empty if it is not known.
        notes: What was decided while loading, for the user to read.
    """

    name: str
    module: nn.Module
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    input_size: int | None = None
    classes: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def load_model(
    spec: str,
    *,
    checkpoint: str | PathLike[str] | None = None,
    kernel_sizes: Sequence[int] | None = None,
    small_kernel: int | None = None,
    pretrained: bool = True,
    seed: int = 0,
) -> LoadedModel:
    """A model by name.

    Args:
        spec: "replknet_31b" or a sibling (random weights without a checkpoint, but for the nano networks), a file that
            `save_network` wrote (each network of a study is one), "timm:NAME", "torchvision:NAME", or
            "package.module:callable", a function without arguments that returns a module or a `LoadedModel`.
        checkpoint: A weight file; RepLKNets only.
        kernel_sizes: Large kernel of each stage; RepLKNets only. A small kernel that does not fit is left out.
        small_kernel: Parallel kernel, 0 for none; RepLKNets only. By default the published one.
        pretrained: Load the published weights of timm and torchvision models, and those of the nano networks that
            come with the package.
        seed: Of random weights.

    Raises:
        ValueError: If the name is unknown, an option does not apply to it, or its weights cannot be had.
    """
    options = {"checkpoint": checkpoint, "kernel_sizes": kernel_sizes, "small_kernel": small_kernel}
    if spec not in replknet.PRESETS:
        for name, value in options.items():
            if value is not None:
                raise ValueError(f"{name}={value!r}: applies to {', '.join(replknet.PRESETS)} only, not to {spec!r}")
    torch.manual_seed(seed)
    if spec in replknet.PRESETS:
        loaded = _load_replknet(spec, checkpoint, kernel_sizes, small_kernel, pretrained)
    elif spec.endswith(NETWORK_SUFFIX):
        loaded = _load_network(Path(spec))
    elif spec.startswith("timm:"):
        loaded = _load_timm(spec.removeprefix("timm:"), pretrained)
    elif spec.startswith("torchvision:"):
        loaded = _load_torchvision(spec.removeprefix("torchvision:"), pretrained)
    elif ":" in spec:
        loaded = _load_callable(spec)
    else:
        raise ValueError(
            f"model={spec!r}: expected {', '.join(replknet.PRESETS)}, timm:NAME, torchvision:NAME, "
            f"package.module:callable or a file of a study (*{NETWORK_SUFFIX})"
        )
    loaded.module.eval()
    return loaded


def _load_replknet(
    name: str,
    checkpoint: str | PathLike[str] | None,
    kernel_sizes: Sequence[int] | None,
    small_kernel: int | None,
    pretrained: bool,
) -> LoadedModel:
    if pretrained and name in replknet.SHIPPED and checkpoint is None and kernel_sizes is None and small_kernel is None:
        with replknet.shipped_weights(name) as file:
            return replace(_load_network(file), name=name)
    overrides: dict[str, Any] = {}
    notes, label = [], name
    preset = replknet.PRESETS[name]
    if kernel_sizes is not None:
        overrides["kernel_sizes"] = tuple(kernel_sizes)
        label = f"{name} {'-'.join(map(str, kernel_sizes))}"
    if small_kernel is not None:
        overrides["small_kernel"] = small_kernel or None
    elif kernel_sizes is not None and preset.small_kernel and min(kernel_sizes) < preset.small_kernel:
        overrides["small_kernel"] = None
        notes.append(f"{label}: the parallel {preset.small_kernel}x{preset.small_kernel} kernel does not fit, left out")
    if checkpoint is None:
        label += " (random weights)"
    mean, std = (_HALF, _HALF) if name == "replknet_xl" else (IMAGENET_MEAN, IMAGENET_STD)
    if checkpoint is not None:
        # Any head will do for features, so the file decides how large it is.
        state = replknet.load_state_dict(checkpoint)
        overrides["num_classes"] = state["head.weight"].shape[0] if "head.weight" in state else 0
    module = replknet.create_model(name, checkpoint=checkpoint, **overrides)
    return LoadedModel(name=label, module=module, mean=mean, std=std, notes=tuple(notes))


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

    Args:
        path: Ends in .safetensors.
        module: In its training form.
        classes: Names of its outputs.
        input_size: Side in pixels that it was trained for.
        mean: Per channel, subtracted from images in [0, 1].
        std: Per channel, divided by.
        training: How it was trained, anything that JSON holds.

    Raises:
        ValueError: If the network is re-parameterised: the file describes the training form.
    """
    if any("lkb_reparam" in key for key in module.state_dict()):
        raise ValueError("module: expected a RepLKNet in its training form, before reparameterize")
    content = {"config": asdict(module.config), "classes": list(classes), "input_size": input_size}
    content |= {"mean": list(mean), "std": list(std), "training": dict(training or {})}
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    temporary = Path(f"{path}.new")
    save_file(state, temporary, metadata={_METADATA: json.dumps(content)})
    temporary.chmod(0o644)
    os.replace(temporary, path)  # noqa: PTH105


def _load_network(path: Path) -> LoadedModel:
    if not path.is_file():
        raise FileNotFoundError(f"model={str(path)!r}: no such file")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise ValueError(f"model={str(path)!r}: not a safetensors file ({error})") from error
    if _METADATA not in metadata:
        raise ValueError(
            f"model={str(path)!r}: does not name its architecture; name it and pass the file as the checkpoint"
        )
    try:
        content = json.loads(metadata[_METADATA])
        module = replknet.RepLKNet(replknet.RepLKNetConfig(**content["config"]))
        module.load_state_dict(replknet.load_state_dict(path))
        return LoadedModel(
            name=path.parent.name or path.stem,
            module=module,
            mean=tuple(content["mean"]),
            std=tuple(content["std"]),
            input_size=content["input_size"],
            classes=tuple(content["classes"]),
            training=content["training"],
        )
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"model={str(path)!r}: its description does not fit ({error})") from error


def _load_timm(name: str, pretrained: bool) -> LoadedModel:
    import timm

    if not timm.is_model(name):
        near = timm.list_models(f"*{name.split('.')[0]}*")[:3]
        raise ValueError(f"model='timm:{name}': timm has no such model; near are {', '.join(near) or 'none'}")
    hub_log = logging.getLogger("huggingface_hub")
    level = hub_log.level
    hub_log.setLevel(logging.CRITICAL)  # it prints every retry; the error below says it once
    try:
        module = timm.create_model(name, pretrained=pretrained)
    except Exception as error:  # the hub's client raises its own, requests' and httpx's types
        raise _unavailable(f"timm:{name}", error) from error
    finally:
        hub_log.setLevel(level)
    config: Any = module.pretrained_cfg
    return LoadedModel(
        name=name if pretrained else f"{name} (random weights)",
        module=module,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        input_size=config["input_size"][-1],
    )


def _load_torchvision(name: str, pretrained: bool) -> LoadedModel:
    import torchvision

    try:
        weights = torchvision.models.get_model_weights(name).DEFAULT
    except ValueError:
        raise ValueError(f"model='torchvision:{name}': torchvision has no such model") from None
    try:
        module = torchvision.models.get_model(name, weights=weights if pretrained else None)
    except OSError as error:
        raise _unavailable(f"torchvision:{name}", error) from error
    preset = weights.transforms()
    return LoadedModel(
        name=name if pretrained else f"{name} (random weights)",
        module=module,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        input_size=preset.crop_size[0],
    )


def _unavailable(spec: str, error: Exception) -> ValueError:
    reason = str(error).strip().partition("\n")[0][:160] or type(error).__name__
    return ValueError(
        f"model={spec!r}: its weights could not be loaded ({reason}); go online once, or ask for random weights"
    )


def _load_callable(spec: str) -> LoadedModel:
    module_name, _, function_name = spec.partition(":")
    try:
        function: Callable[[], Any] = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"model={spec!r}: cannot be imported ({error})") from error
    try:
        made = function()
    except Exception as error:  # a user's own code
        raise ValueError(f"model={spec!r}: failed with {type(error).__name__}: {error}") from error
    if isinstance(made, LoadedModel):
        return made
    if isinstance(made, nn.Module):
        return LoadedModel(name=function_name, module=made)
    raise ValueError(f"model={spec!r}: returned {type(made).__name__}; expected a torch.nn.Module or a LoadedModel")


def untrained_copy(loaded: LoadedModel, *, seed: int = 0) -> LoadedModel:
    """The same architecture with every layer initialised again by its own `reset_parameters`.

    Returns:
        A copy; its notes name the parameters that no layer could reset and that keep their trained values.
    """
    module = copy.deepcopy(loaded.module)
    torch.manual_seed(seed)
    kept = []
    for name, layer in module.named_modules():
        own = [f"{name}.{parameter}" for parameter, _ in layer.named_parameters(recurse=False)]
        reset = getattr(layer, "reset_parameters", None)
        if callable(reset):
            reset()
        else:
            kept.extend(own)
    notes = loaded.notes
    if kept:
        notes = (*notes, f"{loaded.name}: not reset in the untrained copy: {', '.join(kept[:5])}")
    return replace(loaded, name=f"{loaded.name}, untrained", module=module, notes=notes)
