"""Networks of other libraries, by name, with their own preprocessing: timm, torchvision, transformers."""

import difflib
import inspect
import logging
import pickle
import sys
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from analysis.images.imagenet import NUM_IMAGENET_CLASSES, are_imagenet
from analysis.models.loaded import OWN, RANDOM, LoadedModel
from analysis.models.weights import fitted, put
from analysis.runs.texts import few

_WITH_AUXILIARY_HEADS = ("googlenet", "inception_v3")
_NO_CODE: dict[str, Any] = {"trust_remote_code": False}
"""For transformers, which would otherwise ask whether to run the code of a repository or folder."""


def _load_timm(name: str, pretrained: bool, num_classes: int | None, **options: Any) -> LoadedModel:
    import timm

    if not timm.is_model(name):
        bare = name.partition(".")[0]
        holding = sorted(timm.list_models(f"*{bare}*"), key=lambda own: (not own.startswith(bare), len(own)))
        near = holding[:3] or difflib.get_close_matches(name, timm.list_models())
        raise ValueError(
            f"model='timm:{name}': timm has no such model" + (f"; near are {', '.join(near)}" if near else "")
        )
    architecture, _, tag = name.partition(".")
    tagged = timm.models.get_arch_pretrained_cfgs(architecture)
    if tag and name not in tagged:
        raise ValueError(f"model='timm:{name}': expected {architecture!r}, or of its weights one of {few(tagged, 10)}")
    options |= {} if num_classes is None else {"num_classes": num_classes}
    try:
        with quiet("huggingface_hub"):
            module = timm.create_model(name, pretrained=pretrained, **options)
    except TypeError as error:  # of an option
        raise ValueError(f"model='timm:{name}': cannot be made ({error})") from error
    except Exception as error:  # the hub's client raises its own, requests' and httpx's types
        config = timm.models.get_pretrained_cfg(name)
        address = "" if config is None else config.url or f"https://huggingface.co/{config.hf_hub_id}"
        raise _unavailable(f"timm:{name}", error, address) from error
    loaded = from_timm(module, name if pretrained else name + RANDOM)
    return replace(loaded, fresh=lambda: timm.create_model(name, **options), initial="" if pretrained else OWN)


def from_timm(module: nn.Module, name: str) -> LoadedModel:
    """A module of timm with the preprocessing that it names."""
    import timm

    config: Any = module.pretrained_cfg
    chosen = timm.data.resolve_data_config({}, model=module)
    return LoadedModel(
        name=name,
        module=module,
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        input_size=config["input_size"][-1],
        transform=timm.data.create_transform(**chosen, is_training=False),
    )


def _load_torchvision(name: str, pretrained: bool, num_classes: int | None, **options: Any) -> LoadedModel:
    import torchvision

    try:
        weights = torchvision.models.get_model_weights(name).DEFAULT
    except ValueError:
        near = few(difflib.get_close_matches(name, torchvision.models.list_models(), n=3))
        raise ValueError(
            f"model='torchvision:{name}': torchvision has no such model" + (f"; near are {near}" if near else "")
        ) from None
    builder = torchvision.models.get_model_builder(name)
    known = inspect.signature(builder).parameters
    if num_classes is not None:
        # The outputs beside that of the head, which some have in training, would be of no use.
        options |= {"num_classes": num_classes, **({"aux_logits": False} if name in _WITH_AUXILIARY_HEADS else {})}
    # Without weights of their own networks for segmentation and detection would still fetch those of a backbone.
    options |= {"weights_backbone": None} if "weights_backbone" in known else {}

    def fresh() -> nn.Module:
        made: nn.Module = builder(weights=None, **options)
        return made

    try:
        with redirect_stdout(sys.stderr):  # it prints the address
            if pretrained:  # the builder would unpickle whatever objects a file in the cache names
                state = weights.get_state_dict(check_hash=True, weights_only=True)
            module = builder(weights=weights) if pretrained and num_classes is None else fresh()
    except OSError as error:
        raise _unavailable(f"torchvision:{name}", error, weights.url) from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"model='torchvision:{name}': its file in {Path(torch.hub.get_dir()) / 'checkpoints'} is damaged, or holds "
            f"more than tensors; without it, {weights.url} is fetched anew"
        ) from error
    except (TypeError, ValueError) as error:  # of an option
        raise ValueError(f"model='torchvision:{name}': cannot be made ({error})") from error
    if pretrained and num_classes is not None:
        put(module, fitted(module, state, name)[0])
    preset = weights.transforms()
    metrics = weights.meta.get("_metrics", {}).get("ImageNet-1K", {}) if pretrained else {}
    return LoadedModel(
        name=name if pretrained else name + RANDOM,
        module=module,
        published={f"top{k}": metrics[f"acc@{k}"] for k in (1, 5) if f"acc@{k}" in metrics},
        fresh=fresh,
        initial="" if pretrained else OWN,
        **_of_preset(preset),
    )


