"""What was measured on one trained network of a study, and on all of them."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.receptive_field.result import ErfResult
from analysis.runs.results import Result, ResultError, check_shares
from analysis.shape_bias.psychometric import PsychometricFit, fit_psychometric
from analysis.shape_bias.result import ShapeBiasResult
from analysis.statistics import mean_interval, percentile_interval
from analysis.study.design import Cell
from analysis.study.measures import MEASURES, STIMULI
from analysis.training.progress import Curve
from replknet.networks import FAMILIES, family_named


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CellResult(Result):
    """What was measured on one trained network."""

    KIND: ClassVar[str] = "ablation cell"
    PLOTS: ClassVar[Mapping[str, str]] = {
        "psychometric": "analysis.study.plots:plot_psychometric",
        "curves": "analysis.study.plots:plot_curves",
    }

    cell: Cell
    kernel_sizes: tuple[int, ...]
    settings: dict[str, Any]
    """The complete recipe: of two results with the same settings, one is a repeat of the other."""
    classes: tuple[str, ...]
    curve: Curve
    accuracy: float
    """On the validation images."""
    num_val: int
    shape_only_accuracy: float
    """On images without texture; NaN for a study of an image folder, as all that follows of shape bias."""
    texture_only_accuracy: float
    """On images without a figure."""
    parameters: int
    """While training."""
    merged_parameters: int
    """With the kernels merged."""
    macs: int
    """For one image of the training size, kernels merged."""
    seconds_per_step: float
    """Median of the training."""
    inference_ms: float
    """For one image, median over batches of 32, re-parameterised."""
    balances: tuple[float, ...]
    num_shape: tuple[int, ...]
    """Conflict images at each balance that were answered with their shape."""
    num_texture: tuple[int, ...]
    num_conflict: int
    """Images at each balance."""
    weights_hash: str
    environment: dict[str, str]
    erf: ErfResult
    untrained_erf: ErfResult = field(metadata={"folder": "erf_untrained"})
    """Of the same network before the training, its batch norms calibrated on training images."""
    conflict: ShapeBiasResult | None
    """On the images with both cues full."""
    cue_conflict: ShapeBiasResult | None
    """On the cue-conflict stimuli of others, of the categories that the network can name; None where not shown."""
    edges: ShapeBiasResult | None
    silhouettes: ShapeBiasResult | None

    @property
    def widths(self) -> str:
        """Of the stages."""
        return "-".join(map(str, self.settings["config"]["channels"]))

    @property
    def shape_bias(self) -> float:
        """S / (S + T) with both cues full; NaN for an image folder."""
        return self.conflict.shape_bias if self.conflict is not None else float("nan")

    @property
    def coverage(self) -> float:
        """(S + T) / n with both cues full."""
        return self.conflict.coverage if self.conflict is not None else float("nan")

    @cached_property
    def psychometric(self) -> PsychometricFit | None:
        """The logistic fit over all balances; None for an image folder."""
        if not self.balances:
            return None
        return fit_psychometric(self.balances, self.num_shape, self.num_texture)

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """At 95 %, over images: of the area with half of the gradient, trained and not, and of the shape bias.

        On stimuli of others, over objects and textures: of the shape bias; of the accuracy where both cues tell the
        same, over textures, as each of these images shows another object.
        """
        found = {"erf": self.erf.area_ratio_interval(0.5), "untrained_erf": self.untrained_erf.area_ratio_interval(0.5)}
        if self.conflict is not None:
            found["shape_bias"] = self.conflict.confidence_interval("image", num_resamples=2000)
        if self.cue_conflict is not None:
            found["cue_conflict_shape_bias"] = self.cue_conflict.confidence_interval("two-way", num_resamples=2000)
            found["congruent_accuracy"] = congruent_interval(self.cue_conflict)
        return found

    def __post_init__(self) -> None:
        name = self.cell.name
        if bool(self.balances) != (self.conflict is not None):
            raise ResultError(f"{name}: balances {self.balances} do not go with the conflict images")
        if not self.classes or not self.curve.step or not self.kernel_sizes:
            raise ResultError(f"{name}: without classes, a learning curve or kernels")
        config = self.settings.get("config")
        if not isinstance(config, dict) or not isinstance(config.get("channels"), list):
            raise ResultError(f"{name}: without the architecture of its network")
        if not len(self.balances) == len(self.num_shape) == len(self.num_texture):
            raise ResultError(f"{name}: {len(self.balances)} balances, and other numbers of decisions")
        for shape, texture in zip(self.num_shape, self.num_texture, strict=True):
            if min(shape, texture) < 0 or shape + texture > self.num_conflict:
                raise ResultError(f"{name}: {shape} + {texture} decisions on {self.num_conflict} images")
        check_shares(self, "accuracy", "shape_only_accuracy", "texture_only_accuracy")

    def headline(self) -> dict[str, Any]:
        """Cell, accuracy, and the two quantities that a study asks for."""
        names = ("accuracy", "erf_area_0.5", "shape_bias")
        return {"cell": self.cell.name, **{name: MEASURES[name].of(self) for name in names}}

    def row(self) -> dict[str, float | str | bool]:
        """Of the table of a study: every measure that is defined for its images."""
        row: dict[str, float | str | bool] = {"cell": self.cell.name, **asdict(self.cell)}
        row["kernel_sizes"] = "-".join(map(str, self.kernel_sizes))
        row["widths"] = self.widths
        found = {name: measure.of(self) for name, measure in MEASURES.items()}
        return row | {name: value for name, value in found.items() if value is not None}


def congruent_interval(answers: ShapeBiasResult) -> tuple[float, float]:
    """Of the accuracy where shape and texture tell the same, at 95 % over textures; NaN with fewer than two."""
    names = np.array(answers.stimuli)[answers.columns["congruent"]]
    own = answers.restricted(names.tolist())
    correct = own.columns["correct"].astype(float)
    draws = own.resample(lambda weights: weights @ correct / weights.sum(1), "texture", 2000, seed=0)
    return percentile_interval(draws, 0.95)


def _check_alike(results: Sequence[CellResult]) -> None:
    """Refuse to compare answers to different images."""
    for name in STIMULI:
        shown = [(result.cell.name, getattr(result, name)) for result in results if getattr(result, name) is not None]
        for cell, answers in shown[1:]:
            first_cell, first = shown[0]
            left_out = {image for image, _ in (*first.skipped, *answers.skipped)}
            if first.categories != answers.categories or _seen(first, left_out) != _seen(answers, left_out):
                raise ResultError(
                    f"cells {first_cell} and {cell} were shown different stimuli ({first.source} and "
                    f"{answers.source}); run the study with all its kernels and seeds on one of them"
                )


def _seen(answers: ShapeBiasResult, left_out: set[str]) -> dict[str, str]:
    """The images and their hashes."""
    pairs = zip(answers.stimuli, answers.image_hashes, strict=True)
    return {image: digest for image, digest in pairs if image not in left_out}


def study_table(results: Sequence[CellResult]) -> pd.DataFrame:
    """One row for each cell, by family, kernel and seed.

    Raises:
        ResultError: If the cells have answered different stimuli of the same kind.
    """
    _check_alike(results)
    table = pd.DataFrame([result.row() for result in results])
    order = [family.key for family in FAMILIES]
    return table.sort_values(
        ["family", "shortcut", "small_kernel", "kernel", "seed"],
        ascending=[True, False, False, True, True],
        key=lambda column: column.map(order.index) if column.name == "family" else column,
    )


def values_by_seed(table: pd.DataFrame, measure: str) -> tuple[list[int], NDArray[np.float64]]:
    """A measure of the cells of one setting but for the kernel and the seed.

    Returns:
        The kernels in order, and the values, shape (seeds, kernels), NaN for a missing cell.
    """
    wide = table.set_index(["seed", "kernel"])[measure].unstack()  # noqa: PD010
    return [int(kernel) for kernel in wide.columns], wide.to_numpy(dtype=float)


@dataclass(frozen=True, eq=False)
class ByKernel:
    """A measure over the kernels of one setting.

    Args:
        kernels: In order.
        by_seed: Values, shape (seeds, kernels), NaN where there is none.
        means: Over the finite values of each kernel, shape (kernels,).
        ends: Of their 95 % intervals, as far as they are possible, shape (kernels, 2).
    """

    kernels: list[int]
    by_seed: NDArray[np.float64]
    means: NDArray[np.float64]
    ends: NDArray[np.float64]


def by_kernel(table: pd.DataFrame, measure: str) -> ByKernel:
    """Values, means and Student's intervals of the cells of one setting."""
    kernels, values = values_by_seed(table, measure)
    interval = MEASURES[measure].interval if measure in MEASURES else mean_interval  # columns of a user's own
    finite = [column[np.isfinite(column)] for column in values.T]
    return ByKernel(
        kernels=kernels,
        by_seed=values,
        means=np.array([column.mean() if len(column) else np.nan for column in finite]),
        ends=np.array([interval(column.tolist()) for column in finite]),
    )


