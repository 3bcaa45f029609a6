import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import erfinv
from torch import Tensor, nn
from torch.nn import functional as F

from analysis import ErfResult, ResultError, effective_receptive_field


class Energy(nn.Module):
    """Each unit is half the sum of the squares of all pixels: an image is its own gradient."""

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.kernel, self.padding = (2 * height - height % 2, 2 * width - width % 2), (height - 1, width - 1)

    def forward(self, x: Tensor) -> Tensor:
        rows = F.conv2d(x**2 / 2, x.new_ones(1, 1, self.kernel[0], 1), padding=(self.padding[0], 0))
        return F.conv2d(rows, x.new_ones(1, 1, 1, self.kernel[1]), padding=(0, self.padding[1]))


def field(*maps: Any, **changes: Any) -> ErfResult:
    """A result whose maps are these, round the image's centre: a pixel of an odd side, a border of an even one."""
    images = torch.from_numpy(np.stack(maps))[:, None]
    result = effective_receptive_field(Energy(*maps[0].shape), images, **changes)
    np.testing.assert_allclose(result.mean_map, np.mean(maps, axis=0))
    return result


def distance(size: int) -> Any:
    return np.hypot(*np.ogrid[-(size // 2) : size // 2 + 1, -(size // 2) : size // 2 + 1])


def box(kernel: int, size: int = 65) -> Any:
    return np.pad(np.full((kernel, kernel), 1 / kernel**2), (size - kernel) // 2)


THRESHOLDS = [0.01, 0.2, 0.5, 0.77, 0.99, 0.999999]


@pytest.mark.parametrize("shape", [(33, 33), (32, 32), (21, 48), (48, 20)])
def test_a_constant_map_has_an_area_of_the_threshold(shape: tuple[int, int]) -> None:
    result = field(np.ones(shape))
    assert result.center == ((shape[0] - 1) / 2, (shape[1] - 1) / 2)
    for threshold in THRESHOLDS:
        assert result.area_ratio(threshold) == pytest.approx(threshold, rel=1e-12)
        pixels, short = threshold * shape[0] * shape[1], min(shape)
        assert result.side(threshold) == pytest.approx(pixels**0.5 if pixels <= short**2 else pixels / short)


def test_the_square_of_an_off_centre_unit_is_what_the_image_holds_of_it() -> None:
    corner = field(np.ones((21, 21)), unit=(0, 0))
    for threshold in THRESHOLDS:
        side = 21 * threshold**0.5
        assert corner.square(threshold) == pytest.approx((-0.5, -0.5, side, side))
        assert corner.side(threshold) == pytest.approx(side)
    edge = field(np.ones((21, 21)), unit=(10, 0))
    side = (np.sqrt(1 + 8 * 0.4 * 441) - 1) / 2  # side * (side + 1) / 2 is the area
    assert edge.square(0.4) == pytest.approx((10 - side / 2, -0.5, side, (side + 1) / 2))
    assert edge.side(0.4) == pytest.approx(side)


def test_a_box_and_a_gaussian_between_whole_pixels() -> None:
    for threshold in THRESHOLDS:
        assert field(box(9)).side(threshold) == pytest.approx(9 * threshold**0.5)
        assert field(box(9)).area_ratio(threshold) == pytest.approx(threshold * 81 / 65**2)
    gaussian = field(np.exp(-(distance(129) ** 2) / (2 * 12**2)))
    for threshold in (0.2, 0.3, 0.5, 0.8, 0.99):
        expected = 2 * 2**0.5 * 12 * erfinv(threshold**0.5)  # erf(side / (2 sqrt(2) sigma)) squared is the share
        assert gaussian.side(threshold) == pytest.approx(expected, rel=0.004)
        assert gaussian.area_ratio(threshold) == pytest.approx(expected**2 / 129**2, rel=0.008)


def test_the_interval_of_three_images_ends_at_their_own_areas() -> None:
    # Each image alone is drawn in 1 of 27 cases, which is more than the 2.5 % that are cut off at an end.
    low, high = field(box(5), box(7), box(9)).area_ratio_interval(0.5)
    assert (low, high) == pytest.approx((0.5 * 25 / 65**2, 0.5 * 81 / 65**2))
    # Three fields that differ by less than a pixel do not have one area.
    slightly = [np.exp(-(distance(65) ** 2) / (2 * sigma**2)) / sigma**2 for sigma in (8.0, 8.1, 8.2)]
    low, high = field(*slightly).area_ratio_interval(0.5)
    assert high / low == pytest.approx((8.2 / 8.0) ** 2, rel=0.003)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_square_is_larger_than_the_image_and_area_and_side_agree(data: st.DataObject) -> None:
    height, width = (data.draw(st.integers(8, 14)) for _ in range(2))
    generator = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = generator.gamma(0.3, size=(height, width)) + 1e-9
    unit = (data.draw(st.integers(0, height - 2)), data.draw(st.integers(0, width - 2)))
    for result in (field(values, unit=unit), field(values, protocol="official")):
        threshold = data.draw(st.floats(1e-6, 1 - 1e-6))
        for scale in ("raw", "log"):
            area, side = result.area_ratio(threshold, scale), result.side(threshold, scale)
            top, left, *sides = result.square(threshold, scale)
            assert 0 < area <= 1
            assert side == max(sides) <= max(height, width)
            assert top >= -0.5
            assert left >= -0.5
            steps = scale == "log" or result.protocol == "official"
            if not steps or result.center[0] % 1 == result.center[1] % 1:
                assert sides[0] * sides[1] == pytest.approx(area * height * width)
            if steps:
                assert (2 * side) % 1 == 0


def test_the_official_measure_keeps_its_odd_sides() -> None:
    result = field(np.ones((32, 32)), protocol="official")
    for scale in ("raw", "log"):
        # Round pixel 16 of 32: squares of 1, 3, ..., 31 pixels, then the whole image.
        assert result.side(0.5, scale) == 23
        assert result.area_ratio(0.5, scale) == 23**2 / 32**2
        assert (result.side(0.99, scale), result.area_ratio(0.99, scale)) == (32, 1)


SHAPES = {
    "gaussian": (np.exp(-(distance(129) ** 2) / (2 * 16**2)), 2.3548 * 16),
    "disc": (1.0 * (distance(129) < 20), 40),
    "cone": (np.maximum(1 - distance(129) / 40, 0), 40),
    "exponential": (np.exp(-distance(129) / 15), 2 * np.log(2) * 15),
    # A circle of radius r is half inside a square where 8 arccos(k / 2r) = pi.
    "box": (box(31, 129), 31 / np.cos(np.pi / 8)),
}


@pytest.mark.parametrize("name", SHAPES)
def test_full_width_at_half_maximum(name: str) -> None:
    values, expected = SHAPES[name]
    assert field(values).fwhm() == pytest.approx(expected, rel=0.05)
    # Each pixel scattered by a fifth, as the mean of some twenty images is: unbiased to 5 %, no draw is off by a third.
    generator = np.random.default_rng(0)
    found = [field(values * generator.gamma(25, 1 / 25, values.shape)).fwhm() for _ in range(12)]
    assert np.mean(found) == pytest.approx(expected, rel=0.05)
    assert found == pytest.approx([expected] * len(found), rel=0.33)


def test_one_bright_pixel_is_not_half_of_the_width() -> None:
    values = SHAPES["gaussian"][0].copy()
    values[64, 64] = 3  # the width at half of 3 would be 1.5 pixels
    assert field(values).fwhm() == pytest.approx(2.3548 * 16, rel=0.12)


def test_a_width_that_the_image_does_not_hold_is_undefined() -> None:
    assert np.isnan(field(np.ones((33, 33))).fwhm())
    assert np.isnan(field(np.exp(-(distance(33) ** 2) / (2 * 15**2))).fwhm())  # 35 pixels
    assert field(box(1)).fwhm() == pytest.approx(1)


def test_a_map_that_is_not_finite_or_has_both_signs_is_refused() -> None:
    with pytest.raises(ResultError, match="mean_map: holds values that are not finite"):
        dataclasses.replace(field(box(3, 9)), mean_map=np.full((9, 9), np.nan))
    signed = field(np.random.default_rng(0).normal(size=(9, 9)), gradient_rule="signed")
    for undefined in (signed.rms_radius, signed.anisotropy, signed.gaussian_fit, lambda: signed.fwhm("log")):
        with pytest.raises(ValueError, match="gradient_rule='signed'"):
            undefined()