def _of_preset(preset: Any) -> dict[str, Any]:
    """The preprocessing of torchvision's weights; networks for detection normalise for themselves."""
    if not hasattr(preset, "mean"):
        return {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}
    sides = next((side for name in ("crop_size", "resize_size") if (side := getattr(preset, name, None))), (None,))
    return {"mean": tuple(preset.mean), "std": tuple(preset.std), "input_size": sides[0], "transform": preset}


class _Logits(nn.Module):
    """A classifier of transformers as a function of an image batch."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    @property
    def original_name(self) -> str:
        """Of the class within, by the name that TorchScript gives it."""
        return type(self.network).__name__

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


def _load_transformers(name: str, pretrained: bool, num_classes: int | None, **options: Any) -> LoadedModel:
    try:
        import transformers
    except ImportError as error:
        raise ValueError(f"model='hf:{name}': needs the package transformers (extra 'transformers')") from error
    family = transformers.AutoModelForImageClassification
    try:
        with quiet("huggingface_hub"):
            # First: without a network one wait is enough.
            labels_of = {} if num_classes is None else {"num_labels": num_classes}
            config = transformers.AutoConfig.from_pretrained(name, **labels_of, **_NO_CODE)
            processor = transformers.AutoImageProcessor.from_pretrained(name, **_NO_CODE)
            network = family.from_pretrained(name, **_NO_CODE) if pretrained else family.from_config(config, **_NO_CODE)
    except (OSError, ValueError) as error:
        raise _unavailable(f"hf:{name}", error, f"https://huggingface.co/{name}") from error
    labels = network.config.id2label
    size: dict[str, int] = next(
        (part for part in (getattr(processor, key, None) for key in ("crop_size", "size")) if part), {}
    )
    classes = tuple(str(labels[index]) for index in range(len(labels)))
    notes: tuple[str, ...] = ()
    if are_imagenet(classes):
        classes = ()
    elif len(classes) == NUM_IMAGENET_CLASSES:
        notes = (
            f"the {len(classes)} labels of {name} ({', '.join(classes[:3])}, ...) are not the names of ImageNet-1K in "
            "their order: they are taken for classes of its own",
        )
    return LoadedModel(
        name=name if pretrained else name + RANDOM,
        module=_Logits(network),
        fresh=lambda: _Logits(family.from_config(config, **_NO_CODE)),
        initial="" if pretrained else OWN,
        mean=tuple(processor.image_mean),
        std=tuple(processor.image_std),
        input_size=size.get("height") or size.get("shortest_edge"),
        transform=_Processed(processor),
        classes=classes,
        notes=notes,
    )


@contextmanager
def quiet(library: str) -> Iterator[None]:
    """Keep what a library logs to itself, a hub's every retry, an exporter's whole program: our error says it once."""
    log = logging.getLogger(library)
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(level)


def _unavailable(spec: str, error: Exception, address: str) -> ValueError:
    reason = textwrap.shorten(str(error).strip().partition("\n")[0], 160, placeholder=" ...") or type(error).__name__
    return ValueError(
        f"model={spec!r}: its weights could not be loaded from {address or 'the hub'} ({reason}); go online once to "
        "fill the cache, or take random weights with pretrained=False"
    )


LIBRARIES: Mapping[str, Callable[..., LoadedModel]] = {
    "timm": _load_timm,
    "torchvision": _load_torchvision,
    "hf": _load_transformers,
}
"""By the prefix of a name."""


def names_library(spec: str) -> bool:
    """Whether a name is that of a network of another library, such as "timm:resnet18"."""
    prefix, _, rest = spec.partition(":")
    return prefix in LIBRARIES and bool(rest)


def load_library(spec: str, *, pretrained: bool, num_classes: int | None = None, **options: Any) -> LoadedModel:
    """A network by the name of its library and its own.

    Args:
        spec: Such as "timm:resnet18".
        pretrained: Load its published weights.
        num_classes: Of its head, which is new where the published one has others; None for the published one.
        **options: Others of the library's own function.

    Raises:
        ValueError: If there is no such network, or its weights cannot be had.
    """
    prefix, _, name = spec.partition(":")
    if prefix == "timm":
        from replknet import timm_models  # noqa: F401  the family among timm's own
    return LIBRARIES[prefix](name, pretrained, num_classes, **options)