@dataclass(frozen=True, eq=False)
class PsychometricCurve:
    """Shape decisions of all seeds of one kernel and setting.

    Args:
        label: Such as "kernel 3", after the setting where there are several.
        kernel: Its size.
        balances: Of the cues, shape (balances,).
        shares: Of shape decisions, shape (seeds, balances); NaN without a decision.
        fit: To all seeds together.
    """

    label: str
    kernel: int
    balances: NDArray[np.float64]
    shares: NDArray[np.float64]
    fit: PsychometricFit


def psychometric_curves(results: Sequence[CellResult]) -> list[PsychometricCurve]:
    """One for each setting and kernel."""
    found = []
    for label, own in labelled_seeds(results).items():
        shape, texture = (np.array([getattr(r, name) for r in own]) for name in ("num_shape", "num_texture"))
        decided = shape + texture
        shares = np.divide(shape, decided, out=np.full(shape.shape, np.nan), where=decided > 0)
        fit = fit_psychometric(own[0].balances, shape.sum(0).tolist(), texture.sum(0).tolist())
        found.append(PsychometricCurve(label, own[0].cell.kernel, np.array(own[0].balances), shares, fit))
    return found


def labelled_seeds(results: Sequence[CellResult]) -> dict[str, list[CellResult]]:
    """The cells that differ in their seeds alone, by the setting, where there are several, and the kernel."""
    order = [family.key for family in FAMILIES]
    results = sorted(results, key=lambda own: order.index(own.cell.family))
    found: dict[str, list[CellResult]] = {}
    for label, rows in settings_of(pd.DataFrame([vars(result.cell) for result in results])):
        cells = (results[index] for index in rows.index)
        for result in sorted(cells, key=lambda own: (own.cell.kernel, own.cell.seed)):
            name = f"{label}, kernel {result.cell.kernel}" if label else f"kernel {result.cell.kernel}"
            found.setdefault(name, []).append(result)
    return found


def first_seeds(results: Sequence[CellResult]) -> dict[str, CellResult]:
    """The cells of the first seed, by the setting and the kernel, and by the seed where there are several."""
    several = len({result.cell.seed for result in results}) > 1
    return {
        f"{label}, seed {own[0].cell.seed}" if several else label: own[0]
        for label, own in labelled_seeds(results).items()
    }


def settings_of(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """The rows of each setting but for kernel and seed, with a label; the label is empty if there is only one."""
    groups = list(table.groupby(["family", "shortcut", "small_kernel"], sort=False))
    numbers = Counter(family for (family, _, _), _ in groups)
    found = []
    for (family, shortcut, small), rows in groups:
        label = f"{'with' if small else 'without'} small kernel{f' {small}' if small else ''}"
        label += "" if shortcut else ", without shortcut"
        parts = (family_named(str(family)).name * (len(numbers) > 1), label * (numbers[family] > 1))
        found.append((", ".join(filter(None, parts)), rows))
    return found


def plain_settings(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The first setting of each family, by the family's name."""
    found: dict[str, pd.DataFrame] = {}
    for _, rows in settings_of(table):
        found.setdefault(family_named(rows["family"].iloc[0]).name, rows)
    return found
