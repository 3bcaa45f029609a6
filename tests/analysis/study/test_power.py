"""What a study could have found: against SciPy's tests and noncentral t."""

import math

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import stats

from analysis.study.power import page_critical, study_power
from analysis.study.verdict import power_text


def seeds(count: int, conditions: int, deviation: float = 0.2) -> NDArray[np.float64]:
    """Values whose spread is known: each condition's standard deviation over seeds, uncorrelated in the sample."""
    noise = np.random.default_rng(0).standard_normal((count, conditions))
    noise -= noise.mean(0)
    whitened = noise @ np.linalg.inv(np.linalg.cholesky(np.cov(noise, rowvar=False))).T
    return 0.5 + deviation * whitened


def power_of_t(difference: float, deviation: float, count: int) -> float:
    """Of the paired t-test at 5 %, two-sided; `deviation` of the differences."""
    shift, edge = difference / deviation * math.sqrt(count), stats.t.ppf(0.975, count - 1)
    return float(stats.nct.sf(edge, count - 1, shift) + stats.nct.cdf(-edge, count - 1, shift))


@pytest.mark.parametrize(("count", "conditions"), [(3, 4), (5, 3), (8, 5)])
def test_the_critical_value_is_that_of_scipys_exact_test(count: int, conditions: int) -> None:
    generator = np.random.default_rng(0)
    for _ in range(60):
        values = generator.standard_normal((count, conditions)) + np.linspace(0, 1, conditions)
        tested = stats.page_trend_test(values, method="exact")
        assert (tested.pvalue < 0.025) == (tested.statistic >= page_critical(count, conditions))
    assert page_critical(2, 3) == math.inf  # the best of 36 orders has p = 1/36


def test_two_conditions_as_the_noncentral_t_says() -> None:
    deviation = 0.2 * math.sqrt(2)
    found = study_power(seeds(12, 2), num_simulations=4000)
    assert found is not None
    assert found.spread == pytest.approx(deviation)
    assert math.isnan(found.smallest_by_trend)
    assert power_of_t(found.smallest_by_difference, deviation, 12) == pytest.approx(0.8, abs=0.03)
    for difference in (0.1, 0.2):
        needed = found.seeds_by_difference[difference]
        assert power_of_t(difference, deviation, needed) == pytest.approx(0.8, abs=0.03)
    low, high = found.spread_interval
    assert (low, high) == pytest.approx((0.2004, 0.4802), abs=2e-4)  # s * sqrt(11 / chi2) by the tables


def test_pages_test_finds_what_scipys_finds() -> None:
    found = study_power(seeds(6, 4))
    assert found is not None
    generator = np.random.default_rng(1)
    rise = found.smallest_by_trend * np.linspace(0, 1, 4)
    p_values = [
        min(
            stats.page_trend_test(signed * (0.2 * generator.standard_normal((6, 4)) + rise), method="exact").pvalue
            for signed in (1, -1)
        )
        for _ in range(300)
    ]
    assert np.mean(2 * np.array(p_values) < 0.05) == pytest.approx(0.8, abs=0.07)
    assert found.seeds_by_trend[0.2] < found.seeds_by_trend[0.1]


def test_what_all_conditions_of_a_seed_share_does_not_count() -> None:
    values = seeds(10, 4)
    shared = values + np.arange(10.0)[:, None]
    plain, same = study_power(values), study_power(shared)
    assert plain is not None and same is not None
    assert same.smallest_by_trend == pytest.approx(plain.smallest_by_trend, rel=1e-3)


def test_the_spread_is_that_of_which_the_power_is() -> None:
    """Also where the two ends differ from the rest: of an analysis of variance with one value for each seed."""
    values = seeds(12, 4)
    values[:, 0] = 0.5 + 2 * (values[:, 0] - 0.5)
    found = study_power(values, num_simulations=4000)
    assert found is not None
    left = values - values.mean(0) - values.mean(1, keepdims=True) + values.mean()
    assert found.spread == pytest.approx(math.sqrt(2 * (left**2).sum() / (11 * 3)))
    assert power_of_t(found.smallest_by_difference, found.spread, 12) == pytest.approx(0.8, abs=0.03)


def test_too_little_to_say_anything() -> None:
    assert study_power(seeds(5, 3)[:2]) is None
    assert study_power(np.full((5, 3), 0.4)) is None
    values = seeds(5, 3)
    values[:3, 1] = np.nan
    assert study_power(values) is None


def test_the_words() -> None:
    values = seeds(6, 3)
    rows = [
        {"seed": s, "kernel": k, "shape_bias": values[s, i], "accuracy": 0.9}
        for s in range(6)
        for i, k in enumerate((3, 7, 13))
    ]
    text = power_text(pd.DataFrame(rows))
    assert "in the shape bias: the difference from kernel 3 to 13 has a standard deviation of 0.28 [" in text
    assert "Page's L over all kernels finds 0." in text and "seeds for 0.10 and" in text
    assert "always-valid" not in text and "always-valid" in power_text(pd.DataFrame(rows), sequential=True)
    assert power_text(pd.DataFrame(rows[:6])) == ""  # two seeds
