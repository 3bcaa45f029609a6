from itertools import permutations

import numpy as np
import pytest

from analysis import rank_correlation

NAN = float("nan")


def test_by_hand() -> None:
    found = rank_correlation([1, 2, 3, 4, 5], [10, 20, 30, 50, 40])
    assert found.tau == pytest.approx(0.8)  # 9 pairs in order, 1 out of order, of 10
    assert found.p_value == pytest.approx(10 / 120)  # one exchange of neighbours or none: 5 orders, and 5 reversed
    assert found.direction == 0
    assert rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]).p_value == pytest.approx(2 / 120)
    assert rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 4, 5]).direction == 1
    assert rank_correlation([1, 2, 3, 4, 5], [5, 4, 3, 2, 1]).direction == -1
    # Ties, tau-b: 4 pairs in order of sqrt(5 * 6), one is tied.
    assert rank_correlation([1, 1, 2, 3], [1, 2, 3, 2.5]).tau == pytest.approx((4 - 1) / np.sqrt(5 * 6))
    # With ties, by counting orders: both of [4, 4] at either end; [3, 3, 3] likewise, of 20 that differ; one of six.
    assert rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 4, 4]).p_value == pytest.approx(2 / 60)
    assert rank_correlation([1, 2, 3, 4, 5], [1, 2, 3, 3, 3]).p_value == pytest.approx(2 / 20)
    assert rank_correlation([1, 2, 2, 2, 2, 2], [2, 1, 1, 1, 1, 1]).p_value == pytest.approx(1 / 6)
    # Of twenty pairs, two groups of ten against each other: two of 184,756 orders, of which none is drawn but this.
    assert rank_correlation([0] * 10 + [1] * 10, [0] * 10 + [1] * 10).p_value == pytest.approx(1 / 50_001, rel=3)


def test_the_interval_of_two_pairs_is_that_by_hand() -> None:
    """Two pairs are out of order in (1 - tau) / 2 of draws, by what tau means: 2.5 % at 0.95."""
    assert rank_correlation([1, 2], [2, 1]).high == pytest.approx(0.95, abs=0.005)
    assert rank_correlation([1, 2], [1, 2]).low == pytest.approx(-0.95, abs=0.005)


def test_smallest_significant_value_is_that_of_all_orders() -> None:
    """The last ones are of published tables (Kendall 1970, "Rank Correlation Methods", two-sided 5 %)."""
    for num in (4, 5, 6):
        taus = np.array([_tau(order) for order in permutations(range(num))])
        usable = [tau for tau in np.unique(taus.round(9)) if tau > 0 and (np.abs(taus) > tau - 1e-6).mean() < 0.05]
        expected = usable[0] if usable else NAN
        assert rank_correlation(range(num), range(num)).smallest == pytest.approx(expected, nan_ok=True)
    for num, published in ((7, 0.714), (8, 0.643), (9, 0.556), (10, 0.511), (20, 0.326)):
        assert rank_correlation(range(num), range(num)).smallest == pytest.approx(published, abs=6e-4)


def _tau(order: tuple[int, ...]) -> float:
    signs = [np.sign(b - a) for i, a in enumerate(order) for b in order[i + 1 :]]
    return float(np.mean(signs))


def test_interval_of_two_pairs_has_a_closed_form() -> None:
    """Two pairs are in order with probability (1 + tau) / 2: one says that this is at least 2.5 %."""
    found = rank_correlation([1, 2], [1, 2])
    assert [found.low, found.high] == pytest.approx([-0.95, 1.0], abs=0.015)
    found = rank_correlation([1, 2], [2, 1])
    assert [found.low, found.high] == pytest.approx([-1.0, 0.95], abs=0.015)
    assert np.isnan(found.smallest)
    assert np.isnan(found.detectable)


def test_interval_holds_the_truth_in_95_of_100_samples_or_more() -> None:
    generator, rho, kept = np.random.default_rng(1), 0.7, 0
    truth = 2 / np.pi * np.arcsin(rho)
    for _ in range(80):
        x, noise = generator.standard_normal((2, 6))
        found = rank_correlation(np.exp(x).tolist(), (rho * x + np.sqrt(1 - rho**2) * noise).tolist())
        kept += found.low <= truth <= found.high
    assert kept >= 72


def test_detectable_value_is_found_in_80_of_100_samples() -> None:
    found = rank_correlation(range(12), range(12))
    rho = np.sin(found.detectable * np.pi / 2)
    generator, hits = np.random.default_rng(2), 0
    for _ in range(400):
        x, noise = generator.standard_normal((2, 12))
        order = np.argsort(np.argsort((rho * x + np.sqrt(1 - rho**2) * noise)[np.argsort(x)]))
        hits += abs(_tau(tuple(order))) > found.smallest - 1e-9
    assert 0.73 < hits / 400 < 0.87


def test_what_is_undefined() -> None:
    assert rank_correlation([1, 2, NAN, 4], [1, NAN, 3, 4]).num == 2
    constant = rank_correlation([1, 1, 1], [1, 2, 3])
    assert np.isnan([constant.tau, constant.p_value, constant.low, constant.high]).all()
    assert constant.direction == 0
    assert rank_correlation([], []).num == 0
    with pytest.raises(ValueError, match="second: 1 values, expected 2"):
        rank_correlation([1, 2], [1])
