"""What goes with the shape bias: tables whose answer is known."""

import numpy as np
import pandas as pd
import pytest

from analysis.statistics import mean_interval
from analysis.study.association import association_rows, associations


def table(num_seeds: int = 12, *, direct: float = 0.0, slope: float = 2.0, noise: float = 0.0) -> pd.DataFrame:
    """The bias follows the area, which grows with the kernel, and `direct` from kernel 3 to 31 beside that."""
    generator = np.random.default_rng(0)
    rows = []
    for seed in range(num_seeds):
        for place, kernel in enumerate((3, 13, 31)):
            area = 0.1 + 0.05 * place + 0.02 * generator.standard_normal()
            bias = 0.2 + slope * area + direct * place / 2 + noise * generator.standard_normal()
            cues = {name: generator.random() for name in ("shape_only_accuracy", "texture_only_accuracy")}
            rows.append({"seed": seed, "kernel": kernel, "erf_area_0.5": area, "shape_bias": bias, **cues})
    return pd.DataFrame(rows)


def test_a_bias_that_follows_the_area_leaves_no_difference() -> None:
    found = {item.measures: item for item in associations(table())}
    nothing, area = found[()], found["erf_area_0.5",]
    assert nothing.difference == pytest.approx(0.2, abs=0.05) and np.isnan(nothing.correlation)
    assert area.correlation == pytest.approx(1)
    assert area.difference == pytest.approx(0, abs=1e-12)
    assert area.interval == pytest.approx((1, 1))


def test_with_nothing_held_equal_the_interval_is_about_students() -> None:
    rows = table(6, direct=0.5, noise=0.3)
    wide = rows.pivot_table(index="seed", columns="kernel", values="shape_bias")
    low, high = mean_interval((wide[31] - wide[3]).tolist())
    (nothing,) = [item for item in associations(rows) if not item.measures]
    assert nothing.difference == pytest.approx((low + high) / 2)
    assert np.diff(nothing.difference_interval)[0] == pytest.approx(high - low, rel=0.15)


def test_what_the_kernel_does_beside_the_area_is_left() -> None:
    found = {item.measures: item for item in associations(table(direct=0.3, slope=-2))}
    assert found["erf_area_0.5",].correlation == pytest.approx(-1)
    assert found["erf_area_0.5",].difference == pytest.approx(0.3)


def test_the_correlation_is_that_of_the_residuals_and_its_interval_covers_it() -> None:
    rows = table(40, noise=0.05)
    inner = rows[["erf_area_0.5", "shape_bias"]] - rows.groupby("kernel")[["erf_area_0.5", "shape_bias"]].transform(
        "mean"
    )
    found = {item.measures: item for item in associations(rows)}
    area = found["erf_area_0.5",]
    assert area.correlation == pytest.approx(inner["erf_area_0.5"].corr(inner["shape_bias"]))
    low, high = area.interval
    assert low < area.correlation < high
    # Fisher's interval of 120 - 2 independent pairs.
    expected = np.tanh(np.arctanh(area.correlation) + np.array([-1.96, 1.96]) / np.sqrt(118 - 3))
    assert (low, high) == pytest.approx(tuple(expected), abs=0.08)
    chance = found["shape_only_accuracy",]
    assert chance.interval[0] < 0 < chance.interval[1]


def test_two_measures_together_are_the_multiple_correlation() -> None:
    rows = table(noise=0.02)
    names = ["shape_only_accuracy", "texture_only_accuracy"]
    inner = rows[[*names, "shape_bias"]] - rows.groupby("kernel")[[*names, "shape_bias"]].transform("mean")
    slopes, *_ = np.linalg.lstsq(inner[names].to_numpy(), inner["shape_bias"].to_numpy())
    expected = np.corrcoef(inner[names].to_numpy() @ slopes, inner["shape_bias"])[0, 1]
    assert associations(rows)[-1].correlation == pytest.approx(expected)


def test_a_seed_without_all_values_does_not_count() -> None:
    assert association_rows(table(7).iloc[:-1]) == association_rows(table(7).iloc[:-3]) != []


def test_too_little_to_say_anything() -> None:
    assert associations(table(4)) == []
    assert association_rows(table(5).iloc[:-1]) == []
    assert association_rows(table().assign(shape_only_accuracy=np.nan)) == []


def test_the_rows_in_words() -> None:
    rows = association_rows(table())
    assert [row[0] for row in rows][:2] == ["nothing", "area with half of the gradient"]
    assert rows[0][1] == "-"
    assert rows[1][1:] == ["+1.00 [+1.00, +1.00]", "+0.00 [+0.00, +0.00]"] or rows[1][2].startswith("-0.00")
