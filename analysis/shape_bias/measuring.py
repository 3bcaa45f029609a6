"""A network's answers to stimuli with a shape and a texture."""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from analysis.images.inputs import Inputs
from analysis.images.preparing import check_normalization, evaluation_transform
from analysis.images.stimuli import SingleCues, StimulusSet, load_stimuli
from analysis.models.batches import classify, run_batches, split_decided
from analysis.models.layers import evaluation_mode
from analysis.models.loaded import LoadedModel, place_of
from analysis.models.loading import as_loaded
from analysis.runs.identity import NetworkIdentity, describe_environment, identify
from analysis.runs.resuming import Progress, Row, hash_settings
from analysis.shape_bias.categories import LabelMapping
from analysis.shape_bias.mapping import own_mapping
from analysis.shape_bias.result import ShapeBiasOptions, ShapeBiasResult


def evaluate_shape_bias(
    model: LoadedModel | nn.Module | str,
    stimuli: StimulusSet | str | PathLike[str],
    *,
    mapping: LabelMapping | None = None,
    options: ShapeBiasOptions | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
    batch_size: int = 16,
    num_workers: int = 0,
    name: str | None = None,
    identity: NetworkIdentity | None = None,
    partial: str | PathLike[str] | None = None,
    progress: Progress | None = None,
) -> ShapeBiasResult:
    """Run a classifier on every stimulus and keep its logits.

    Args:
        model: What `load_model` returns or takes, which brings its own preprocessing, or a module that takes normalised
            images (N, 3, H, W) and gives logits (N, classes). It runs in evaluation mode; its mode is restored.
        stimuli: What `load_stimuli` returns or takes; of one size after preprocessing.
        mapping: From classes to categories; by default a category for each class that a `LoadedModel` names, or
            ImageNet's 1000 classes and the 16 categories; for stimuli of single cues the outputs that their WordNet ids
            name.
        options: How logits become decisions and decisions a ratio; can be changed later (`with_options`).
        mean: Per channel, subtracted from values in [0, 1]; by default the model's own (a `LoadedModel`'s, or the
            `pretrained_cfg` of a timm model), else ImageNet's.
        std: Per channel, divided by.
        input_size: Side to which images of another size are resized, bicubically and without a crop; by default the
            model's own, else none: published stimuli go into a 224 px network as they are. Stimuli of single cues are
            resized and cropped as their publishers do, to 224 pixels or to this side in the same proportion.
        batch_size: Images in one forward pass.
        num_workers: Processes that read images; 0 reads them in this one.
        name: Recorded as the observer's; by default the model's.
        identity: What `identify` says of the module, where that is known already.
        progress: Called with the number of stimuli done and of all, at the start and after each batch.
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
    loaded = as_loaded(model)
    if not isinstance(stimuli, StimulusSet):
        stimuli = load_stimuli(stimuli)
    mapping = mapping or mapping_of(loaded, stimuli)
    mapping.check_stimuli(stimuli.names, stimuli.shapes, stimuli.textures)
    preprocessing = preprocessing_of(loaded, stimuli.single_cues, mean=mean, std=std, input_size=input_size)
    identity = identity or identify(loaded.module)
    fingerprint = fingerprint_of(identity, preprocessing, stimuli)

    def rows(images: Tensor) -> list[Row | str]:
        logits = _logits(loaded, images, mapping).float()
        return split_decided(logits, logits=logits)

    measured = run_batches(
        loaded,
        _inputs(stimuli, preprocessing),
        rows,
        batch_size=batch_size,
        num_workers=num_workers,
        fingerprint=fingerprint,
        partial=partial,
        progress=progress,
    )
    if not measured.used:
        name, reason = measured.skipped[0]
        raise ValueError(f"stimuli: none of {len(stimuli)} could be used; {name}: {reason}")
    options = options or ShapeBiasOptions()
    logits = measured.stacked("logits")
    return ShapeBiasResult(
        observer=name or loaded.name,
        stimuli=measured.of_used(stimuli.names),
        shapes=measured.of_used(stimuli.shapes),
        textures=measured.of_used(stimuli.textures),
        shape_exemplars=measured.of_used(stimuli.shape_exemplars),
        texture_exemplars=measured.of_used(stimuli.texture_exemplars),
        image_hashes=measured.of_used(stimuli.hashes),
        responses=mapping.decide(logits, options.aggregation, options.tie),
        categories=mapping.categories,
        options=options,
        logits=logits,
        mapping=mapping,
        skipped=(*stimuli.skipped, *measured.skipped),
        source=stimuli.source,
        preprocessing=preprocessing,
        weights_hash=identity.weights,
        fingerprint=fingerprint,
        environment=describe_environment(place_of(loaded.module)),
    )


def mapping_of(loaded: LoadedModel, stimuli: StimulusSet) -> LabelMapping:
    """Of the network's own classes (`own_mapping`); of stimuli of single cues the outputs that their WordNet ids name.

    Raises:
        ValueError: If the network has no such outputs.
    """
    if stimuli.single_cues is None:
        return own_mapping([loaded])
    return LabelMapping.from_wordnet(stimuli.single_cues.wordnet_ids, loaded.classes)


def preprocessing_of(
    model: LoadedModel | nn.Module,
    single_cues: SingleCues | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    input_size: int | None = None,
) -> dict[str, Any]:
    """What `evaluate_shape_bias` does to an image before the model, as it records it.

    Raises:
        ValueError: If a value is out of range.
    """
    own = as_loaded(model)
    chosen_mean, chosen_std = tuple(mean or own.mean), tuple(std or own.std)
    own_size = own.input_size if single_cues is None else single_cues.size
    size = input_size if input_size is not None else own_size
    check_normalization(chosen_mean, chosen_std)
    if size is not None and size < 1:
        raise ValueError(f"input_size={size}: expected a positive number of pixels")
    resize = "bicubic, no crop"
    if single_cues is not None:
        short = int((size or single_cues.size) / single_cues.crop)
        resize = f"{single_cues.interpolation}, antialiased, short side to {short}, central crop"
    # In the alphabetical order that the fingerprints of saved results have.
    return {"input_size": size, "mean": list(chosen_mean), "resize": resize, "std": list(chosen_std)}


def fingerprint_of(identity: NetworkIdentity, preprocessing: Mapping[str, Any], stimuli: StimulusSet) -> str:
    """SHA-256 of everything the logits depend on: weights, code, preprocessing and stimuli."""
    return hash_settings([identity.weights, identity.code, dict(preprocessing), stimuli.names, stimuli.hashes])


def _inputs(stimuli: StimulusSet, preprocessing: Mapping[str, Any]) -> Inputs:
    own = stimuli.single_cues
    crop, interpolation = (1.0, "bicubic") if own is None else (own.crop, own.interpolation)
    transform = evaluation_transform(
        preprocessing["input_size"],
        mean=preprocessing["mean"],
        std=preprocessing["std"],
        crop=crop,
        interpolation=interpolation,
    )
    return Inputs(stimuli.names, stimuli.arrays or stimuli.paths, transform)


def _logits(loaded: LoadedModel, images: Tensor, mapping: LabelMapping) -> Tensor:
    logits = classify(loaded, images)
    mapping.check_outputs(logits.shape[1], loaded.name)
    return logits


def check_model(
    loaded: LoadedModel, stimuli: StimulusSet, mapping: LabelMapping, preprocessing: Mapping[str, Any]
) -> None:
    """Refuse a model that cannot answer these stimuli, by a black image of their size.

    Raises:
        ValueError: If the number of outputs does not fit the mapping, a stimulus belongs to no category, or the model
            fails.
    """
    mapping.check_stimuli(stimuli.names, stimuli.shapes, stimuli.textures)
    image = _inputs(stimuli, preprocessing).first()
    place = place_of(loaded.module)
    with evaluation_mode(loaded.module), torch.no_grad():
        _logits(loaded, torch.zeros_like(image[None], device=place.device, dtype=place.dtype), mapping)
