"""One string to a model with its preprocessing."""

import copy
import importlib
import json
import logging
import os
import warnings
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

import replknet
from analysis.images import IMAGENET_MEAN, IMAGENET_STD
from analysis.preprocessing import Transform, evaluation_transform
from replknet.checkpoints import DESCRIPTION, read_metadata

NETWORK_SUFFIX = ".safetensors"
STUDY_NETWORK = "network"
"""Name, without its suffix, of the file of a cell of a study, which is then named for its folder."""
WEIGHT_SUFFIXES = (NETWORK_SUFFIX, ".pth", ".pt", ".tar", ".bin", ".ckpt")
EXPORTED_SUFFIX = ".pt2"
SPECS = (
    "a RepLKNet (replknet models lists them), timm:NAME, torchvision:NAME, hf:NAME (transformers), "
    "package.module:callable, or a file: weights of a RepLKNet, TorchScript or an exported program (.pt2)"
)
"""What `load_model` takes, for messages."""
_DEFAULT_SIZE = 224
NUM_IMAGENET_CLASSES = 1000
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
        transform: Its own preparation of an image file for a test; None for RepLKNet's.
        classes: Names of its outputs, where they are known and not those of ImageNet-1K.
        published: Accuracies in percent on ImageNet-1K that its publisher reports, "top1" and "top5"; empty if there
            are none.
        training: How it was trained, as `save_network` was told; empty if it is not known.
        notes: What was decided while loading, for the user to read.
    """

    name: str
    module: nn.Module
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    input_size: int | None = None
    transform: Transform | None = None
    published: Mapping[str, float] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    training: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def preparation(self, size: int | None = None) -> Transform:
        """From an RGB image to the network's input; `size` in pixels replaces the model's own way by RepLKNet's."""
        if size is None and self.transform is not None:
            return self.transform
        return evaluation_transform(size or self.input_size or _DEFAULT_SIZE, mean=self.mean, std=self.std)


def as_loaded(model: "LoadedModel | nn.Module | str") -> LoadedModel:
    """A model with its preprocessing: of a bare module ImageNet's, of a name what `load_model` gives."""
    if isinstance(model, str):
        return load_model(model)
    if isinstance(model, LoadedModel):
        return model
    return LoadedModel(name=type(model).__name__, module=model)


