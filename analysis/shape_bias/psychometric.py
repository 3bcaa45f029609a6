"""Psychometric functions: how often shape wins over texture as the balance between the two cues changes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special

FloatArray = NDArray[np.float64]
_STEEPEST = 50.0
_LARGEST_LAPSE = 0.3


@dataclass(frozen=True, kw_only=True)
class PsychometricFit:
    """A logistic function with lapses, fitted to counts of shape and texture decisions.

    The probability of a shape decision at balance b is `low` + (`high` - `low`) / (1 + exp(slope * (b - location))).
    """

    pse: float
    """Point of subjective equality: the balance at which both cues win equally often, from -1 (no texture) to 1 (no
    shape). The larger it is, the weaker a shape still wins. Infinite where one cue wins at every balance (inf: shape),
    NaN where shape does not win less often as it gets weaker."""
    location: float
    """Middle of the logistic part; without lapses it is the `pse`."""
    slope: float
    """Per unit of balance."""
    low: float
    """Probability that is left where the shape is far too weak."""
    high: float
    """Probability that is not exceeded where the texture is far too weak."""
    standard_error: float
    """Of `pse`, by the curvature of the likelihood; NaN where `pse` is not finite."""

    def probability(self, balance: ArrayLike) -> FloatArray:
        """Fitted probability of a shape decision among the decisions for either cue."""
        parameters = np.array([self.location, self.slope, self.low, 1 - self.high])
        return _probability(parameters, np.asarray(balance, dtype=float))


def fit_psychometric(balance: Sequence[float], num_shape: Sequence[int], num_texture: Sequence[int]) -> PsychometricFit:
    """Maximum-likelihood logistic function of the balance, with up to 30 % of lapses at either end.

    Without lapses, errors of a network where only one cue is there would move the point of subjective equality.

    Args:
        balance: Of each set of images, from -1 (the texture is absent) to 1 (the shape is absent).
        num_shape: Images of the set answered with their shape.
        num_texture: Images answered with their texture.

    Raises:
        ValueError: If the lengths differ, there are fewer than two balances, or a balance or a count is not a number
            that can be one.

    References:
        Wichmann and Hill 2001, "The psychometric function: I", Perception & Psychophysics 63.
    """
    x, shape, texture = (np.asarray(values, dtype=float) for values in (balance, num_shape, num_texture))
    if not x.shape == shape.shape == texture.shape or len(np.unique(x)) < 2:
        raise ValueError(f"balance of length {len(x)}: expected two or more, with as many counts of each decision")
    for name, values, lowest in (("balance", x, -np.inf), ("num_shape", shape, 0), ("num_texture", texture, 0)):
        if not np.isfinite(values).all() or (values < lowest).any():
            raise ValueError(f"{name}={values.tolist()}: expected finite numbers{', none below 0' * (lowest == 0)}")
    nothing = float("nan")
    undefined = {"location": nothing, "slope": nothing, "low": nothing, "high": nothing, "standard_error": nothing}
    if shape.sum() == 0 or texture.sum() == 0:
        decided = shape.sum() + texture.sum()
        pse = nothing if decided == 0 else np.inf if texture.sum() == 0 else -np.inf
        return PsychometricFit(pse=float(pse), **undefined)
    lapses = _LARGEST_LAPSE if len(np.unique(x)) > 3 else 0.0  # four parameters need as many points
    span = float(np.ptp(x))
    bounds = [(x.min() - span, x.max() + span), (-_STEEPEST, _STEEPEST), (0.0, lapses), (0.0, lapses)]

    def loss(parameters: FloatArray) -> float:
        chance = np.clip(_probability(parameters, x), 1e-12, 1 - 1e-12)
        return float(-np.sum(shape * np.log(chance) + texture * np.log1p(-chance)))

    # The likelihood may have several maxima: the best of some starts.
    middles = np.linspace(x.min(), x.max(), 5)[1:-1]
    starts = [np.array([middle, slope, lapses / 10, lapses / 10]) for middle in middles for slope in (-3.0, 6.0)]
    fits = [optimize.minimize(loss, start, method="L-BFGS-B", bounds=bounds) for start in starts]
    flat = shape.sum() / (shape.sum() + texture.sum())
    if min(found.fun for found in fits) > -float(special.xlogy([shape.sum(), texture.sum()], [flat, 1 - flat]).sum()):
        # All went astray: no curve fits worse than the best of those that are the same at every balance.
        fits.append(
            optimize.minimize(loss, [float(x.mean()), 0.0, lapses / 10, lapses / 10], method="L-BFGS-B", bounds=bounds)
        )
    parameters = np.asarray(min(fits, key=lambda found: float(found.fun)).x, dtype=float)
    location, slope, low, lapse = (float(value) for value in parameters)
    fit = {"location": location, "slope": slope, "low": low, "high": 1 - lapse}
    if slope < 1e-3:
        return PsychometricFit(pse=nothing, standard_error=nothing, **fit)
    pse = _crossing(parameters)
    if not x.min() <= pse <= x.max():  # one cue wins at every balance that was shown
        return PsychometricFit(pse=float(np.copysign(np.inf, pse)), standard_error=nothing, **fit)
    return PsychometricFit(pse=pse, standard_error=_standard_error(parameters, bounds, x, shape + texture), **fit)


def _probability(parameters: FloatArray, balance: FloatArray) -> FloatArray:
    location, slope, low, lapse = parameters
    return np.asarray(low + (1 - low - lapse) * special.expit(-slope * (balance - location)))


def _crossing(parameters: FloatArray) -> float:
    """Where the function is one half."""
    location, slope, low, lapse = (float(value) for value in parameters)
    return location - float(special.logit((0.5 - low) / (1 - low - lapse))) / slope


def _standard_error(
    parameters: FloatArray, bounds: Sequence[tuple[float, float]], x: FloatArray, decided: FloatArray
) -> float:
    """Of the crossing, by the expected information about the parameters that are not at a bound."""
    free = [index for index, (low, high) in enumerate(bounds) if low + 1e-6 < parameters[index] < high - 1e-6]

    def slopes(function: Callable[[FloatArray], FloatArray | float]) -> FloatArray:
        steps = 1e-5 * np.eye(len(parameters))[free]
        return np.array([(function(parameters + step) - function(parameters - step)) / 2e-5 for step in steps])

    chance = np.clip(_probability(parameters, x), 1e-9, 1 - 1e-9)
    derivatives = slopes(lambda values: _probability(values, x))
    information = (derivatives * decided / (chance * (1 - chance))) @ derivatives.T
    if not free or np.linalg.cond(information) > 1e12:
        return float("nan")
    gradient = slopes(_crossing)
    return float(np.sqrt(gradient @ np.linalg.solve(information, gradient)))
