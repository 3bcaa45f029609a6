import math
import time
from typing import Any

import numpy as np
import pytest
from scipy import stats

from analysis.statistics import (
    anytime_interval,
    anytime_p_value,
    bootstrap_interval,
    cluster_weights,
    mean_interval,
    percentile_interval,
    trend,
    wilson_interval,
)


def test_perfect_order_over_three_repeats() -> None:
    values = np.array([[1.0, 2, 3, 4], [1, 2, 3, 4.5], [0, 2, 3, 9]])
    found = trend(values)
    # One of the 24 orders in each of three independent repeats, and the same again for the other side.
    assert found.p_value == pytest.approx(2 / 24**3)
    assert (found.direction, found.test, found.num_repeats) == (1, "Page's L", 3)
    assert found.difference == pytest.approx((3 + 3.5 + 9) / 3)
    falling = trend(values[:, ::-1])
    assert (falling.direction, falling.p_value) == (-1, found.p_value)


def test_wilson_interval() -> None:
    # By hand: with z = 1.96 and n = 10, none right: 0 to z^2 / (n + z^2).
    z = float(stats.norm.ppf(0.975))
    assert wilson_interval(0, 10) == pytest.approx((0, z * z / (10 + z * z)))
    assert wilson_interval(10, 10) == pytest.approx((10 / (10 + z * z), 1))
    assert all(math.isnan(end) for end in wilson_interval(0, 0))


def test_published_critical_value() -> None:
    # Page (1963), table 2: with 3 conditions and 4 repeats L = 54 is the smallest value at the one-sided level of 5 %.
    values = np.array([[1.0, 2, 3]] * 2 + [[1.0, 3, 2]] * 2)  # L = 2 * 14 + 2 * 13 = 54
    assert trend(values).p_value / 2 <= 0.05
    weaker = np.array([[1.0, 2, 3]] + [[1.0, 3, 2]] * 3)  # L = 53
    assert trend(weaker).p_value / 2 > 0.05


def test_no_order_is_no_evidence() -> None:
    values = np.array([[1.0, 2, 3, 4], [4, 3, 2, 1], [2, 1, 4, 3]])
    found = trend(values)
    assert found.direction == 0
    assert found.p_value > 0.4


def test_two_conditions_are_a_paired_t_test() -> None:
    values = np.array([[0.0, 1.0], [0.0, 2.0], [0.0, 3.0]])
    found = trend(values)
    assert found.test == "paired t"
    # t = 2 / (1 / sqrt 3) with two degrees of freedom: p = 1 - t / sqrt(2 + t^2).
    t = 2 * np.sqrt(3)
    assert found.p_value == pytest.approx(1 - t / np.sqrt(2 + t * t))
    assert (found.low, found.high) == pytest.approx(mean_interval([1.0, 2.0, 3.0]))


def test_equal_differences_have_no_t() -> None:
    assert np.isnan(trend(np.array([[0.0, 1.0], [1.0, 2.0]])).p_value)
    assert trend(np.array([[0.0, 1.0], [1.0, 2.0]])).direction == 0
    assert trend(np.array([[1.0, 1.0], [2.0, 2.0]])).p_value == 1


def test_a_repeat_that_is_not_finite_does_not_count() -> None:
    values = np.array([[1.0, 2.0, 3.0], [2.0, 3.0, 5.0], [1.0, 2.0, np.inf], [np.nan, 1.0, 2.0]])
    assert trend(values) == trend(values[:2])


def test_one_repeat_is_no_test() -> None:
    found = trend(np.array([[1.0, 2, 3], [np.nan, 2, 3]]))
    assert (found.test, found.direction, found.num_repeats) == ("none", 0, 1)
    assert found.difference == 2
    assert trend(np.full((2, 3), np.nan)).num_repeats == 0


def test_mean_interval_by_hand() -> None:
    low, high = mean_interval([1.0, 2.0, 3.0])
    half = 4.302653 / np.sqrt(3)  # Student's quantile with two degrees of freedom
    assert (low, high) == pytest.approx((2 - half, 2 + half), rel=1e-6)
    assert np.isnan(mean_interval([1.0])[0])
    assert np.isnan(mean_interval([1.0, np.inf])[1])


def test_one_condition_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 1\)"):
        trend(np.zeros((3, 1)))


def test_too_few_repeats_to_decide() -> None:
    # The best that two repeats of three conditions can reach is 2 / (3! * 3!) = 0.056.
    assert trend(np.array([[1.0, 2, 3], [1, 2, 3]])).p_value == pytest.approx(2 / 36)
    assert not trend(np.array([[1.0, 2, 3], [1, 2, 3]])).decidable
    assert not trend(np.array([[1.0, 2, 3, 4]])).decidable
    assert trend(np.array([[1.0, 2, 3, 4], [4, 3, 2, 1]])).decidable