def is_replknet(spec: str) -> bool:
    """Whether a name is that of an architecture of this family, or of published weights of one."""
    return spec in replknet.PRESETS or spec in replknet.PUBLISHED


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
        spec: "replknet_31b" or a sibling (random weights without a checkpoint, but for the nano networks),
            "replknet_31b.in1k_224" or another of `replknet.PUBLISHED`, "timm:NAME", "torchvision:NAME", "hf:NAME" (an
            image classifier of transformers, from the hub or a folder), "package.module:callable" (a function without
            arguments that returns a module or a `LoadedModel`), or a file: weights of a RepLKNet in any format
            (`save_network` also describes the network; each network of a study is such a file), TorchScript, or a
            program of torch.export (.pt2).
        checkpoint: A weight file; RepLKNets only.
        kernel_sizes: Large kernel of each stage; RepLKNets only. A small kernel that does not fit is left out.
        small_kernel: Parallel kernel, 0 for none; RepLKNets only. By default the published one.
        pretrained: Load the published weights, or those of the nano networks that come with the package.
        seed: Of random weights.

    Raises:
        ValueError: If the name is unknown, an option does not apply to it, or its weights cannot be had.

    Example:
        >>> loaded = load_model("replknet_nano_k31")
        >>> loaded.input_size, loaded.classes[:3]
        (64, ('arrow', 'bolt', 'crescent'))
    """
    options = {"checkpoint": checkpoint, "kernel_sizes": kernel_sizes, "small_kernel": small_kernel}
    if not is_replknet(spec):
        for name, value in options.items():
            if value is not None:
                raise ValueError(f"{name}={value!r}: applies to RepLKNets by name only, not to {spec!r}")
    torch.manual_seed(seed)
    prefix, _, rest = spec.partition(":")
    if is_replknet(spec):
        loaded = _load_replknet(spec, checkpoint, kernel_sizes, small_kernel, pretrained)
    elif prefix in _LIBRARIES and rest:
        loaded = _LIBRARIES[prefix](rest, pretrained)
    elif spec.endswith((*WEIGHT_SUFFIXES, EXPORTED_SUFFIX)):
        loaded = _load_file(Path(spec))
    elif rest:
        loaded = _load_callable(spec)
    else:
        raise ValueError(f"model={spec!r}: expected {SPECS}")
    loaded.module.eval()
    return loaded


def _load_replknet(
    name: str,
    checkpoint: str | PathLike[str] | None,
    kernel_sizes: Sequence[int] | None,
    small_kernel: int | None,
    pretrained: bool,
) -> LoadedModel:
    as_published = kernel_sizes is None and small_kernel is None
    if pretrained and name in replknet.SHIPPED and checkpoint is None and as_published:
        with replknet.shipped_weights(name) as file:
            return replace(_load_file(file), name=name)
    weights = replknet.PUBLISHED.get(name)
    architecture = name if weights is None else weights.architecture
    preset = replknet.PRESETS[architecture]
    overrides: dict[str, Any] = {}
    notes, label = [], name
    if kernel_sizes is not None:
        overrides["kernel_sizes"] = tuple(kernel_sizes)
        label = f"{name} {'-'.join(map(str, kernel_sizes))}"
    if small_kernel is not None:
        overrides["small_kernel"] = small_kernel or None
    elif kernel_sizes is not None and preset.small_kernel and min(kernel_sizes) < preset.small_kernel:
        overrides["small_kernel"] = None
        notes.append(f"{label}: the parallel {preset.small_kernel}x{preset.small_kernel} kernel does not fit, left out")
    mean, std = (_HALF, _HALF) if architecture == "replknet_xl" else (IMAGENET_MEAN, IMAGENET_STD)
    published: dict[str, float] = {}
    if checkpoint is not None:
        # Any head will do for features, so the file decides how large it is.
        state = replknet.load_state_dict(checkpoint)
        overrides["num_classes"] = state["head.weight"].shape[0] if "head.weight" in state else 0
    elif weights is not None and pretrained:
        if not as_published:
            raise ValueError(
                f"model={name!r}: these weights have the kernels {preset.kernel_sizes} and small kernel "
                f"{preset.small_kernel}; for others name {architecture!r}"
            )
        published = {"top1": weights.top1, "top5": weights.top5}
    else:
        label += " (random weights)"
    module = replknet.create_model(name, pretrained=bool(published), checkpoint=checkpoint, **overrides)
    return LoadedModel(
        name=label,
        module=module,
        mean=mean,
        std=std,
        input_size=None if weights is None else weights.image_size,
        published=published,
        notes=tuple(notes),
    )


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


def _load_file(path: Path) -> LoadedModel:
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
        mean=_HALF if half else IMAGENET_MEAN,
        std=_HALF if half else IMAGENET_STD,
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
    chosen = timm.data.resolve_data_config({}, model=module)
    return LoadedModel(
        name=name if pretrained else f"{name} (random weights)",
        module=module,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        input_size=config["input_size"][-1],
        transform=timm.data.create_transform(**chosen, is_training=False),
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
    metrics = weights.meta.get("_metrics", {}).get("ImageNet-1K", {}) if pretrained else {}
    return LoadedModel(
        name=name if pretrained else f"{name} (random weights)",
        module=module,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        input_size=preset.crop_size[0],
        transform=preset,
        published={f"top{k}": metrics[f"acc@{k}"] for k in (1, 5) if f"acc@{k}" in metrics},
    )


class _Logits(nn.Module):
    """A classifier of transformers as a function of an image batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.network(pixel_values=x).logits
        return logits


@dataclass(frozen=True)
class _Processed:
    """A transform by an image processor of transformers."""

    processor: Any

    def __call__(self, image: Image.Image) -> torch.Tensor:
        pixels: torch.Tensor = self.processor(images=image, return_tensors="pt")["pixel_values"][0]
        return pixels


def _load_transformers(name: str, pretrained: bool) -> LoadedModel:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"model='hf:{name}': needs the package transformers (extra 'transformers')") from error
    family = transformers.AutoModelForImageClassification
    try:
        processor = transformers.AutoImageProcessor.from_pretrained(name)
        if pretrained:
            network = family.from_pretrained(name)
        else:
            network = family.from_config(transformers.AutoConfig.from_pretrained(name))
    except (OSError, ValueError) as error:
        raise _unavailable(f"hf:{name}", error) from error
    labels = network.config.id2label
    size: dict[str, int] = next(
        (part for part in (getattr(processor, key, None) for key in ("crop_size", "size")) if part), {}
    )
    classes = tuple(str(labels[index]) for index in range(len(labels)))
    return LoadedModel(
        name=name if pretrained else f"{name} (random weights)",
        module=_Logits(network),
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        input_size=size.get("height") or size.get("shortest_edge"),
        transform=_Processed(processor),
        classes=() if len(classes) == NUM_IMAGENET_CLASSES else classes,
    )


_LIBRARIES: Mapping[str, Callable[[str, bool], LoadedModel]] = {
    "timm": _load_timm,
    "torchvision": _load_torchvision,
    "hf": _load_transformers,
}


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
