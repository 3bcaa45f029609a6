"""What large kernels do in a network that is trained already: cut them down and measure, without retraining.

Batch norms keep the statistics of the whole kernels, as every layer keeps its weights: the measurements answer what the
outer taps do in this network, not what a network trained with smaller kernels would do.
"""

import math
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
from analysis.images.labelled import LabelledImages
from analysis.images.sets import ImageSet
from analysis.images.stimuli import StimulusSet
from analysis.models.loaded import LoadedModel
from analysis.receptive_field.measuring import effective_receptive_field
from analysis.receptive_field.methods import field_warnings
from analysis.receptive_field.result import ErfResult
from analysis.runs.identity import hash_weights
from analysis.runs.results import Result, ResultError, check_shares
from analysis.runs.settings import LARGEST_KERNEL, check_number
from analysis.runs.texts import few
from analysis.runs.writing import clear_leftovers, plain
from analysis.shape_bias.categories import IMAGENET, LabelMapping
from analysis.shape_bias.measuring import evaluate_shape_bias
from analysis.shape_bias.methods import LOW_COVERAGE
from analysis.statistics import wilson_interval
from analysis.study.measures import MEASURES, cell_text
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
    accuracy_interval: tuple[float, float] = (math.nan, math.nan)
    """Wilson's, at 95 %, over images."""
    shape_bias_interval: tuple[float, float] = (math.nan, math.nan)
    """At 95 %, of `ShapeBiasResult.confidence_interval`."""
    chance: float = math.nan
    """Accuracy of guessing."""

    def __post_init__(self) -> None:
        check_shares(self, "accuracy", "shape_bias", "coverage")

    def row(self) -> dict[str, Any]:
        """Of a table."""
        row: dict[str, Any] = {"variant": self.variant.name} | asdict(self.variant)
        row["stage"] = None if self.variant.stage is None else self.variant.stage + 1
        row |= {"accuracy": self.accuracy, "shape_bias": self.shape_bias, "coverage": self.coverage}
        ends = {"accuracy": self.accuracy_interval, "shape_bias": self.shape_bias_interval}
        for threshold in (0.5, 0.99):
            row[f"erf_area_{threshold}"] = self.erf.area_ratio(threshold)
            ends[f"erf_area_{threshold}"] = self.erf.area_ratio_interval(threshold)
        row |= {f"{name}_{end}": own[index] for name, own in ends.items() for index, end in enumerate(("low", "high"))}
        row["erf_rms_radius"] = self.erf.rms_radius()
        return row

    def headline(self) -> dict[str, Any]:
        """Variant, accuracy, area with half of the gradient, shape bias."""
        row = self.row()
        return {name: row[name] for name in ("variant", "accuracy", "erf_area_0.5", "shape_bias")}


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
    measured: dict[str, Any] = {"accuracy": math.nan, "shape_bias": math.nan, "coverage": math.nan}
    if labelled is not None:
        right = accuracy(fast, labelled, mean=loaded.mean, std=loaded.std, num_workers=num_workers)
        measured["accuracy"], measured["chance"] = right, 1 / len(labelled.classes)
        measured["accuracy_interval"] = wilson_interval(round(right * len(labelled)), len(labelled))
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
        measured["shape_bias"], measured["coverage"] = conflict.shape_bias, conflict.coverage
        measured["shape_bias_interval"] = conflict.confidence_interval()
    return VariantResult(variant=variant, settings=settings, erf=erf, **measured)


def posthoc_table(results: Sequence[VariantResult]) -> pd.DataFrame:
    """One row for each variant."""
    return pd.DataFrame([result.row() for result in results])


def posthoc_warnings(results: Sequence[VariantResult]) -> list[str]:
    """What weakens the numbers: variants that see nothing any more, answers with neither cue, fields that are cut off.

    Args:
        results: Of `measure_variants`.
    """
    guessing = [own.variant.name for own in results if own.accuracy_interval[0] <= own.chance]
    seldom = [own.variant.name for own in results if own.coverage < LOW_COVERAGE]
    texts = []
    if guessing:
        texts.append(
            f"The 95 % interval of the accuracy does not exclude guessing ({100 * results[0].chance:.1f} %) of "
            f"{few(guessing, 8)}: whatever else is measured there is of a network that does not know the images any "
            "more."
        )
    if seldom:
        texts.append(
            f"Fewer than half of the conflict images were answered with either cue by {few(seldom, 8)}: that shape "
            "bias rests on the others."
        )
    return texts + field_warnings([own.erf for own in results])


def intervals_text(results: Sequence[VariantResult]) -> str:
    """What the intervals of the measures are over."""
    whole = results[0]
    parts = ["of accuracies over images (Wilson, 1927)"] if np.isfinite(whole.accuracy) else []
    ways = ["of areas over images"]
    if np.isfinite(whole.shape_bias):
        ways.append("of shape biases over objects and textures, or over images where these share none")
    return f"95 % intervals: {', '.join([*parts, *ways])} (bootstrap; Efron and Tibshirani, 1993)"


def posthoc_texts(results: Sequence[VariantResult]) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of a table for people: what was measured, with intervals."""
    table = posthoc_table(results)
    names = ("accuracy", "erf_area_0.5", "erf_area_0.99", "shape_bias", "coverage")
    measures = [MEASURES[name] for name in names if table[name].notna().any()]
    rows = [[row["variant"], *(cell_text(row, own) for own in measures)] for row in table.to_dict("records")]
    return ["variant", *(own.heading for own in measures)], rows
