"""What was measured on one trained network of a study."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.receptive_field.result import ErfResult
from analysis.runs.results import ResultError, load_result, save_result
from analysis.shape_bias.psychometric import PsychometricFit, fit_psychometric
from analysis.shape_bias.result import ShapeBiasResult
from analysis.study.design import Cell
from analysis.training.progress import Curve

_KIND = "ablation cell"


@dataclass(frozen=True, kw_only=True, eq=False)
class CellResult:
    """What was measured on one trained network."""

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
    untrained_erf: ErfResult
    """Of the same network before the training, its batch norms calibrated on training images."""
    conflict: ShapeBiasResult | None
    """On the images with both cues full."""

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

    def row(self) -> dict[str, float | str | bool]:
        """Of the table of a study."""
        fit = self.psychometric
        row: dict[str, float | str | bool] = {"cell": self.cell.name, **asdict(self.cell)}
        row["kernel_sizes"] = "-".join(map(str, self.kernel_sizes))
        row |= {"accuracy": self.accuracy, "val_images": self.num_val}
        row |= {"shape_only_accuracy": self.shape_only_accuracy, "texture_only_accuracy": self.texture_only_accuracy}
        row |= {"shape_bias": self.shape_bias, "coverage": self.coverage}
        if self.conflict is not None:
            row["shape_bias_low"], row["shape_bias_high"] = self.conflict.confidence_interval(
                "image", num_resamples=2000
            )
        nothing = float("nan")
        ends = (min(self.balances), max(self.balances)) if fit else (nothing, nothing)
        # Where one cue wins at every balance, the border is the least extreme value that fits.
        row |= {
            "pse": float(np.clip(fit.pse, *ends)) if fit else nothing,
            "pse_at_border": bool(fit and np.isinf(fit.pse)),
        }
        row |= {"pse_standard_error": fit.standard_error if fit else nothing}
        row |= {"psychometric_slope": fit.slope if fit else nothing}
        for name, erf in (("erf", self.erf), ("untrained_erf", self.untrained_erf)):
            for threshold in (0.2, 0.3, 0.5, 0.99):
                row[f"{name}_area_{threshold}"] = erf.area_ratio(threshold)
            row[f"{name}_area_0.5_low"], row[f"{name}_area_0.5_high"] = erf.area_ratio_interval(0.5)
            row[f"{name}_rms_radius"] = erf.rms_radius()
        row |= {"parameters": self.parameters, "merged_parameters": self.merged_parameters, "macs": self.macs}
        row |= {"seconds_per_step": self.seconds_per_step, "inference_ms": self.inference_ms}
        return row

    def save(self, directory: str | PathLike[str]) -> None:
        """Write the result beside the network in the folder of the cell, `measures` last: it marks the cell as done."""
        directory = Path(directory)
        self.erf.save(directory / "erf", overwrite=True)
        self.untrained_erf.save(directory / "erf_untrained", overwrite=True)
        if self.conflict is not None:
            self.conflict.save(directory / "conflict", overwrite=True)
        content = {item.name: getattr(self, item.name) for item in fields(self)}
        for name in ("erf", "untrained_erf", "conflict"):
            content.pop(name)
        content |= {"cell": asdict(self.cell), "curve": asdict(self.curve)}
        save_result(directory / "measures", _KIND, content, {}, overwrite=True)

    @classmethod
    def load(cls, directory: str | PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If the cell is not finished.
            ResultError: If a file is damaged.
        """
        directory = Path(directory)
        content, _ = load_result(directory / "measures", _KIND)
        try:
            curve = Curve(**{name: tuple(values) for name, values in content.pop("curve").items()})
            plain: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in content.items()}
            plain |= {"cell": Cell(**content["cell"]), "curve": curve}
            return cls(
                **plain,
                erf=ErfResult.load(directory / "erf"),
                untrained_erf=ErfResult.load(directory / "erf_untrained"),
                conflict=ShapeBiasResult.load(directory / "conflict") if content["balances"] else None,
            )
        except (KeyError, TypeError) as error:
            raise ResultError(f"directory={str(directory)!r}: fields do not fit ({error})") from error


def study_table(results: Sequence[CellResult]) -> pd.DataFrame:
    """One row for each cell, by kernel and seed."""
    table = pd.DataFrame([result.row() for result in results])
    return table.sort_values(["shortcut", "small_kernel", "kernel", "seed"], ascending=[False, False, True, True])


def values_by_seed(table: pd.DataFrame, measure: str) -> tuple[list[int], NDArray[np.float64]]:
    """A measure of the cells of one setting but for the kernel and the seed.

    Returns:
        The kernels in order, and the values, shape (seeds, kernels), NaN for a missing cell.
    """
    wide = table.set_index(["seed", "kernel"])[measure].unstack()  # noqa: PD010
    return [int(kernel) for kernel in wide.columns], wide.to_numpy(dtype=float)