@pytest.mark.parametrize("num_conditions", [10, 15])
def test_many_conditions_take_no_longer_than_few(num_conditions: int) -> None:
    # Page's L over random orders of the ranks is the null distribution, whatever the number of conditions.
    generator = np.random.default_rng(0)
    values = np.arange(num_conditions) + generator.normal(0, 15, (3, num_conditions))
    start = time.perf_counter()
    found = trend(values)
    assert time.perf_counter() - start < 1
    ranks = np.arange(1, num_conditions + 1)
    observed = (values.argsort(1).argsort(1) + 1).sum(0) @ ranks
    orders = generator.permuted(np.tile(ranks, (3 * 100_000, 1)), axis=1).reshape(-1, 3, num_conditions).sum(1)
    one_sided = (orders @ ranks >= observed).mean()
    assert 0.01 < one_sided < 0.5
    assert found.p_value == pytest.approx(2 * one_sided, rel=0.1)


@pytest.mark.parametrize("confidence", [0.0, 1.0, 2.0, -0.5, float("nan"), float("inf")])
def test_no_interval_has_an_impossible_confidence(confidence: float) -> None:
    with pytest.raises(ValueError, match=r"confidence=.*expected a number between 0 and 1"):
        mean_interval([1.0, 2.0], confidence=confidence)
    with pytest.raises(ValueError, match=r"confidence=.*expected a number between 0 and 1"):
        percentile_interval(np.arange(3.0), confidence)
    with pytest.raises(ValueError, match=r"confidence=.*expected a number between 0 and 1"):
        bootstrap_interval(lambda drawn: float(drawn.mean()), 3, confidence=confidence)


def test_infinite_draws_have_an_interval() -> None:
    draws = np.array([np.nan, 1.0, 2.0, 3.0, np.inf, np.inf])
    assert percentile_interval(draws, 0.5) == (2.0, np.inf)
    assert percentile_interval(-draws, 0.5) == (-np.inf, -2.0)


def test_draws_are_a_positive_number_from_a_seed_that_can_be_one() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"num_resamples": 0}, "num_resamples=0: expected"),
        ({"seed": -1}, "seed=-1: expected"),
    ]
    for options, message in cases:
        with pytest.raises(ValueError, match=message):
            bootstrap_interval(lambda drawn: float(drawn.mean()), 3, **options)
        with pytest.raises(ValueError, match=message):
            next(cluster_weights([np.arange(3)], **({"num_resamples": 5, "seed": 0} | options)))


# Sequences ------------------------------------------------------------------------------------------------------------


def bayes_factor(values: np.ndarray) -> float:
    """That of `anytime_p_value` by integration: a standard normal effect size against none, over the t-statistic."""
    count = len(values)
    t = values.mean() / values.std(ddof=1) * math.sqrt(count)
    effects = np.linspace(-9, 9, 6001)
    likelihood = stats.nct.pdf(t, count - 1, effects * math.sqrt(count))
    return float(np.trapezoid(likelihood * stats.norm.pdf(effects), effects) / stats.t.pdf(t, count - 1))


@pytest.mark.parametrize("values", [[0.3, -0.1, 0.2, 0.5], [1.0, 1.2, 0.8, 0.9, 1.1, 1.3], [-2.0, 0.5, 0.1, 0.4, 0.3]])
def test_the_anytime_p_value_is_one_over_a_bayes_factor(values: list[float]) -> None:
    expected = min(1.0, 1 / bayes_factor(np.array(values)))
    assert anytime_p_value(values) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("count", [5, 8, 20, 60])
def test_the_anytime_interval_ends_where_the_p_value_is_the_level(count: int) -> None:
    values = np.random.default_rng(count).normal(0.3, 1.0, count)
    low, high = anytime_interval(values.tolist(), confidence=0.9)
    for end in (low, high):
        assert anytime_p_value((values - end).tolist()) == pytest.approx(0.1, rel=1e-9)
    assert low < values.mean() < high


def test_an_anytime_interval_of_few_repeats_is_everything_and_of_one_nothing() -> None:
    assert anytime_interval([0.1, 0.2, 0.3]) == (-math.inf, math.inf)
    assert np.isnan(anytime_interval([0.1])).all()
    assert np.isnan(anytime_interval([0.1, math.nan, 0.2, 0.3, 0.1])).all()
    assert np.isnan(anytime_p_value([0.1, 0.1, 0.1]))


def test_the_level_holds_over_all_looks_at_a_growing_sample() -> None:
    """Student's interval at every look would exclude the mean of four samples in ten."""
    values = np.random.default_rng(0).standard_normal((2000, 80))
    anytime, naive = np.zeros(2000, bool), np.zeros(2000, bool)
    for count in range(5, 81):
        t = np.abs(values[:, :count].mean(1)) / values[:, :count].std(1, ddof=1) * math.sqrt(count)
        unit = np.arange(count) / np.arange(count).std(ddof=1)
        low, high = anytime_interval(unit.tolist())
        anytime |= t > (high - low) / 2 * math.sqrt(count)
        naive |= t > stats.t.ppf(0.975, count - 1)
    assert anytime.mean() < 0.05
    assert naive.mean() > 0.25


def test_a_trend_of_a_sequence_goes_by_the_two_ends() -> None:
    values = np.array([[0.0, 5.0, 1.0], [0.1, 5.0, 1.2], [0.0, 5.0, 0.9], [0.2, 5.0, 1.1], [0.1, 5.0, 1.0]])
    found = trend(values, sequential=True)
    assert (found.test, found.direction, found.decidable) == ("always-valid t", 1, True)
    assert (found.low, found.high) == anytime_interval((values[:, 2] - values[:, 0]).tolist())
    assert not trend(values[:3], sequential=True).decidable
