"""What large kernels do in a network that is trained already: cut them down and measure, without retraining.

Batch norms keep the statistics of the whole kernels, as every layer keeps its weights: the measurements answer what the
outer taps do in this network, not what a network trained with smaller kernels would do.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from os import PathLike
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

import replknet
from analysis.images.labelled import FolderImages, InMemory, LabelledImages
from analysis.images.sets import ImageSet, load_images
from analysis.images.stimuli import StimulusSet, load_stimuli
from analysis.images.synthetic.outlines import CLASSES
from analysis.models.loaded import LoadedModel
from analysis.receptive_field.measuring import effective_receptive_field
from analysis.receptive_field.result import ErfResult
from analysis.runs.identity import hash_weights
from analysis.runs.results import Result, ResultError, check_shares
from analysis.runs.settings import COUNTS, LARGEST_KERNEL, SEEDS, SIDES, check_number
from analysis.runs.writing import clear_leftovers, plain
from analysis.shape_bias.categories import IMAGENET, LabelMapping
from analysis.shape_bias.mapping import own_mapping
from analysis.shape_bias.measuring import check_model, evaluate_shape_bias, preprocessing_of
from analysis.study.design import Study
from analysis.study.images import StudyImages
from analysis.training.loop import accuracy
from replknet.networks import ANY_FAMILY
from replknet.networks.folding import copy_of

_NetworkT = TypeVar("_NetworkT", bound=replknet.Network)


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A network with parts of its kernels set to zero.

    Args:
        kernel: Side to which large kernels are cropped; None leaves them whole.
        stage: The only stage whose kernels are changed, from 0; None for all.
        small_branch: Keep the parallel small kernels.
        without: Another branch that is left out, of those that the large kernels of its family have.
    """

    kernel: int | None = None
    stage: int | None = None
    small_branch: bool = True
    without: str | None = None

    @property
    def name(self) -> str:
        """Of its folder."""
        where = "" if self.stage is None else f"_stage{self.stage + 1}"
        what = "whole" if self.kernel is None else f"crop{self.kernel}"
        return what + where + "".join(f"_no{branch}" for branch in self.dropped)

    @property
    def dropped(self) -> tuple[str, ...]:
        """The branches that are left out."""
        return (() if self.small_branch else ("small",)) + (() if self.without is None else (self.without,))


def names_explained(variants: Sequence[Variant]) -> str:
    """What the names of the variants say, in words."""
    told = [f"{Variant().name}: every kernel as it is"]
    if any(variant.kernel is not None for variant in variants):
        told.append("cropK: of the large kernels only the central K x K taps, the others zero")
    if any(variant.stage is not None for variant in variants):
        told.append("_stageN: in stage N alone, else in all")
    for branch in dict.fromkeys(branch for variant in variants for branch in variant.dropped):
        told.append(f"_no{branch}: without {_BRANCHES[branch]}")
    return "; ".join(told)


_BRANCHES = {
    "small": "the small kernels parallel to the large ones",
    "dilated": "the dilated kernels parallel to the large ones",
    "tall": "the tall ones of the two strips that make up a large kernel",
    "wide": "the wide ones of the two strips that make up a large kernel",
}


def large_kernels(model: replknet.Network) -> list[list[torch.nn.Conv2d]]:
    """The large depthwise convolutions of each stage, merged or not.

    Raises:
        ValueError: If one is parametrized, pruned or replaced: its kernel is then not its weight.
    """
    found: list[list[torch.nn.Conv2d]] = []
    for number, stage in enumerate(model.large_kernels(), 1):
        try:
            found.append([layer for part in stage for layer in part.convolutions()])
        except ValueError as error:
            raise ValueError(f"model: a large kernel of stage {number} {error}") from error
    return found


def kernel_sides(model: replknet.Network) -> list[int]:
    """Side of the large kernels of each stage; 1 where it has none."""
    return [max((max(layer.weight.shape[2:]) for layer in own), default=1) for own in large_kernels(model)]


@torch.no_grad()
def apply_variant(model: _NetworkT, variant: Variant) -> _NetworkT:
    """A copy of the network with the variant's taps set to zero.

    In a network whose branches are merged, the merged kernels are cropped.

    Raises:
        ValueError: If the kernel is not odd and positive, the stage does not exist, the small branch cannot be dropped
            because there is none any more, or a large kernel is not a plain convolution.
    """
    kernel, stage = variant.kernel, variant.stage
    if kernel is not None:
        _check_kernel(kernel)
    if stage is not None and not 0 <= stage < len(model.stages):
        raise ValueError(f"stage={stage}: expected a number from 0 to {len(model.stages) - 1}")
    large_kernels(model)  # refuses before anything is copied
    changed = copy_of(model)
    chosen = range(len(model.stages)) if stage is None else [stage]
    parts = [part for index in chosen for part in changed.large_kernels()[index]]
    for branch in variant.dropped:
        own = dict.fromkeys(name for part in parts for name in part.branches())
        if branch not in own:
            option = "small_branch=False" if branch == "small" else f"without={branch!r}"
            raise ValueError(
                f"{option}: this network has no separate {branch} kernels (those it has: {', '.join(own) or 'none'})"
            )
    for part in parts:
        if kernel is not None:
            part.crop(kernel)
        for branch in set(variant.dropped).intersection(part.branches()):
            part.drop(branch)
    return changed


