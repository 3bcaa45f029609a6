"""A network's answers to stimuli with a shape and a texture."""

import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from analysis.images.files import ImageError
from analysis.images.imagenet import IMAGENET_MEAN, IMAGENET_STD
from analysis.images.stimuli import StimulusSet
from analysis.models.layers import evaluation_mode
from analysis.models.loaded import LoadedModel
from analysis.runs.identity import describe_environment, hash_code, hash_weights
from analysis.runs.processes import by_first, in_turns, rank
from analysis.runs.resuming import load_partial, store_partial
from analysis.shape_bias.categories import IMAGENET, LabelMapping, check_categories
from analysis.shape_bias.result import ShapeBiasOptions, ShapeBiasResult

_SECONDS_BETWEEN_STORES = 2.0


def evaluate_shape_bias(
    model: nn.Module | LoadedModel,
    stimuli: StimulusSet,
    *,
    mapping: LabelMapping = IMAGENET,
    options: ShapeBiasOptions | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
    batch_size: int = 16,
    name: str | None = None,
    progress: Callable[[int, int], None] | None = None,
    partial: str | PathLike[str] | None = None,
) -> ShapeBiasResult:
    """Run a classifier on every stimulus and keep its logits.

    Args:
        model: A module that takes normalised images (N, 3, H, W) and gives logits (N, classes), or what `load_model`
            returns, which brings its own preprocessing. It runs in evaluation mode; its mode is restored.
        stimuli: Of one size after preprocessing.
        mapping: From classes to categories; by default ImageNet's 1000 classes and the 16 categories.
        options: How logits become decisions and decisions a ratio; can be changed later (`with_options`).
        mean: Per channel, subtracted from values in [0, 1]; by default the model's own (a `LoadedModel`'s, or the
            `pretrained_cfg` of a timm model), else ImageNet's.
        std: Per channel, divided by.
        input_size: Side to which images of another size are resized, bicubically and without a crop; by default the
            model's own, else none: published stimuli go into a 224 px network as they are.
        batch_size: Images in one forward pass.
        name: Recorded as the observer's; by default the model's.
        progress: Called with the number of stimuli done and of all.
        partial: A file that keeps the logits computed so far. A later call with the same weights, preprocessing and
            stimuli continues from it; it is removed at the end.

    Returns:
        The result; stimuli that cannot be read, or on which the logits are not finite, are in its `skipped`.

    Raises:
        ValueError: If a stimulus belongs to no category of the mapping, the number of outputs does not fit it, or no
            stimulus could be used.

    References:
        Geirhos et al. 2019, arXiv:1811.12231.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: expected at least 1")
    check_categories(stimuli.names, stimuli.shapes, stimuli.textures, mapping.categories)
    module = model.module if isinstance(model, LoadedModel) else model
    preprocessing = preprocessing_of(model, mean=mean, std=std, input_size=input_size)
    weights_hash = hash_weights(module)
    fingerprint = fingerprint_of(module, preprocessing, stimuli)
    state = by_first(lambda: _State.resume(partial, fingerprint)) if partial is not None else _State(fingerprint)
    reference = next(iter(module.parameters()), torch.zeros(()))
    firsts = range(state.done, len(stimuli), batch_size)

    def run(number: int) -> dict[int, NDArray[np.float32] | str]:
        chosen = range(firsts[number], min(firsts[number] + batch_size, len(stimuli)))
        return _run(module, stimuli, chosen, preprocessing, reference, mapping)

    stored = time.monotonic()
    with evaluation_mode(module), torch.no_grad():
        for found in in_turns(len(firsts), run):
            state.add(found, stimuli)
            due = time.monotonic() - stored > _SECONDS_BETWEEN_STORES or state.done == len(stimuli)
            if partial is not None and due and rank() == 0:
                state.store(Path(partial))
                stored = time.monotonic()
            if progress is not None:
                progress(state.done, len(stimuli))
    if not state.used:
        raise ValueError(f"stimuli: none of {len(stimuli)} could be used; {state.skipped[0][0]}: {state.skipped[0][1]}")
    options = options or ShapeBiasOptions()
    logits = np.concatenate(state.logits)

    def of_used(values: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(values[index] for index in state.used)

    result = ShapeBiasResult(
        observer=name or (model.name if isinstance(model, LoadedModel) else type(model).__name__),
        stimuli=of_used(stimuli.names),
        shapes=of_used(stimuli.shapes),
        textures=of_used(stimuli.textures),
        shape_exemplars=of_used(stimuli.shape_exemplars),
        texture_exemplars=of_used(stimuli.texture_exemplars),
        image_hashes=of_used(stimuli.hashes),
        responses=mapping.decide(logits, options.aggregation, options.tie),
        categories=mapping.categories,
        options=options,
        logits=logits,
        mapping=mapping,
        skipped=(*stimuli.skipped, *state.skipped),
        source=stimuli.source,
        preprocessing=preprocessing,
        weights_hash=weights_hash,
        fingerprint=fingerprint,
        environment=describe_environment(reference),
    )
    if partial is not None:
        by_first(lambda: Path(partial).unlink(missing_ok=True))
    return result


def preprocessing_of(
    model: nn.Module | LoadedModel,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
) -> dict[str, Any]:
    """What `evaluate_shape_bias` does to an image before the model, as it records it.

    Raises:
        ValueError: If a value is out of range.
    """
    own: dict[str, Any] = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD, "input_size": None}
    config = getattr(model, "pretrained_cfg", None)
    if isinstance(model, LoadedModel):
        own = {key: getattr(model, key) for key in own}
    elif isinstance(config, dict):  # a timm model
        own |= {key: config[key] for key in ("mean", "std") if key in config}
        own["input_size"] = config["input_size"][-1] if "input_size" in config else None
    chosen_mean, chosen_std = tuple(mean or own["mean"]), tuple(std or own["std"])
    size = input_size if input_size is not None else own["input_size"]
    if len(chosen_mean) != 3 or len(chosen_std) != 3 or min(chosen_std) <= 0:
        raise ValueError(f"mean={chosen_mean}, std={chosen_std}: expected three numbers each, std positive")
    if size is not None and size < 1:
        raise ValueError(f"input_size={size}: expected a positive number of pixels")
    return {"mean": list(chosen_mean), "std": list(chosen_std), "input_size": size, "resize": "bicubic, no crop"}


def fingerprint_of(module: nn.Module, preprocessing: Mapping[str, Any], stimuli: StimulusSet) -> str:
    """SHA-256 of everything the logits depend on: weights, code, preprocessing and stimuli."""
    settings = [hash_weights(module), hash_code(module), dict(preprocessing), stimuli.names, stimuli.hashes]
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def _run(
    module: nn.Module,
    stimuli: StimulusSet,
    indices: Sequence[int],
    preprocessing: Mapping[str, Any],
    reference: Tensor,
    mapping: LabelMapping,
) -> dict[int, NDArray[np.float32] | str]:
    """Logits of each stimulus, or the reason why there are none."""
    found: dict[int, NDArray[np.float32] | str] = {}
    images: dict[int, Tensor] = {}
    for index in indices:
        try:
            images[index] = _prepare(stimuli.pixels(index), preprocessing)
        except ImageError as error:
            found[index] = str(error)
    if not images:
        return found
    if len({image.shape for image in images.values()}) > 1:
        raise ValueError("stimuli: they have different sizes; pass input_size")
    logits = _logits(module, torch.stack(list(images.values())), reference, mapping)
    for index, row in zip(images, logits.float().cpu().numpy(), strict=True):
        found[index] = row if np.isfinite(row).all() else "the logits are not finite"
    return found


def _logits(module: nn.Module, batch: Tensor, reference: Tensor, mapping: LabelMapping) -> Tensor:
    logits = module(batch.to(reference.device, reference.dtype))
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != len(batch):
        what = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"model: its output ({what}) is no batch of logits; expected ({len(batch)}, classes)")
    mapping.check_outputs(logits.shape[1])
    return logits


def check_model(
    model: nn.Module | LoadedModel, stimuli: StimulusSet, mapping: LabelMapping, preprocessing: Mapping[str, Any]
) -> None:
    """Refuse a model that cannot answer these stimuli, by a black image of their size.

    Raises:
        ValueError: If the number of outputs does not fit the mapping, a stimulus belongs to no category, or the model
            fails.
    """
    check_categories(stimuli.names, stimuli.shapes, stimuli.textures, mapping.categories)
    module = model.module if isinstance(model, LoadedModel) else model
    for index in range(len(stimuli)):
        try:
            image = _prepare(np.zeros_like(stimuli.pixels(index)), preprocessing)
        except ImageError:
            continue
        reference = next(iter(module.parameters()), torch.zeros(()))
        with evaluation_mode(module), torch.no_grad():
            try:
                _logits(module, image[None], reference, mapping)
            except ValueError:
                raise
            except Exception as error:  # a user's own code
                raise ValueError(
                    f"model: failed on an image of shape {tuple(image.shape)} with {type(error).__name__}: {error}"
                ) from error
        return


def _prepare(pixels: NDArray[np.uint8], preprocessing: Mapping[str, Any]) -> Tensor:
    size = preprocessing["input_size"]
    if size is not None and pixels.shape[:2] != (size, size):
        pixels = np.asarray(Image.fromarray(pixels).resize((size, size), Image.Resampling.BICUBIC))
    values = torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32)) / 255
    mean, std = (torch.tensor(preprocessing[key]).view(-1, 1, 1) for key in ("mean", "std"))
    return (values - mean) / std


class _State:
    """Logits of the stimuli done so far."""

    def __init__(self, fingerprint: str) -> None:
        self.fingerprint = fingerprint
        self.done = 0
        self.used: list[int] = []
        self.skipped: list[tuple[str, str]] = []
        self.logits: list[NDArray[np.float32]] = []

    @classmethod
    def resume(cls, path: str | PathLike[str], fingerprint: str) -> "_State":
        """The state in a file; an empty one if there is none, or it belongs to another run."""
        state = cls(fingerprint)
        known = load_partial(path, fingerprint)
        if known is not None:
            header, arrays = known
            state.done, state.used = header["done"], header["used"]
            state.skipped = [(name, reason) for name, reason in header["skipped"]]
            state.logits = [arrays["logits"]] if state.used else []
        return state

    def add(self, found: Mapping[int, NDArray[np.float32] | str], stimuli: StimulusSet) -> None:
        for index in sorted(found):
            value = found[index]
            if isinstance(value, str):
                self.skipped.append((stimuli.names[index], value))
            else:
                self.used.append(index)
                self.logits.append(value[None])
        self.done += len(found)

    def store(self, path: Path) -> None:
        header = {name: getattr(self, name) for name in ("fingerprint", "done", "used", "skipped")}
        logits = np.concatenate(self.logits) if self.logits else np.zeros((0, 0), np.float32)
        store_partial(path, header, {"logits": logits})
