"""Psychometric functions: how often shape wins over texture as the balance between the two cues changes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

FloatArray = NDArray[np.float64]
_STEEPEST = 100.0


@dataclass(frozen=True, kw_only=True)
class PsychometricFit:
    """A logistic function fitted to counts of shape and texture decisions.

    The probability of a shape decision at balance b is 1 / (1 + exp(slope * (b - pse))).
    """

    pse: float
    """Point of subjective equality: the balance at which both cues win equally often, from -1 (no texture) to 1 (no
    shape). The larger it is, the weaker a shape still wins. Infinite where one cue wins at every balance (inf: shape),
    NaN where shape does not win less often as it gets weaker."""
    slope: float
    """Per unit of balance."""
    standard_error: float
    """Of `pse`, by the curvature of the likelihood; NaN where `pse` is not finite."""

    def probability(self, balance: ArrayLike) -> FloatArray:
        """Fitted probability of a shape decision among the decisions for either cue."""
        return np.asarray(special.expit(-self.slope * (np.asarray(balance, dtype=float) - self.pse)))


def fit_psychometric(balance: Sequence[float], num_shape: Sequence[int], num_texture: Sequence[int]) -> PsychometricFit:
    """Maximum-likelihood logistic function of the balance.

    Args:
        balance: Of each set of images, from -1 (the texture is absent) to 1 (the shape is absent).
        num_shape: Images of the set answered with their shape.
        num_texture: Images answered with their texture.

    Returns:
        The fit.

    Raises:
        ValueError: If the lengths differ, or there are fewer than two balances.

    References:
        Wichmann and Hill 2001, "The psychometric function: I", Perception & Psychophysics 63.
    """
    x, shape, texture = (np.asarray(values, dtype=float) for values in (balance, num_shape, num_texture))
    if not x.shape == shape.shape == texture.shape or len(np.unique(x)) < 2:
        raise ValueError(f"balance of length {len(x)}: expected two or more, with as many counts of each decision")
    if shape.sum() == 0 or texture.sum() == 0:
        decided = shape.sum() + texture.sum()
        pse = np.nan if decided == 0 else np.inf if texture.sum() == 0 else -np.inf
        return PsychometricFit(pse=float(pse), slope=float("nan"), standard_error=float("nan"))

    def loss(parameters: FloatArray) -> tuple[float, FloatArray]:
        """Negative log-likelihood of intercept and slope, and its gradient."""
        linear = parameters[0] - parameters[1] * x
        error = (shape + texture) * special.expit(linear) - shape
        value = -np.sum(shape * special.log_expit(linear) + texture * special.log_expit(-linear))
        return float(value), np.array([error.sum(), -(error * x).sum()])

    # A steeper function cannot be told from a step between two of the balances.
    bounds = [(-2 * _STEEPEST, 2 * _STEEPEST), (-_STEEPEST, _STEEPEST)]
    found = optimize.minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=bounds, tol=1e-12)
    intercept, slope = (float(value) for value in found.x)
    if slope < 1e-9:
        return PsychometricFit(pse=float("nan"), slope=slope, standard_error=float("nan"))
    pse = intercept / slope
    if not x.min() <= pse <= x.max():  # one cue wins at every balance that was shown
        return PsychometricFit(pse=float(np.copysign(np.inf, pse)), slope=slope, standard_error=float("nan"))
    chance = special.expit(intercept - slope * x)
    weight = (shape + texture) * chance * (1 - chance)
    design = np.stack([np.ones_like(x), -x])
    information = (design * weight) @ design.T
    if np.linalg.cond(information) > 1e12:
        return PsychometricFit(pse=pse, slope=slope, standard_error=float("nan"))
    gradient = np.array([1 / slope, -intercept / slope**2])
    variance = float(gradient @ np.linalg.solve(information, gradient))
    return PsychometricFit(pse=pse, slope=slope, standard_error=float(np.sqrt(variance)))
