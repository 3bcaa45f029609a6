from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import analysis
from analysis import ErfResult, ForwardError, LayerError, ResultError, effective_receptive_field
from analysis.runs.identity import hash_weights
from tests.conftest import Reference


def box(kernel: int, layers: int = 1) -> nn.Sequential:
    """Convolutions of all ones on one channel, no bias."""
    convolutions = [nn.Conv2d(1, 1, kernel, padding=kernel // 2, bias=False) for _ in range(layers)]
    for layer in convolutions:
        nn.init.ones_(layer.weight)
    return nn.Sequential(*convolutions).double()


ONES = torch.ones(2, 1, 21, 21, dtype=torch.float64)


def test_a_pointwise_layer_sees_one_pixel() -> None:
    result = effective_receptive_field(box(1), ONES)
    expected = np.zeros((21, 21))
    expected[10, 10] = 1
    np.testing.assert_array_equal(result.mean_map, expected)
    assert result.unit == (10, 10)
    assert [result.side(t) for t in (0.2, 0.5, 0.99)] == pytest.approx([0.2**0.5, 0.5**0.5, 0.99**0.5])
    assert [result.side(t, "log") for t in (0.2, 0.5, 0.99)] == [1, 1, 1]
    assert result.area_ratio(0.99) == pytest.approx(0.99 / 441)
    assert result.rms_radius() == 0


def test_a_box_and_a_triangle() -> None:
    one = effective_receptive_field(box(5), ONES)
    assert one.mean_map.sum() == 25
    assert one.mean_map[8:13, 8:13].min() == 1
    assert [one.side(t) for t in (9 / 25, 0.64, 0.99)] == pytest.approx([3, 4, 5 * 0.99**0.5])
    official = effective_receptive_field(box(5), ONES, protocol="official")
    assert [official.side(t) for t in (0.3, 0.37, 0.99)] == [3, 5, 5]  # the 3x3 square holds 9/25
    assert one.rms_radius() == pytest.approx(2.0)  # variance of {-2..2} is 2 along each axis
    assert one.anisotropy() == pytest.approx(1)
    two = effective_receptive_field(box(5, layers=2), ONES)
    triangle = np.array([1, 2, 3, 4, 5, 4, 3, 2, 1])
    np.testing.assert_array_equal(two.mean_map[6:15, 6:15], np.outer(triangle, triangle))
    assert two.rms_radius() == pytest.approx(8**0.5)
    assert two.theoretical == (9, 9)


def gaussian_result(sigma: tuple[float, float], amplitude: float = 1.0, size: int = 65, **changes: Any) -> ErfResult:
    """A depthwise convolution whose kernel is a Gaussian has that Gaussian as its field."""
    offsets = torch.arange(size, dtype=torch.float64) - size // 2
    rows, columns = (torch.exp(-0.5 * (offsets / width) ** 2) for width in sigma)
    conv = nn.Conv2d(1, 1, size, padding=size // 2, bias=False).double()
    conv.weight.data = amplitude * torch.outer(rows, columns)[None, None]
    return effective_receptive_field(nn.Sequential(conv), torch.ones(1, 1, size, size).double(), **changes)


def test_measures_of_a_gaussian() -> None:
    result = gaussian_result((6.0, 3.0))
    fit = result.gaussian_fit()
    assert (fit["sigma_y"], fit["sigma_x"]) == pytest.approx((6, 3), rel=1e-6)
    assert (fit["y"], fit["x"]) == pytest.approx((32, 32))
    assert fit["r_squared"] == pytest.approx(1)
    assert result.rms_radius() == pytest.approx((6**2 + 3**2) ** 0.5, rel=1e-3)
    assert result.anisotropy() == pytest.approx(2, rel=1e-3)
    assert gaussian_result((8.0, 8.0)).fwhm() == pytest.approx(2.3548 * 8, rel=0.02)


def test_only_the_log_ratio_depends_on_the_scale_of_the_gradient() -> None:
    # A Gaussian in units of its width, over a 1:1e9 range of gradient scales; values of the known trap.
    raw, log = [], []
    for amplitude in (1e-3, 1.0, 1e3, 1e6):
        result = gaussian_result((6.4, 6.4), amplitude)
        raw.append(result.area_ratio(0.5))
        log.append(result.area_ratio(0.5, scale="log"))
    assert raw == pytest.approx([raw[0]] * 4, rel=1e-12)
    assert log == sorted(log)
    assert log[3] > 3 * log[0]


def test_official_maps_ratios_and_sides(reference: Reference) -> None:
    model = reference.load("tiny_official_flat.pth")
    images = torch.from_numpy(reference.official["erf_images"]).double()
    expected = reference.official["erf_per_image"]
    for image, per_image in zip(images, expected, strict=True):
        actual = effective_receptive_field(model, image[None], protocol="official").mean_map
        np.testing.assert_allclose(actual, per_image, rtol=0, atol=1e-9 * per_image.max())
    result = effective_receptive_field(model, images, protocol="official")
    for threshold, (side, ratio) in reference.erf_ratios.items():
        assert result.side(float(threshold), "log") == side
        assert result.area_ratio(float(threshold), "log") == ratio


def test_a_threshold_that_is_never_passed_gives_the_whole_image() -> None:
    uniform = nn.Sequential(nn.AvgPool2d(2), nn.Upsample(scale_factor=2), nn.Conv2d(1, 1, 129, padding=64)).double()
    nn.init.ones_(uniform.get_parameter("2.weight"))
    result = effective_receptive_field(uniform, torch.ones(1, 1, 32, 48, dtype=torch.float64))
    assert result.area_ratio(0.999999, "log") == 1
    assert result.fills_image()
    # Squares on a wide map stop growing in area at its upper and lower edge.
    assert result.area_ratio(0.5, "log") == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize(
    ("rule", "sums", "expected"),
    [
        ("relu", "after", 3.0),
        ("abs", "after", 5.0),
        ("square", "after", 13.0),
        ("signed", "after", 1.0),
        ("abs", "before", 1.0),
        ("square", "before", 1.0),
    ],
)
def test_rules_on_gradients(rule: Any, sums: Any, expected: float) -> None:
    conv = nn.Conv2d(2, 1, 1, bias=False).double()
    conv.weight.data = torch.tensor([3.0, -2.0], dtype=torch.float64).view(1, 2, 1, 1)
    image = torch.ones(1, 2, 5, 5, dtype=torch.float64)
    result = effective_receptive_field(nn.Sequential(conv), image, gradient_rule=rule, sum_colors=sums)
    assert result.mean_map[2, 2] == expected
    assert result.mean_map.sum() == expected
    assert result.protocol == ("standard" if (rule, sums) == ("abs", "after") else "custom")
    assert result.options.gradient_rule == rule


def test_rule_on_outputs_and_explicit_unit() -> None:
    negative = box(3)
    negative.get_parameter("0.weight").data.neg_()
    off = effective_receptive_field(negative, ONES)
    assert off.mean_map.sum() == 0
    undefined = [
        off.side(0.5),
        off.side(0.5, "log"),
        off.area_ratio(0.5),
        *off.area_ratio_interval(0.5),
        off.rms_radius(),
        off.fwhm(),
        off.anisotropy(),
    ]
    assert np.isnan([*undefined, *off.gaussian_fit().values()]).all()
    assert not off.fills_image()
    on = effective_receptive_field(negative, ONES, output_rule="identity", unit=(0, 20))
    assert on.mean_map.sum() == 4
    assert (on.center, on.mean_map[:2, 19:].sum()) == ((0, 20), 4)
    for unit in ((-1, 0), (1.0, 2), (1, 2, 3), "middle", 3):
        with pytest.raises(ValueError, match="unit="):
            effective_receptive_field(negative, ONES, unit=unit)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"unit=\(21, 0\)"):
        effective_receptive_field(negative, ONES, unit=(21, 0))
    with pytest.raises(ValueError, match="gradient_rule='signed'"):
        effective_receptive_field(box(3), ONES, gradient_rule="signed").area_ratio(0.5)


class ChannelsLast(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.permute(0, 2, 3, 1)


class Tokens(nn.Module):
    """Patches as tokens behind two prefix tokens."""

    num_prefix_tokens = 2

    def forward_features(self, x: Tensor) -> Tensor:
        tokens = nn.functional.avg_pool2d(x, 4).flatten(2).transpose(1, 2)
        return torch.cat([tokens.new_zeros(len(x), 2, tokens.shape[2]), tokens], 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_features(x).mean(1)


@pytest.mark.parametrize(("height", "width"), [(16, 16), (16, 32)])
def test_channels_last_and_tokens(height: int, width: int) -> None:
    image = torch.ones(1, 3, height, width, dtype=torch.float64)
    last = effective_receptive_field(nn.Sequential(nn.AvgPool2d(4), ChannelsLast()), image)
    tokens = effective_receptive_field(Tokens(), image)
    for result in (last, tokens):
        assert result.grid == (height // 4, width // 4)
        expected = np.zeros((height, width))
        rows, columns = (slice(4 * index, 4 * index + 4) for index in result.unit)
        expected[rows, columns] = 3 / 16
        np.testing.assert_allclose(result.mean_map, expected)
    assert last.unit == tokens.unit


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"])
def test_timm_transformers_by_name(name: str) -> None:
    loaded = analysis.load_model(f"timm:{name}", pretrained=False)
    images = analysis.load_images(size=224, num_images=1, mean=loaded.mean, std=loaded.std)
    result = effective_receptive_field(loaded.module, images)
    assert result.grid == ((14, 14) if "vit" in name else (7, 7))
    assert 0 < result.area_ratio(0.5) <= 1
    assert result.theoretical == (float("inf"), float("inf"))


class Breaks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        self.fail = False

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.conv(x)
        if x.device.type != "meta" and self.fail:
            raise RuntimeError("broken")
        return y


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_restored(fail: bool) -> None:
    model = Breaks().double().train()
    model.fail = fail
    model.conv.bias.requires_grad_(False)  # type: ignore[union-attr]
    with torch.no_grad():
        if fail:
            with pytest.raises(ForwardError, match=r"model: Breaks .*broken"):
                effective_receptive_field(model, ONES)
        else:
            effective_receptive_field(model, ONES)
    assert model.training
    assert model.conv.training
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, False]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not model._forward_hooks
    assert not model.conv._forward_hooks


def test_layers_by_name() -> None:
    model = box(3, layers=3)
    sizes = [effective_receptive_field(model, ONES, layer=name).side(0.99, "log") for name in ("0", "1", "2")]
    assert sizes == [3, 5, 7]
    with pytest.raises(LayerError, match="layer='9': the model has no such module"):
        effective_receptive_field(model, ONES, layer="9")


def test_a_gradient_that_is_not_finite_is_skipped_and_named() -> None:
    images = ONES.clone()
    images[1, 0, 10, 10] = float("nan")
    model = nn.Sequential(box(3), nn.Softplus())
    result = effective_receptive_field(model, images)
    assert result.images == ("image-0",)
    assert result.skipped == (("image-1", "the gradient is not finite"),)
    with pytest.raises(ValueError, match="none of 1 gave a finite gradient"):
        effective_receptive_field(model, images[1:])


def test_interval_covers_the_estimate_and_is_undefined_for_one_image() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 9, padding=4), nn.ReLU(), nn.Conv2d(4, 4, 9, padding=4)).double()
    result = effective_receptive_field(model, torch.randn(12, 1, 33, 33, dtype=torch.float64))
    low, high = result.area_ratio_interval(0.5)
    assert low <= result.area_ratio(0.5) <= high
    assert np.isnan(effective_receptive_field(model, ONES[:1]).area_ratio_interval(0.5)).all()


def test_save_and_load(tmp_path: Path) -> None:
    result = effective_receptive_field(box(5), ONES, name="box", unit=(9, 9))
    result.save(tmp_path / "result")
    loaded = ErfResult.load(tmp_path / "result")
    assert loaded.summary() == pytest.approx(result.summary(), nan_ok=True)
    for name in ("options", "images", "unit", "center", "theoretical", "weights_hash", "skipped", "environment"):
        assert getattr(loaded, name) == getattr(result, name)
    np.testing.assert_array_equal(loaded.mean_map, result.mean_map)
    with pytest.raises(ValueError, match="read-only"):
        loaded.mean_map[0, 0] = 1
    with pytest.raises(FileExistsError, match="overwrite=True"):
        result.save(tmp_path / "result")
    result.save(tmp_path / "result", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result"]
    path = tmp_path / "result" / "result.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 99'))
    with pytest.raises(ResultError, match="version 1; found"):
        ErfResult.load(tmp_path / "result")
    with pytest.raises(FileNotFoundError, match=r"no result\.json"):
        ErfResult.load(tmp_path)


def test_an_interrupted_measurement_continues_where_it_stopped(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 5, padding=2), nn.ReLU(), nn.Conv2d(4, 4, 5, padding=2)).double()
    images = torch.randn(5, 1, 21, 21, dtype=torch.float64)
    whole = effective_receptive_field(model, images)

    def interrupt(done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    partial = tmp_path / "partial.npz"
    with pytest.raises(KeyboardInterrupt):
        effective_receptive_field(model, images, partial=partial, progress=interrupt)
    seen: list[int] = []
    resumed = effective_receptive_field(model, images, partial=partial, progress=lambda done, total: seen.append(done))
    assert seen == [3, 4, 5]
    assert not partial.exists()
    np.testing.assert_array_equal(resumed.mean_map, whole.mean_map)
    np.testing.assert_array_equal(resumed.ring_sums, whole.ring_sums)
    # Another model's state is not continued.
    with pytest.raises(KeyboardInterrupt):
        effective_receptive_field(model, images, partial=partial, progress=interrupt)
    nn.init.ones_(model.get_parameter("0.weight"))
    seen.clear()
    effective_receptive_field(model, images, partial=partial, progress=lambda done, total: seen.append(done))
    assert seen == [0, 1, 2, 3, 4, 5]


def test_weights_hash_changes_with_the_weights() -> None:
    model = box(3)
    before = hash_weights(model)
    assert before == hash_weights(box(3))
    model.get_parameter("0.weight").data[0, 0, 0, 0] += 1e-9
    assert hash_weights(model) != before


def test_unknown_choices_are_refused() -> None:
    for argument in ("protocol", "gradient_rule", "output_rule", "unit"):
        with pytest.raises(ValueError, match=f"{argument}='other'"):
            effective_receptive_field(box(3), ONES, **{argument: "other"})  # type: ignore[arg-type]
    result = effective_receptive_field(box(3), ONES)
    with pytest.raises(ValueError, match="threshold=1"):
        result.side(1)
    with pytest.raises(ValueError, match="scale='ln'"):
        result.area_ratio(0.5, scale="ln")  # type: ignore[arg-type]


def test_a_file_that_vanishes_after_the_draw_is_skipped_and_named(tmp_path: Path) -> None:
    for index in range(2):
        Image.new("RGB", (8, 8), (255, 40 * index, 0)).save(tmp_path / f"{index}.png")
    images = analysis.load_images([tmp_path / "0.png", tmp_path / "1.png"], size=16)
    (tmp_path / "0.png").unlink()
    torch.manual_seed(0)
    result = effective_receptive_field(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1)), images)
    assert result.images == (str(tmp_path / "1.png"),)
    assert result.skipped == ((str(tmp_path / "0.png"), "no such file"),)
