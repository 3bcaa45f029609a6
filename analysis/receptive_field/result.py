"""An effective receptive field, with everything needed to measure it again."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from analysis.receptive_field import measures
from analysis.receptive_field.measures import MEASURES, FloatArray
from analysis.receptive_field.options import ErfOptions
from analysis.runs.results import Result, ResultError


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ErfResult(Result):
    """An effective receptive field and everything needed to measure it again.

    The map is raw: neither normalised nor on a logarithmic scale. Measures that depend on such a step name it.
    """

    KIND: ClassVar[str] = "effective receptive field"
    PLOTS: ClassVar[Mapping[str, str]] = {
        "erf": "analysis.receptive_field.plots:plot_erf",
        "contribution": "analysis.receptive_field.plots:plot_contribution",
        "radial": "analysis.receptive_field.plots:plot_radial",
    }

    model: str
    layer: str
    mean_map: FloatArray
    """Mean over images of the gradient magnitude, shape (H, W)."""
    ring_sums: FloatArray
    """Per image, the sum of the map over square rings round `center`, shape (N, rings): ring r holds the pixels whose
    larger coordinate distance from the centre is r / 2 pixels."""
    moments: FloatArray
    """Per image, the map's sums of 1, dy, dx, dy*dy, dx*dx and dy*dx about `center`, shape (N, 6)."""
    unit: tuple[int, int]
    grid: tuple[int, int]
    center: tuple[float, float]
    """Row and column, in pixels, that squares and distances are measured from; a multiple of half a pixel."""
    theoretical: tuple[float, float] | None
    """Height and width of the theoretical receptive field; infinite for a global one, None where not traced."""
    theoretical_note: str
    protocol: str
    options: ErfOptions
    images: tuple[str, ...]
    image_hashes: tuple[str, ...]
    image_source: str
    skipped: tuple[tuple[str, str], ...]
    seed: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    weights_hash: str
    environment: dict[str, str]
    initial: str = ""
    """How the weights were initialised, if the network is not trained."""
    batch_size: int = 1
    """Images that went through the network together."""
    batch_note: str = ""
    """Why it was one at a time, where more were wanted."""

    def __post_init__(self) -> None:
        if self.mean_map.ndim != 2 or self.ring_sums.ndim != 2 or self.moments.shape != (len(self.ring_sums), 6):
            raise ResultError(f"mean_map of shape {self.mean_map.shape}, moments {self.moments.shape}: inconsistent")
        if len(self.images) != len(self.ring_sums) or len(self.image_hashes) != len(self.images):
            raise ResultError(
                f"{len(self.images)} image names and {len(self.image_hashes)} hashes for {len(self.ring_sums)} curves"
            )
        if not all(0 <= at <= side - 1 for at, side in zip(self.center, self.map_size, strict=True)):
            raise ResultError(f"center={self.center}: expected a place in the map of {self.map_size} pixels")
        if self.ring_sums.shape[1] != measures.num_rings(self.map_size, self.center):
            raise ResultError(f"ring_sums of shape {self.ring_sums.shape}: not of a map of {self.map_size} pixels")
        if not all(0 <= at < side for at, side in zip(self.unit, self.grid, strict=True)):
            raise ResultError(f"unit={self.unit}: expected one of a grid of {self.grid}")
        if self.theoretical is not None and not min(self.theoretical) >= 1:
            raise ResultError(f"theoretical={self.theoretical}: expected at least a pixel")
        for name in ("mean_map", "ring_sums", "moments"):
            array = getattr(self, name)
            if not np.isfinite(array).all():
                raise ResultError(f"{name}: holds values that are not finite")
            array.flags.writeable = False

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the map in pixels."""
        return (self.mean_map.shape[0], self.mean_map.shape[1])

    scaled_map = measures.scaled_map
    contribution_curve = measures.contribution_curve
    square = measures.square
    side = measures.side
    area_ratio = measures.area_ratio
    area_ratio_interval = measures.area_ratio_interval
    fills_image = measures.fills_image
    centroid_distance = measures.centroid_distance
    radial_profile = measures.radial_profile
    fwhm = measures.fwhm
    covariance = measures.covariance
    rms_radius = measures.rms_radius
    anisotropy = measures.anisotropy
    gaussian_fit = measures.gaussian_fit

    def headline(self) -> dict[str, Any]:
        """Model, layer, images and the area that holds half of the gradient."""
        signed = self.options.gradient_rule == "signed"
        return {
            "model": self.model,
            "layer": self.layer,
            "images": len(self.images),
            "size": "x".join(map(str, self.map_size)),
            "protocol": self.protocol,
            "area_ratio(0.5)": float("nan") if signed else self.area_ratio(0.5),
        }

    def summary(self) -> dict[str, float | str]:
        """One row of a table: every measure, of the raw and of the log map by name."""
        row: dict[str, float | str] = {"model": self.model, "layer": self.layer, "protocol": self.protocol}
        row |= {"images": len(self.images), "skipped": len(self.skipped)}
        row |= {"height": self.map_size[0], "width": self.map_size[1]}
        for measure in MEASURES:
            row |= measure(self)
        return row
