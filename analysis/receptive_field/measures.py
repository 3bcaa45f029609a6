"""Measures of an effective receptive field: functions of a result, which are also its methods.

A measure that is marked with `tabulated` is a column of `ErfResult.summary`, and so of the table of `replknet erf`.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import optimize

from analysis.receptive_field.options import ErfOptions
from analysis.statistics import bootstrap_interval

T = TypeVar("T", float, bool)
Scale = Literal["raw", "log"]
FloatArray = NDArray[np.float64]


class Field(Protocol):
    """What a measure knows of an effective receptive field; see `ErfResult`."""

    @property
    def mean_map(self) -> FloatArray: ...
    @property
    def map_size(self) -> tuple[int, int]: ...
    @property
    def ring_sums(self) -> FloatArray: ...
    @property
    def moments(self) -> FloatArray: ...
    @property
    def center(self) -> tuple[float, float]: ...
    @property
    def theoretical(self) -> tuple[float, float] | None: ...
    @property
    def protocol(self) -> str: ...
    @property
    def options(self) -> ErfOptions: ...


THRESHOLDS = (0.2, 0.3, 0.5, 0.99)
MEASURES: list[Callable[[Field], Mapping[str, float]]] = []
"""Columns of a table, in order."""


def tabulated(measure: Callable[[Field], T]) -> Callable[[Field], T]:
    """Make a measure a column that is called as it is."""
    MEASURES.append(lambda result: {measure.__name__: float(measure(result))})
    return measure


def scaled_map(result: Field, scale: Scale = "raw") -> FloatArray:
    """The mean map as it is ("raw"), or log10(map + 1) divided by its maximum ("log": the official script's)."""
    if scale == "raw":
        return result.mean_map
    if scale != "log":
        raise ValueError(f"scale={scale!r}: expected 'raw' or 'log'")
    _check_one_sign(result)
    logarithm = np.log10(result.mean_map + 1)
    return np.asarray(logarithm / (logarithm.max() or 1.0))


def contribution_curve(result: Field, scale: Scale = "raw") -> tuple[FloatArray, FloatArray]:
    """Area and share of the sum of growing squares of whole pixels round the centre.

    Returns:
        Areas, the part of the image's pixels inside each square, and shares of the map's sum, both ending at 1.
    """
    if scale == "raw":
        return _areas(result), _shares(result, result.ring_sums.mean(0))
    return _areas(result), _shares(result, ring_sums(scaled_map(result, scale), result.center))


def square(result: Field, threshold: float, scale: Scale = "raw") -> tuple[float, float, float, float]:
    """The square of `area_ratio`, as far as it lies in the image: top, left, height and width in pixels.

    A pixel reaches half a pixel to each side of its row and column. All NaN for a map that is zero everywhere.
    """
    area = area_ratio(result, threshold, scale)
    if np.isnan(area):
        return (area,) * 4
    if _in_steps(result, scale):
        # Ring r closes a square of r + 1 pixels: odd round a pixel, even round a corner.
        half = (int(_first_above(contribution_curve(result, scale)[1], threshold)) + 1) / 2
    else:
        missing = area * np.prod(result.map_size)
        half = optimize.brentq(lambda half: np.prod(_inside(result, half)[2:]) - missing, 0, max(result.map_size))
    return _inside(result, half)


def side(result: Field, threshold: float, scale: Scale = "raw") -> float:
    """Side in pixels of the square of `area_ratio`; of one that leaves the image, the longer side of what is inside.

    It is never longer than the image, and an odd number of pixels in the official script's measure. NaN for a map that
    is zero everywhere.
    """
    return max(square(result, threshold, scale)[2:])


def area_ratio(result: Field, threshold: float, scale: Scale = "raw") -> float:
    """The smallest square round the centre that holds `threshold` of the map's sum, as a part of the image.

    What lies outside the image does not count. Each ring of pixels is taken as uniform: between two squares of whole
    pixels the share grows in proportion to the area, so that a constant map has an area of `threshold`.

    The protocol "official" and the scale "log" measure as the official script does: the smallest square of whole pixels
    that holds more than `threshold`, or the whole image. It grows by two pixels at a time.

    NaN for a map that is zero everywhere: a unit whose ReLU is off on every image.

    Args:
        result: Of `effective_receptive_field`.
        threshold: Share of the sum, in (0, 1).
        scale: "raw" does not depend on the gradient's scale; "log" does, and is the official script's number.

    Raises:
        ValueError: If the threshold is out of range, or the map is signed.

    References:
        Ding et al. 2022, arXiv:2203.06717, appendix.
    """
    _check_threshold(threshold)
    return float(_area_at(*contribution_curve(result, scale), threshold, in_steps=_in_steps(result, scale)))


def area_ratio_interval(result: Field, threshold: float, *, confidence: float = 0.95) -> tuple[float, float]:
    """Bootstrap interval over images of the raw `area_ratio`; NaN for a single image."""
    _check_threshold(threshold)
    areas, in_steps = _areas(result), _in_steps(result, "raw")

    def statistic(indices: NDArray[np.intp]) -> FloatArray:
        rings = np.zeros((len(indices), len(areas)))
        for drawn in indices.T:  # one image of each draw after the other takes the memory of one
            rings += result.ring_sums[drawn]
        return _area_at(areas, _shares(result, rings / indices.shape[1]), threshold, in_steps=in_steps)

    return bootstrap_interval(statistic, len(result.ring_sums), vectorized=True, confidence=confidence)


@MEASURES.append
def _areas_and_sides(result: Field) -> dict[str, float]:
    row: dict[str, float] = {}
    for threshold in THRESHOLDS:
        row[f"area_{threshold}"] = area_ratio(result, threshold)
        row[f"area_{threshold}_low"], row[f"area_{threshold}_high"] = area_ratio_interval(result, threshold)
        row[f"side_{threshold}"] = side(result, threshold)
    for threshold in THRESHOLDS:
        row[f"area_{threshold}_log"] = area_ratio(result, threshold, "log")
        row[f"side_{threshold}_log"] = side(result, threshold, "log")
    return row


def radial_profile(result: Field, scale: Scale = "raw") -> tuple[FloatArray, FloatArray]:
    """Radii in pixels and the map's mean over the pixels at each rounded Euclidean distance from the centre."""
    radii, profile, _ = _counted_profile(result, scale)
    return radii, profile


def _counted_profile(result: Field, scale: Scale) -> tuple[FloatArray, FloatArray, FloatArray]:
    """`radial_profile`, and the number of pixels at each distance."""
    dy, dx = _offsets(result.map_size, result.center)
    radius = np.rint(np.hypot(dy, dx)).astype(int).ravel()
    count = np.bincount(radius)
    profile = np.bincount(radius, scaled_map(result, scale).ravel()) / np.maximum(count, 1)
    present = count > 0
    return np.arange(len(count))[present].astype(float), profile[present], count[present].astype(float)


def covariance(result: Field, scale: Scale = "raw") -> FloatArray:
    """Second central moments of the map as a distribution, shape (2, 2), rows then columns, in square pixels.

    All NaN for a map that is zero everywhere.

    Raises:
        ValueError: If the map is signed.
    """
    _check_one_sign(result)
    moments = result.moments.mean(0) if scale == "raw" else moments_about(scaled_map(result, scale), result.center)
    if not moments[0] > 0:
        return np.full((2, 2), np.nan)
    y, x, yy, xx, yx = moments[1:] / moments[0]
    return np.array([[yy - y * y, yx - y * x], [yx - y * x, xx - x * x]])


@MEASURES.append
def _extent(result: Field) -> dict[str, float]:
    return {"rms_radius": rms_radius(result), "fwhm": fwhm(result), "anisotropy": anisotropy(result)}


def centroid_distance(result: Field) -> float:
    """Distance of the map's own centroid from the unit's centre in pixels; NaN for a map that is zero everywhere.

    Raises:
        ValueError: If the map is signed.
    """
    _check_one_sign(result)
    total, y, x = result.moments.mean(0)[:3]
    return float(np.hypot(y, x) / total) if total > 0 else float("nan")


def rms_radius(result: Field, scale: Scale = "raw") -> float:
    """Root mean square distance from the map's own centroid in pixels (the second-moment radius)."""
    return float(np.sqrt(np.maximum(np.trace(covariance(result, scale)), 0.0)))


def fwhm(result: Field, scale: Scale = "raw") -> float:
    """Full width at half maximum of the radial profile in pixels; NaN if it does not fall below half in the image.

    No single pixel sets the maximum: it is that of a parabola in the distance, fitted to the pixels within 0.4 of the
    width (the widest such disc, found from the whole image inwards), or the mean of the central pixels where the field
    is too small for that. The profile falls below half of it where its best decreasing fit does. Without noise a
    Gaussian, a cone and a box keep their widths within 5 % or one pixel.

    References:
        Barlow et al. 1972, "Statistical Inference under Order Restrictions"; `scipy.optimize.isotonic_regression`.
    """
    radii, profile, count = _counted_profile(result, scale)
    falling = np.asarray(optimize.isotonic_regression(profile, weights=count, increasing=False).x)

    def width(maximum: float) -> float:
        last = int(np.argmax(falling < maximum / 2))
        if last == 0:  # never below, or already at the centre
            return float("nan")
        part = (falling[last - 1] - maximum / 2) / (falling[last - 1] - falling[last])
        return float(2 * (radii[last - 1] + part * (radii[last] - radii[last - 1])))

    found = width(falling[0])
    for end in range(len(radii), 3, -1):
        near = slice(end)
        parabola = np.polynomial.polynomial.polyfit(radii[near], profile[near], 2, w=np.sqrt(count[near]))
        if radii[end - 1] <= 0.4 * width(parabola[0]):
            found = width(parabola[0])
            break
    return found if found <= max(result.map_size) else float("nan")


def anisotropy(result: Field, scale: Scale = "raw") -> float:
    """Ratio of the long to the short principal axis of `covariance`, 1 for a round field; NaN for a point."""
    second_moments = covariance(result, scale)
    if np.isnan(second_moments).any():
        return float("nan")
    low, high = np.linalg.eigvalsh(second_moments)
    return float(np.sqrt(high / low)) if low > 1e-12 else float("nan")


def gaussian_fit(result: Field, scale: Scale = "raw") -> dict[str, float]:
    """Least-squares fit of an axis-aligned 2-D Gaussian plus an offset.

    Returns:
        `amplitude`, `offset`, `y`, `x` (centre), `sigma_y`, `sigma_x` (pixels) and `r_squared`, the share of the
        map's variance that it explains; all NaN where the fit does not converge.
    """
    names = ("amplitude", "y", "x", "sigma_y", "sigma_x", "offset")
    step = max(1, round(max(result.map_size) / 256))  # a coarser grid changes no parameter noticeably
    height, width = (size // step * step for size in result.map_size)
    values = scaled_map(result, scale)[:height, :width]
    values = values.reshape(height // step, step, width // step, step).mean((1, 3))
    rows = np.arange(height // step) * step + (step - 1) / 2
    columns = np.arange(width // step) * step + (step - 1) / 2
    peak = values.max()
    if not peak > 0:
        return {name: float("nan") for name in (*names, "r_squared")}
    spread = max(rms_radius(result, scale) / 2, 1.0)

    def gaussian(_: Any, *p: float) -> FloatArray:
        gy = np.exp(-0.5 * ((rows - p[1]) / p[3]) ** 2)
        gx = np.exp(-0.5 * ((columns - p[2]) / p[4]) ** 2)
        return np.asarray((p[0] * np.outer(gy, gx) + p[5]).ravel())

    try:
        start = np.array([1.0, *result.center, spread, spread, 0.0])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optimize.OptimizeWarning)  # of the covariance, which is not used
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


@MEASURES.append
def _gaussian(result: Field) -> dict[str, float]:
    fit = gaussian_fit(result)
    return {"sigma_y": fit["sigma_y"], "sigma_x": fit["sigma_x"], "gaussian_r_squared": fit["r_squared"]}


@MEASURES.append
def _theoretical(result: Field) -> dict[str, float]:
    height, width = result.theoretical or (float("nan"), float("nan"))
    return {"theoretical_height": height, "theoretical_width": width}


@tabulated
def fills_image(result: Field) -> bool:
    """Whether the 99 % square covers nine tenths of the image, so that the image limits the measurement."""
    return area_ratio(result, 0.99) >= 0.9


def _offsets(size: tuple[int, int], center: tuple[float, float]) -> tuple[FloatArray, FloatArray]:
    dy, dx = np.ogrid[: size[0], : size[1]]
    return dy - center[0], dx - center[1]


def ring_sums(values: FloatArray, center: tuple[float, float]) -> FloatArray:
    dy, dx = _offsets((values.shape[0], values.shape[1]), center)
    ring = np.maximum(np.abs(dy), np.abs(dx)) * 2  # half-pixel steps
    return np.asarray(np.bincount(ring.astype(int).ravel(), values.ravel()), dtype=np.float64)


def num_rings(size: tuple[int, int], center: tuple[float, float]) -> int:
    """Rings of `ring_sums`, the innermost with the centre alone."""
    farthest = max(max(at, side - 1 - at) for at, side in zip(center, size, strict=True))
    return int(2 * farthest) + 1


def moments_about(values: FloatArray, center: tuple[float, float]) -> FloatArray:
    dy, dx = _offsets((values.shape[0], values.shape[1]), center)
    weights = (1.0, dy, dx, dy * dy, dx * dx, dy * dx)
    return np.array([float((values * weight).sum()) for weight in weights])


def _areas(result: Field) -> FloatArray:
    counts = ring_sums(np.ones(result.map_size), result.center)
    return np.asarray(np.cumsum(counts) / counts.sum())


def _inside(result: Field, half: float) -> tuple[float, float, float, float]:
    """The part inside the image of the square that reaches `half` from the centre: top, left, height, width."""
    low = [max(middle - half, -0.5) for middle in result.center]
    high = [min(middle + half, size - 0.5) for middle, size in zip(result.center, result.map_size, strict=True)]
    return low[0], low[1], high[0] - low[0], high[1] - low[1]


def _in_steps(result: Field, scale: Scale) -> bool:
    return scale == "log" or result.protocol == "official"


def _check_one_sign(result: Field) -> None:
    if result.options.gradient_rule == "signed":
        raise ValueError("gradient_rule='signed': undefined for a map with both signs; use 'abs'")


def _shares(result: Field, rings: FloatArray) -> FloatArray:
    """Cumulative sums along the last axis as a part of all; NaN where all is zero."""
    _check_one_sign(result)
    total = rings.sum(-1, keepdims=True)
    return np.cumsum(rings, -1) / np.where(total > 0, total, np.nan)


def _first_above(shares: FloatArray, threshold: float) -> NDArray[np.intp]:
    """Along the last axis; the last place where there is none."""
    above = shares > threshold
    return np.asarray(np.where(above.any(-1), above.argmax(-1), shares.shape[-1] - 1))


def _area_at(areas: FloatArray, shares: FloatArray, threshold: float, *, in_steps: bool) -> FloatArray:
    """For each row of shares, along the last axis."""
    if in_steps:
        found = areas[_first_above(shares, threshold)]
    else:
        place = (shares < threshold).sum(-1)
        last = np.minimum(place, len(areas) - 1)
        areas, shares = np.append(areas, 0.0), np.concatenate([shares, np.zeros_like(shares[..., :1])], -1)
        share, end = (np.take_along_axis(shares, at[..., None], -1)[..., 0] for at in (last - 1, last))
        found = areas[last - 1] + (areas[last] - areas[last - 1]) * (threshold - share) / (end - share)
        found = np.where(place > last, 1.0, found)  # the sum of all is 1 but for rounding
    return np.asarray(np.where(np.isnan(shares[..., 0]), np.nan, found))


def _check_threshold(threshold: float) -> None:
    if not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold}: expected a share between 0 and 1")
