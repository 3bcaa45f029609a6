from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special

from analysis.shape_bias.psychometric import fit_psychometric

BALANCES = tuple(np.linspace(-1, 1, 9))


@settings(max_examples=30, deadline=None)
@given(pse=st.floats(-0.6, 0.6), slope=st.floats(6, 20))
def test_recovers_the_function_behind_exact_counts(pse: float, slope: float) -> None:
    chance = special.expit(-slope * (np.array(BALANCES) - pse))
    shape = np.rint(1e7 * chance).astype(int)
    fit = fit_psychometric(BALANCES, shape.tolist(), (10**7 - shape).tolist())
    assert fit.pse == pytest.approx(pse, abs=1e-3)
    assert fit.slope == pytest.approx(slope, rel=3e-2)
    assert fit.probability([fit.pse])[0] == pytest.approx(0.5)
    assert (fit.low, fit.high) == pytest.approx((0, 1), abs=1e-3)


@pytest.mark.parametrize(("low", "high"), [(0.0, 0.9), (0.1, 1.0), (0.05, 0.75)])
def test_lapses_do_not_move_the_location(low: float, high: float) -> None:
    chance = low + (high - low) * special.expit(-8 * (np.array(BALANCES) - 0.4))
    shape = np.rint(1e7 * chance).astype(int)
    fit = fit_psychometric(BALANCES, shape.tolist(), (10**7 - shape).tolist())
    assert fit.location == pytest.approx(0.4, abs=0.01)
    assert (fit.low, fit.high) == pytest.approx((low, high), abs=0.01)
    assert fit.probability([fit.pse])[0] == pytest.approx(0.5)
    # By hand: (0.5 - low) / (high - low) of the way up.
    part = (0.5 - low) / (high - low)
    assert fit.pse == pytest.approx(0.4 - np.log(part / (1 - part)) / 8, abs=0.01)


def test_two_balances_by_hand() -> None:
    # Three quarters and one quarter: log odds of log 3 and -log 3 at -0.5 and 0.5.
    fit = fit_psychometric((-0.5, 0.5), (30, 10), (10, 30))
    assert fit.pse == pytest.approx(0, abs=1e-6)
    assert fit.slope == pytest.approx(2 * np.log(3), rel=1e-5)
    # Information: 40 * 3/16 on each side; the variance of the intercept is 1 / 15, of the crossing that over slope^2.
    assert fit.standard_error == pytest.approx(np.sqrt(1 / 15) / fit.slope, rel=1e-4)


def test_standard_error_is_the_spread_of_repeats() -> None:
    generator = np.random.default_rng(0)
    chance = special.expit(-4 * (np.array(BALANCES) - 0.2))
    fits = []
    for _ in range(100):
        shape = generator.binomial(60, chance)
        fits.append(fit_psychometric(BALANCES, shape.tolist(), (60 - shape).tolist()))
    errors = [fit.standard_error for fit in fits if np.isfinite(fit.standard_error)]
    assert len(errors) > 95
    assert np.std([fit.pse for fit in fits]) == pytest.approx(np.median(errors), rel=0.25)


def test_one_cue_always_wins() -> None:
    assert fit_psychometric((-1, 0, 1), (5, 5, 5), (0, 0, 0)).pse == np.inf
    assert fit_psychometric((-1, 0, 1), (0, 0, 0), (5, 5, 5)).pse == -np.inf
    # The fitted crossing would lie beyond the balances that were shown.
    assert fit_psychometric((-1, 0, 1), (99, 98, 97), (1, 2, 3)).pse == np.inf
    assert np.isnan(fit_psychometric((-1, 0, 1), (0, 0, 0), (0, 0, 0)).pse)
    assert np.isnan(fit_psychometric((-1, 0, 1), (1, 5, 9), (9, 5, 1)).pse)


def test_a_step_is_found_between_its_sides() -> None:
    fit = fit_psychometric((-1, -0.5, 0.5, 1), (20, 20, 0, 0), (0, 0, 20, 20))
    assert -0.5 < fit.pse < 0.5


def test_wrong_lengths() -> None:
    with pytest.raises(ValueError, match="balance of length 1"):
        fit_psychometric((0,), (1,), (1,))
    with pytest.raises(ValueError, match="balance of length 2"):
        fit_psychometric((0, 1), (1,), (1, 2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_no_count_and_no_balance_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match=r"balance=\[.*expected finite numbers$"):
        fit_psychometric((-1, bad, 1), (9, 5, 1), (1, 5, 9))
    for name in ("num_shape", "num_texture"):
        for count in (bad, -1):
            counts: dict[str, Any] = {"num_shape": (9, 5, 1), "num_texture": (1, 5, 9), name: (3, count, 3)}
            with pytest.raises(ValueError, match=rf"{name}=\[3.0, .*expected finite numbers, none below 0"):
                fit_psychometric((-1, 0, 1), **counts)


def test_answers_that_hardly_depend_on_the_balance_are_fitted_as_such() -> None:
    """Of untrained networks: no fit is worse than the best constant, at which all the curves of these counts are."""
    balances = [-1.0, -0.5, 0.0, 0.5, 1.0]
    for shape, texture in (
        ([33, 36, 33, 33, 30], [31, 32, 33, 32, 33]),
        ([32, 33, 34, 30, 32], [29, 34, 31, 31, 33]),
        ([34, 33, 34, 31, 34], [36, 36, 33, 32, 31]),
    ):
        fitted = fit_psychometric(balances, shape, texture).probability(balances)
        assert np.abs(fitted - sum(shape) / (sum(shape) + sum(texture))).max() < 0.04