def _check_kernel(kernel: int, name: str = "kernel") -> None:
    check_number(name, kernel, (1, LARGEST_KERNEL, "an odd positive number"))
    if kernel % 2 == 0:
        raise ValueError(f"{name}={kernel}: expected an odd positive number")


def branches_of(model: replknet.Network) -> tuple[str, ...]:
    """The branches beside large kernels that are not merged, and can be left out."""
    parts = [part for stage in model.large_kernels() for part in stage]
    return tuple(dict.fromkeys(branch for part in parts for branch in part.branches()))


def has_small_branch(model: replknet.Network) -> bool:
    """Whether there are parallel small kernels that are not merged."""
    return "small" in branches_of(model)


def default_variants(
    model: replknet.Network, kernels: Sequence[int] | None = None, *, by_stage: bool = True
) -> list[Variant]:
    """The network as it is, cropped at all stages and at one stage at a time, and without each of its branches.

    Args:
        model: To be cropped.
        kernels: Sides to crop to; None for some eight of the possible ones. At each stage only those smaller than its
            kernels are used.
        by_stage: Also one stage at a time.

    Raises:
        ValueError: If a kernel is not odd and positive, given twice, or none that the network's are larger than.
    """
    sizes = kernel_sides(model)
    largest = max(sizes)
    for kernel in kernels or ():
        _check_kernel(kernel, "kernels")
        if largest == 1:
            raise ValueError(f"kernels={kernel}: this network has no large kernels that could be cropped")
        if kernel >= largest:
            raise ValueError(f"kernels={kernel}: expected less than {largest}, the largest kernel of the network")
    if kernels is not None and len(set(kernels)) < max(len(kernels), 1):
        raise ValueError(f"kernels={tuple(kernels)}: expected one or more different numbers")
    if kernels is None:
        steps = np.unique(np.linspace(0, (largest - 1) // 2, 9).round().astype(int))[:-1]
        kernels = [int(2 * step + 1) for step in steps]
    variants = [Variant()]
    variants += [Variant(kernel=kernel) for kernel in sorted(set(kernels)) if kernel < largest]
    if by_stage:
        variants += [
            Variant(kernel=kernel, stage=stage)
            for stage, size in enumerate(sizes)
            for kernel in sorted(set(kernels))
            if kernel < size
        ]
    for branch in branches_of(model):
        variants.append(Variant(small_branch=False) if branch == "small" else Variant(without=branch))
    return variants


@torch.no_grad()
def kernel_energy(model: replknet.Network) -> pd.DataFrame:
    """Where the energy of the large kernels lies: one row for each stage and radius.

    The radius of a tap is its larger coordinate distance from the centre; a crop to k keeps the radii up to
    (k - 1) / 2. Branches and batch norms are merged first. `energy` is the share of the sum of squared taps at the
    radius, the mean over the stage's channels and blocks of each channel's own share; `cumulative` its running sum.
    """
    merged = replknet.reparameterize(model, level="kernels")
    rows = []
    large_kernels(merged)  # refuses
    for stage, parts in enumerate(merged.large_kernels()):
        shares = []
        for part in parts:
            power = part.dense_kernel().cpu().square()  # (C, K, K)
            half = power.shape[-1] // 2
            distance = torch.arange(-half, half + 1).abs()
            radius = torch.maximum(distance[:, None], distance[None, :]).flatten()
            rings = torch.zeros(len(power), half + 1, dtype=torch.float64)
            rings.index_add_(1, radius, power.flatten(1))
            total = rings.sum(1, keepdim=True)
            shares.append((rings / total)[total[:, 0] > 0])  # a channel without any tap has no share
        if not parts:  # small kernels only
            continue
        mean = torch.cat(shares).mean(0).numpy()
        for radius_value, (energy, total) in enumerate(zip(mean, mean.cumsum(), strict=True)):
            rows.append({"stage": stage + 1, "radius": radius_value, "energy": energy, "cumulative": total})
    return pd.DataFrame(rows)


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class VariantResult(Result):
    """What was measured on one variant; NaN where there were no images for it."""

    KIND: ClassVar[str] = "post hoc variant"

    variant: Variant
    settings: dict[str, Any]
    accuracy: float
    shape_bias: float
    coverage: float
    erf: ErfResult
    measured_on: dict[str, str] = field(default_factory=dict)
    """By the name of a measure, "accuracy" or "shape_bias", which images it is of."""

    def __post_init__(self) -> None:
        check_shares(self, "accuracy", "shape_bias", "coverage")

    def row(self) -> dict[str, Any]:
        """Of a table."""
        row: dict[str, Any] = {"variant": self.variant.name} | asdict(self.variant)
        row["stage"] = None if self.variant.stage is None else self.variant.stage + 1
        row |= {"accuracy": self.accuracy, "shape_bias": self.shape_bias, "coverage": self.coverage}
        for threshold in (0.5, 0.99):
            row[f"erf_area_{threshold}"] = self.erf.area_ratio(threshold)
            low, high = self.erf.area_ratio_interval(threshold)
            row |= {f"erf_area_{threshold}_low": low, f"erf_area_{threshold}_high": high}
        row["erf_rms_radius"] = self.erf.rms_radius()
        return row

    def headline(self) -> dict[str, Any]:
        """Variant, accuracy, area with half of the gradient, shape bias."""
        row = self.row()
        return {name: row[name] for name in ("variant", "accuracy", "erf_area_0.5", "shape_bias")}


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


def measure_variants(
    loaded: LoadedModel,
    variants: Sequence[Variant],
    directory: str | PathLike[str],
    *,
    erf_images: ImageSet | Tensor,
    labelled: LabelledImages | None = None,
    stimuli: StimulusSet | None = None,
    mapping: LabelMapping = IMAGENET,
    measured_on: Mapping[str, str] | None = None,
    settings: dict[str, Any] | None = None,
    batch_size: int | None = None,
    num_workers: int = 0,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[VariantResult]:
    """Accuracy, shape bias and effective receptive field of each variant; finished ones are read from `directory`.

    Args:
        loaded: A network of `replknet` and its preprocessing.
        variants: Of it, as `default_variants` makes them.
        directory: Gets one folder for each variant.
        erf_images: Normalised for the network.
        labelled: To measure the accuracy on; their classes are those of the network's outputs.
        stimuli: To measure the shape bias on.
        mapping: From outputs to the categories of the stimuli.
        measured_on: Which images these are, see `Materials`; recorded as the next.
        settings: Recorded with each result; one that was measured under other settings is measured anew.
        batch_size: See `effective_receptive_field`.
        num_workers: Processes that load images; without effect on the results.
        progress: Called with the variants done, their number, and the name of the one at work.

    Raises:
        ValueError: If the network is none of `replknet`.
    """
    model = loaded.module
    if not isinstance(model, replknet.Network):
        raise ValueError(f"model={loaded.name!r}: expected {ANY_FAMILY}, not {type(model).__name__}")
    recorded = plain({"weights": hash_weights(model), **(settings or {})})
    measured_on = dict(measured_on or {})
    clear_leftovers(Path(directory))
    results = []
    for number, variant in enumerate(variants):
        if progress is not None:
            progress(number, len(variants), variant.name)
        target = Path(directory) / variant.name
        try:
            found = VariantResult.load(target)
        except (OSError, ResultError):
            found = None
        if found is None or (found.settings, found.measured_on) != (recorded, measured_on):
            fast = replknet.reparameterize(apply_variant(model, variant).eval())
            erf = effective_receptive_field(
                fast,
                erf_images,
                name=variant.name,
                batch_size=batch_size,
                num_workers=num_workers,
                partial=target / "erf.partial.npz",
            )
            found = _measured(loaded, fast, variant, erf, labelled, stimuli, mapping, recorded, num_workers)
            found = replace(found, measured_on=measured_on)
            found.save(target, overwrite=True)
        results.append(found)
    if progress is not None:
        progress(len(variants), len(variants), "done")
    return results


def _measured(
    loaded: LoadedModel,
    fast: replknet.Network,
    variant: Variant,
    erf: ErfResult,
    labelled: LabelledImages | None,
    stimuli: StimulusSet | None,
    mapping: LabelMapping,
    settings: dict[str, Any],
    num_workers: int,
) -> VariantResult:
    nothing = float("nan")
    right = (
        nothing
        if labelled is None
        else accuracy(fast, labelled, mean=loaded.mean, std=loaded.std, num_workers=num_workers)
    )
    bias, coverage = nothing, nothing
    if stimuli is not None:
        conflict = evaluate_shape_bias(
            fast,
            stimuli,
            mapping=mapping,
            mean=loaded.mean,
            std=loaded.std,
            input_size=loaded.input_size,
            batch_size=32,
            num_workers=num_workers,
        )
        bias, coverage = conflict.shape_bias, conflict.coverage
    return VariantResult(
        variant=variant, settings=settings, accuracy=right, shape_bias=bias, coverage=coverage, erf=erf
    )


def posthoc_table(results: Sequence[VariantResult]) -> pd.DataFrame:
    """One row for each variant."""
    return pd.DataFrame([result.row() for result in results])
