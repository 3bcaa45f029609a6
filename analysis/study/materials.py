"""What a network with cropped kernels is measured on."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike

from torch import Tensor

import replknet
from analysis.images.labelled import FolderImages, InMemory, LabelledImages
from analysis.images.sets import ImageSet, load_images
from analysis.images.stimuli import StimulusSet, load_stimuli
from analysis.images.synthetic.outlines import CLASSES
from analysis.models.loaded import LoadedModel
from analysis.runs.settings import COUNTS, SEEDS, SIDES, check_number
from analysis.shape_bias.categories import IMAGENET, LabelMapping
from analysis.shape_bias.mapping import own_mapping
from analysis.shape_bias.measuring import check_model, preprocessing_of
from analysis.study.design import Study
from analysis.study.images import StudyImages
from replknet.networks import ANY_FAMILY


@dataclass(frozen=True, kw_only=True, eq=False)
class Materials:
    """What variants of a network are measured on.

    Args:
        erf_images: For receptive fields, normalised for the network.
        size: Side of these in pixels.
        labelled: To measure the accuracy on; their classes are those of the network's outputs.
        stimuli: To measure the shape bias on.
        mapping: From outputs to the categories of the stimuli.
        measured_on: By the name of a measure, "receptive_field", "accuracy" or "shape_bias", which images it is of, in
            words.
    """

    erf_images: ImageSet | Tensor
    size: int
    labelled: LabelledImages | None = None
    stimuli: StimulusSet | None = None
    mapping: LabelMapping = IMAGENET
    measured_on: Mapping[str, str] = field(default_factory=dict)


def materials_for(
    loaded: LoadedModel,
    *,
    data: str | PathLike[str] | None = None,
    stimuli: str | PathLike[str] | None = None,
    mapping: LabelMapping | None = None,
    images: str | PathLike[str] | None = None,
    size: int | None = None,
    num_images: int = 12,
    seed: int = 0,
) -> Materials:
    """Images for a network: what is given, and for a network of a study on generated images its own kind.

    Args:
        loaded: A network of `replknet` and its preprocessing.
        data: Image folder with `val` (or `test`), for the accuracy.
        stimuli: Folder of cue-conflict stimuli, for the shape bias.
        mapping: From outputs to categories; by default ImageNet's, or the classes that the network names.
        images: Folder of images for receptive fields; by default the network's own kind, or dead leaves.
        size: Their side in pixels; by default what the study used, or four times the network's input.
        num_images: How many of them.
        seed: Of their draw.

    Raises:
        ValueError: If the network is none of `replknet`, or cannot answer the stimuli, or its classes are others.
    """
    module = loaded.module
    if not isinstance(module, replknet.Network):
        raise ValueError(f"model={loaded.name!r}: expected {ANY_FAMILY}, not {type(module).__name__}")
    for argument, value, allowed in (("seed", seed, SEEDS), ("num_images", num_images, COUNTS)):
        check_number(argument, value, allowed)
    trained = loaded.training
    side = int(trained.get("erf_size", 4 * (loaded.input_size or 128))) if size is None else size
    check_number("size", side, SIDES)
    labelled: LabelledImages | None = None
    generated: StudyImages | None = None
    measured_on = {}
    if data is not None:
        folder = FolderImages(data, "val", size=loaded.input_size or 224)
        labelled = InMemory(folder)
        measured_on["accuracy"] = f"{len(labelled)} images of {folder.source}"
        if len(labelled.classes) != module.config.num_classes or loaded.classes not in ((), labelled.classes):
            raise ValueError(
                f"data={str(data)!r}: has the classes {', '.join(labelled.classes[:5])}, ...; the network "
                f"{', '.join(loaded.classes[:5]) or module.config.num_classes}, ..."
            )
    elif loaded.classes == CLASSES:
        generated = StudyImages(
            Study(
                size=loaded.input_size or 64,
                layers=module.config.layers,
                channels=module.config.widths,
                train_balance=trained.get("train_balance"),
                texture_region=trained.get("texture_region", "image"),
                texture_scale=trained.get("texture_scale", 1.0),
                erf_size=side,
                num_erf=num_images,
            )
        )
        labelled = generated.val
        measured_on["accuracy"] = f"{len(labelled)} images generated like those of its training, but others"
    chosen = load_stimuli(stimuli) if stimuli is not None else generated.conflict(0.0) if generated else None
    if mapping is not None and chosen is None:
        raise ValueError("mapping=LabelMapping(...): goes with stimuli only; there are none")
    mapping = mapping or (IMAGENET if chosen is None else own_mapping([loaded]))
    if chosen is not None:
        check_model(loaded, chosen, mapping, preprocessing_of(loaded))
        measured_on["shape_bias"] = f"{len(chosen)} stimuli ({chosen.source})"
    if generated is not None and images is None:
        erf_images: ImageSet | Tensor = generated.erf
        measured_on["receptive_field"] = "of those of the accuracy, spread over them and resized"
    else:
        erf_images = load_images(images, size=side, num_images=num_images, seed=seed, mean=loaded.mean, std=loaded.std)
        measured_on["receptive_field"] = erf_images.source
    return Materials(
        erf_images=erf_images,
        size=side,
        labelled=labelled,
        stimuli=chosen,
        mapping=mapping,
        measured_on=measured_on,
    )
