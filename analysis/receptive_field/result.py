"""An effective receptive field and its measures."""

from dataclasses import asdict, dataclass, fields
from os import PathLike
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from analysis.receptive_field.options import ErfOptions
from analysis.runs.results import ResultError, load_result, save_result
from analysis.statistics import bootstrap_interval

Scale = Literal["raw", "log"]


FloatArray = NDArray[np.float64]


THRESHOLDS = (0.2, 0.3, 0.5, 0.99)


_KIND = "effective receptive field"


@dataclass(frozen=True, kw_only=True, eq=False)
class ErfResult:
    """An effective receptive field and everything needed to measure it again.

    The map is raw: neither normalised nor on a logarithmic scale. Measures that depend on such a step name it.
    """

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

    def __post_init__(self) -> None:
        if self.mean_map.ndim != 2 or self.ring_sums.ndim != 2 or self.moments.shape != (len(self.ring_sums), 6):
            raise ResultError(f"mean_map of shape {self.mean_map.shape}, moments {self.moments.shape}: inconsistent")
        if len(self.images) != len(self.ring_sums):
            raise ResultError(f"{len(self.images)} image names for {len(self.ring_sums)} curves")
        for array in (self.mean_map, self.ring_sums, self.moments):
            array.flags.writeable = False

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of the map in pixels."""
        return (self.mean_map.shape[0], self.mean_map.shape[1])

    def scaled_map(self, scale: Scale = "raw") -> FloatArray:
        """The mean map as it is ("raw"), or log10(map + 1) divided by its maximum ("log": the official script's)."""
        if scale == "raw":
            return self.mean_map
        if scale != "log":
            raise ValueError(f"scale={scale!r}: expected 'raw' or 'log'")
        logarithm = np.log10(self.mean_map + 1)
        return np.asarray(logarithm / (logarithm.max() or 1.0))

    def contribution_curve(self, scale: Scale = "raw") -> tuple[FloatArray, FloatArray]:
        """Area and share of the sum of growing squares round the centre.

        Returns:
            Areas, the part of the image's pixels inside each square, and shares of the map's sum, both ending at 1.
        """
        if scale == "raw":
            return self._areas(), self._shares(self.ring_sums.mean(0))
        return self._areas(), self._shares(ring_sums(self.scaled_map(scale), self.center))

    def side(self, threshold: float, scale: Scale = "raw") -> int:
        """Side in pixels of the smallest square that holds more than `threshold` of the map's sum.

        Where no square does, the side that covers the whole image; 0 for a map that is zero everywhere.
        """
        _check_threshold(threshold)
        shares = self.contribution_curve(scale)[1]
        # Ring r closes a square of r + 1 pixels: odd round a pixel, even round a corner.
        return 0 if np.isnan(shares[-1]) else _first_above(shares, threshold) + 1

    def area_ratio(self, threshold: float, scale: Scale = "raw") -> float:
        """The square of `side`, as a part of the image's pixels; what lies outside the image does not count.

        NaN for a map that is zero everywhere: a unit whose ReLU is off on every image.

        Args:
            threshold: Share of the sum, in (0, 1).
            scale: "raw" does not depend on the gradient's scale; "log" does, and is the official script's number.

        Raises:
            ValueError: If the threshold is out of range, or the map is signed.

        References:
            Ding et al. 2022, arXiv:2203.06717, appendix.
        """
        _check_threshold(threshold)
        return _area_at(*self.contribution_curve(scale), threshold)

    def area_ratio_interval(self, threshold: float, *, confidence: float = 0.95) -> tuple[float, float]:
        """Bootstrap interval over images of the raw `area_ratio`; NaN for a single image."""
        _check_threshold(threshold)
        areas = self._areas()

        def statistic(indices: NDArray[np.intp]) -> float:
            return _area_at(areas, self._shares(self.ring_sums[indices].mean(0)), threshold)

        return bootstrap_interval(statistic, len(self.images), confidence=confidence)

    def fills_image(self) -> bool:
        """Whether the 99 % square covers nine tenths of the image, so that the image limits the measurement."""
        return self.area_ratio(0.99) >= 0.9

    def radial_profile(self, scale: Scale = "raw") -> tuple[FloatArray, FloatArray]:
        """Radii in pixels and the map's mean over the pixels at each rounded Euclidean distance from the centre."""
        dy, dx = offsets(self.map_size, self.center)
        radius = np.rint(np.hypot(dy, dx)).astype(int).ravel()
        count = np.bincount(radius)
        profile = np.bincount(radius, self.scaled_map(scale).ravel()) / np.maximum(count, 1)
        present = count > 0
        return np.arange(len(count))[present].astype(float), profile[present]

    def fwhm(self, scale: Scale = "raw") -> float:
        """Full width at half maximum of the radial profile in pixels; NaN if it never falls below half."""
        radii, profile = self.radial_profile(scale)
        peak = int(profile.argmax())
        below = np.flatnonzero(profile[peak:] < profile[peak] / 2)
        if not len(below):
            return float("nan")
        last = peak + int(below[0])
        half = profile[peak] / 2
        part = (profile[last - 1] - half) / (profile[last - 1] - profile[last])
        return float(2 * (radii[last - 1] + part * (radii[last] - radii[last - 1])))

    def covariance(self, scale: Scale = "raw") -> FloatArray:
        """Second central moments of the map as a distribution, shape (2, 2), rows then columns, in square pixels.

        All NaN where the map's sum is not positive.
        """
        moments = self.moments.mean(0) if scale == "raw" else moments_about(self.scaled_map(scale), self.center)
        if not moments[0] > 0:
            return np.full((2, 2), np.nan)
        y, x, yy, xx, yx = moments[1:] / moments[0]
        return np.array([[yy - y * y, yx - y * x], [yx - y * x, xx - x * x]])

    def rms_radius(self, scale: Scale = "raw") -> float:
        """Root mean square distance from the map's own centroid in pixels (the second-moment radius)."""
        return float(np.sqrt(np.maximum(np.trace(self.covariance(scale)), 0.0)))

    def anisotropy(self, scale: Scale = "raw") -> float:
        """Ratio of the long to the short principal axis of `covariance`, 1 for a round field; NaN for a point."""
        covariance = self.covariance(scale)
        if np.isnan(covariance).any():
            return float("nan")
        low, high = np.linalg.eigvalsh(covariance)
        return float(np.sqrt(high / low)) if low > 1e-12 else float("nan")

    def gaussian_fit(self, scale: Scale = "raw") -> dict[str, float]:
        """Least-squares fit of an axis-aligned 2-D Gaussian plus an offset.

        Returns:
            `amplitude`, `offset`, `y`, `x` (centre), `sigma_y`, `sigma_x` (pixels) and `r_squared`, the share of the
            map's variance that it explains; all NaN where the fit does not converge.
        """
        names = ("amplitude", "y", "x", "sigma_y", "sigma_x", "offset")
        step = max(1, round(max(self.map_size) / 256))  # a coarser grid changes no parameter noticeably
        height, width = (size // step * step for size in self.map_size)
        values = self.scaled_map(scale)[:height, :width]
        values = values.reshape(height // step, step, width // step, step).mean((1, 3))
        rows = np.arange(height // step) * step + (step - 1) / 2
        columns = np.arange(width // step) * step + (step - 1) / 2
        peak = values.max()
        if not peak > 0:
            return {name: float("nan") for name in (*names, "r_squared")}
        spread = max(self.rms_radius(scale) / 2, 1.0)

        def gaussian(_: Any, *p: float) -> FloatArray:
            gy = np.exp(-0.5 * ((rows - p[1]) / p[3]) ** 2)
            gx = np.exp(-0.5 * ((columns - p[2]) / p[4]) ** 2)
            return np.asarray((p[0] * np.outer(gy, gx) + p[5]).ravel())

        try:
            start = np.array([1.0, *self.center, spread, spread, 0.0])
            found, _ = optimize.curve_fit(
                gaussian, np.arange(values.size), values.ravel() / peak, p0=start, maxfev=4000
            )
        except (RuntimeError, ValueError, TypeError):
            return {name: float("nan") for name in (*names, "r_squared")}
        residual = values.ravel() / peak - gaussian(np.arange(values.size), *found)
        fit = dict(zip(names, map(float, found), strict=True))
        variance = float(np.var(values / peak))
        fit["r_squared"] = 1 - float(np.mean(residual**2)) / variance if variance > 0 else float("nan")
        for name in ("amplitude", "offset"):
            fit[name] *= float(peak)
        for name in ("sigma_y", "sigma_x"):
            fit[name] = abs(fit[name])
        return fit

    def summary(self) -> dict[str, float | str]:
        """One row of a table: every measure on the raw map, and the area ratios on the log map by name."""
        row: dict[str, float | str] = {"model": self.model, "layer": self.layer, "protocol": self.protocol}
        row |= {"images": len(self.images), "skipped": len(self.skipped)}
        row |= {"height": self.map_size[0], "width": self.map_size[1]}
        for threshold in THRESHOLDS:
            row[f"area_{threshold}"] = self.area_ratio(threshold)
            row[f"area_{threshold}_low"], row[f"area_{threshold}_high"] = self.area_ratio_interval(threshold)
            row[f"side_{threshold}"] = self.side(threshold)
        for threshold in THRESHOLDS:
            row[f"area_{threshold}_log"] = self.area_ratio(threshold, "log")
            row[f"side_{threshold}_log"] = self.side(threshold, "log")
        row |= {"rms_radius": self.rms_radius(), "fwhm": self.fwhm(), "anisotropy": self.anisotropy()}
        fit = self.gaussian_fit()
        row |= {"sigma_y": fit["sigma_y"], "sigma_x": fit["sigma_x"], "gaussian_r_squared": fit["r_squared"]}
        height, width = self.theoretical or (float("nan"), float("nan"))
        row |= {"theoretical_height": height, "theoretical_width": width}
        row["fills_image"] = float(self.fills_image())
        return row

    def save(self, directory: str | PathLike[str], *, overwrite: bool = False) -> None:
        """Write `result.json` and `arrays.npz` to `directory`, whole or not at all.

        Raises:
            FileExistsError: If it exists and `overwrite` is false.
        """
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        arrays = {name: content.pop(name) for name in ("mean_map", "ring_sums", "moments")}
        content["options"] = asdict(self.options)
        save_result(directory, _KIND, content, arrays, overwrite=overwrite)

    @classmethod
    def load(cls, directory: str | PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no result.
            ResultError: If it is of another kind or version, or damaged.
        """
        content, arrays = load_result(directory, _KIND)
        try:
            options = content.pop("options")
            options["unit"] = _tuples(options["unit"])
            environment = content.pop("environment")
            settings: dict[str, Any] = {name: _tuples(value) for name, value in content.items()} | arrays
            return cls(options=ErfOptions(**options), environment=environment, **settings)
        except (KeyError, TypeError) as error:
            raise ResultError(f"directory={str(directory)!r}: fields do not fit ({error})") from error

    def _areas(self) -> FloatArray:
        counts = ring_sums(np.ones(self.map_size), self.center)
        return np.asarray(np.cumsum(counts) / counts.sum())

    def _shares(self, rings: FloatArray) -> FloatArray:
        if self.options.gradient_rule == "signed":
            raise ValueError("gradient_rule='signed': shares of a map with both signs are undefined; use 'abs'")
        total = rings.sum()
        return np.asarray(np.cumsum(rings) / total) if total > 0 else np.full(len(rings), np.nan)


def offsets(size: tuple[int, int], center: tuple[float, float]) -> tuple[FloatArray, FloatArray]:
    dy, dx = np.ogrid[: size[0], : size[1]]
    return dy - center[0], dx - center[1]


def ring_sums(values: FloatArray, center: tuple[float, float]) -> FloatArray:
    dy, dx = offsets((values.shape[0], values.shape[1]), center)
    ring = np.maximum(np.abs(dy), np.abs(dx)) * 2  # half-pixel steps
    return np.asarray(np.bincount(ring.astype(int).ravel(), values.ravel()), dtype=np.float64)


def moments_about(values: FloatArray, center: tuple[float, float]) -> FloatArray:
    dy, dx = offsets((values.shape[0], values.shape[1]), center)
    weights = (1.0, dy, dx, dy * dy, dx * dx, dy * dx)
    return np.array([float((values * weight).sum()) for weight in weights])


def _first_above(shares: FloatArray, threshold: float) -> int:
    above = np.flatnonzero(shares > threshold)
    return int(above[0]) if len(above) else len(shares) - 1


def _area_at(areas: FloatArray, shares: FloatArray, threshold: float) -> float:
    return float("nan") if np.isnan(shares[-1]) else float(areas[_first_above(shares, threshold)])


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold}: expected a share between 0 and 1")


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value
