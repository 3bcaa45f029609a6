"""Public functions with hostile values, drawn and made small by hypothesis."""

import contextlib
import math
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import analysis
import replknet
from tests.fuzz.engine import Case, WrongError, family
from tests.fuzz.families.results import example

_EXAMPLES = 25
_PROPERTIES: list[Callable[[], None]] = []
numbers = st.one_of(
    st.floats(), st.integers(-(2**63), 2**63), st.sampled_from([0, 0.5, 0.95, 1, -1, math.nan, math.inf])
)
moderate = st.one_of(st.floats(-1e9, 1e9), st.sampled_from([0, 1e-9, math.nan, math.inf]))
ints = st.one_of(st.integers(-2, 9), st.sampled_from([-(2**63), -(2**31), 64]))


@contextlib.contextmanager
def refused() -> Iterator[None]:
    """A ValueError of this library is right; one that another library happens to raise names no argument."""
    try:
        yield
    except ValueError as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        if not any(f"/{package}/" in last for package in ("analysis", "replknet")) or "site-packages" in last:
            raise WrongError(f"refused by {Path(last).name} only: {str(error)[:200]}") from error


def _property(**strategies: Any) -> Callable[[Callable[..., None]], None]:
    def register(check: Callable[..., None]) -> None:
        options = settings(
            max_examples=_EXAMPLES, database=None, deadline=None, report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck), phases=(Phase.generate, Phase.shrink),
        )  # fmt: skip
        _PROPERTIES.append(options(given(**strategies)(check)))

    return register


@family(share=3)
def calls(random: Random, folder: Path) -> Case:
    """Some examples of one property; a wrong one is made small."""
    check = random.choice(_PROPERTIES)
    return Case(check.__name__, seed(random.randrange(2**32))(check), ())


def _interval(found: tuple[float, float]) -> None:
    low, high = found
    if math.isnan(low) != math.isnan(high) or low > high:
        raise WrongError(f"interval {found}")


@_property(values=st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=6), confidence=numbers)
def mean_interval(values: list[float], confidence: float) -> None:
    with refused():
        low, high = analysis.mean_interval(values, confidence=confidence)
        if not 0 < confidence < 1:
            raise WrongError(f"confidence={confidence} is accepted")
        if not low <= np.mean(values) + 1e-6 or not high >= np.mean(values) - 1e-6:
            raise WrongError(f"interval {low, high} of {values}, confidence={confidence}")


@_property(count=st.integers(0, 6), confidence=numbers, resamples=ints.filter(lambda n: n < 1000))
def bootstrap_interval(count: int, confidence: float, resamples: int) -> None:
    values = np.arange(count, dtype=float)
    with refused():
        found = analysis.bootstrap_interval(
            lambda drawn: float(values[drawn].mean()), count, confidence=confidence, num_resamples=resamples
        )
        _interval(found)
        if count > 1 and not 0 < confidence < 1:
            raise WrongError(f"confidence={confidence} is accepted")
        if count > 1 and math.isnan(found[0]):
            raise WrongError(f"NaN for {count} samples, {resamples} resamples, confidence={confidence}")


@_property(repeats=st.integers(0, 6), conditions=st.integers(0, 14), spread=st.sampled_from([0.0, 1e-300, 1.0, 1e300]))
def trend(repeats: int, conditions: int, spread: float) -> None:
    values = spread * np.random.default_rng(repeats + 7 * conditions).standard_normal((repeats, conditions))
    with refused():
        found = analysis.trend(values)
        if not (math.isnan(found.p_value) or 0 <= found.p_value <= 1):
            raise WrongError(f"p={found.p_value}")


@_property(
    balance=st.lists(numbers, max_size=6), shape=st.lists(numbers, max_size=6), texture=st.lists(numbers, max_size=6)
)
def psychometric_lists(balance: list[float], shape: list[float], texture: list[float]) -> None:
    _fit(balance, shape, texture)


@_property(rows=st.lists(st.tuples(st.floats(-1, 1), numbers, st.integers(0, 9)), min_size=2, max_size=8))
def psychometric_counts(rows: list[tuple[float, float, int]]) -> None:
    _fit(*(list(column) for column in zip(*rows, strict=True)))


def _fit(balance: list[Any], shape: list[Any], texture: list[Any]) -> None:
    with refused():
        found = analysis.fit_psychometric(balance, shape, texture)
        given_values = [*balance, *shape, *texture]
        if not all(math.isfinite(value) for value in given_values) or min([0, *shape, *texture]) < 0:
            raise WrongError(f"takes balance={balance}, num_shape={shape}, num_texture={texture}: pse={found.pse}")


_field = example(analysis.ErfResult)


@_property(threshold=numbers, scale=st.sampled_from(["raw", "log"]), confidence=numbers)
def area_measures(threshold: float, scale: Any, confidence: float) -> None:
    with refused():
        area = _field.area_ratio(threshold, scale)
        if not 0 < threshold < 1:
            raise WrongError(f"threshold={threshold} is accepted")
        if not 0 <= area <= 1 or not 0 <= _field.side(threshold, scale) <= max(_field.map_size):
            raise WrongError(f"area {area}, side {_field.side(threshold, scale)}")
        _interval(_field.area_ratio_interval(threshold, confidence=confidence))
        if not 0 < confidence < 1:
            raise WrongError(f"confidence={confidence} is accepted")


@_property(scale=st.one_of(st.sampled_from(["raw", "log"]), st.text(max_size=3)))
def scales(scale: Any) -> None:
    with refused():
        for measure in (
            "scaled_map",
            "contribution_curve",
            "radial_profile",
            "fwhm",
            "covariance",
            "rms_radius",
            "anisotropy",
        ):
            getattr(_field, measure)(scale)
            if scale not in ("raw", "log"):
                raise WrongError(f"{measure}: scale={scale!r} is accepted")


@_property(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 3), st.integers(0, 12), st.integers(0, 12)),
    kernel=st.tuples(st.integers(0, 15), st.integers(0, 15)),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.int64, torch.complex64]),
    method=st.sampled_from(["auto", "fft", "direct", "", "FFT"]),
    last=st.booleans(),
    bias=st.booleans(),
    grad=st.booleans(),
)
def convolution(shape: Any, kernel: Any, dtype: torch.dtype, method: Any, last: bool, bias: bool, grad: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator).to(dtype)
    weight = torch.randn((shape[1], 1, *kernel), generator=generator).to(dtype)
    offset = torch.randn(shape[1], generator=generator).to(dtype) if bias else None
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    if grad and x.is_floating_point():
        x.requires_grad_()
        weight.requires_grad_()
    with refused():
        found = replknet.depthwise_conv2d(x, weight, offset, method)
        wide = torch.complex128 if dtype.is_complex else torch.float64
        expected = torch.zeros(shape, dtype=wide)
        if x.numel():
            padding = (kernel[0] // 2, kernel[1] // 2)
            own = None if offset is None else offset.to(wide)
            expected = F.conv2d(x.detach().to(wide), weight.detach().to(wide), own, padding=padding, groups=shape[1])
        precision = {torch.float64: 1e-9, torch.bfloat16: 0.05, torch.float16: 0.01}.get(dtype, 1e-4)
        if found.shape != x.shape or found.dtype != dtype:
            raise WrongError(f"{found.dtype} of {tuple(found.shape)} from {dtype} of {shape}")
        if not torch.allclose(found.detach().to(wide), expected, rtol=precision, atol=precision * 15):
            raise WrongError(f"differs by {(found.detach().to(wide) - expected).abs().max().item()}")
        if found.requires_grad:
            found.sum().backward()  # type: ignore[no-untyped-call]


@_property(channels=ints, kernel=ints)
def convolution_layers(channels: int, kernel: int) -> None:
    with refused(), torch.device("meta"):
        replknet.DepthwiseConv2d(channels, kernel)
        if channels < 1 or kernel < 1:
            raise WrongError(f"channels={channels}, kernel_size={kernel} are accepted")


_TINY: dict[str, Any] = {
    "layers": (1, 1),
    "channels": (4, 6),
    "kernel_sizes": (5, 3),
    "small_kernel": 3,
    "num_classes": 3,
}
_odd = st.one_of(
    ints, st.floats(), st.booleans(), st.none(), st.text(max_size=2), st.lists(ints, max_size=3), st.tuples(ints, ints)
)


@_property(name=st.sampled_from(sorted(replknet.RepLKNetConfig.__dataclass_fields__)), value=_odd)
def configurations(name: str, value: Any) -> None:
    with refused(), torch.device("meta"):
        replknet.RepLKNet(replknet.RepLKNetConfig(**{**_TINY, name: value}))
        hint = type(getattr(replknet.RepLKNetConfig(**_TINY), name))
        if hint is bool and not isinstance(value, bool):
            raise WrongError(f"{name}={value!r} is accepted")


@_property(
    size=st.tuples(ints, ints),
    channels=ints,
    layer=st.one_of(st.none(), st.text(max_size=2), st.sampled_from(["0", "1"])),
)
def theoretical_fields(size: tuple[int, int], channels: int, layer: str | None) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2))
    with refused():
        found = analysis.theoretical_receptive_field(model, size, layer=layer, in_channels=channels)
        if min(size) < 1 or channels != 3:
            raise WrongError(f"image_size={size}, in_channels={channels} are accepted")
        if found.size not in ((3, 3), (4, 4)):
            raise WrongError(f"a field of {found.size}")


@_property(
    size=st.one_of(ints, st.tuples(ints, ints)),
    count=st.integers(-2, 3),
    image_seed=ints,
    mean=st.lists(moderate, max_size=4),
    std=st.lists(moderate, max_size=4),
)
def generated_images(size: Any, count: int, image_seed: int, mean: list[float], std: list[float]) -> None:
    options = {name: own for name, own in (("mean", mean), ("std", std)) if len(own) != 2}
    with refused():
        images = analysis.load_images(size=size, num_images=count, seed=image_seed, **options)  # type: ignore[arg-type]
        if not all(torch.isfinite(image).all() for image in images):
            raise WrongError(f"mean={mean}, std={std}: images are not finite")


_answers = example(analysis.ShapeBiasResult)


@_property(
    confidence=numbers,
    resamples=ints.filter(lambda n: n < 1000),
    draw_seed=ints,
    cluster=st.sampled_from(["image", "two-way", "x", ""]),
)
def shape_bias_intervals(confidence: float, resamples: int, draw_seed: int, cluster: Any) -> None:
    with refused():
        found = _answers.confidence_interval(cluster, confidence=confidence, num_resamples=resamples, seed=draw_seed)
        _interval(found)
        if not 0 < confidence < 1 or resamples < 1:
            raise WrongError(f"confidence={confidence}, num_resamples={resamples} are accepted")


@_property(confidence=numbers, resamples=ints.filter(lambda n: n < 1000), draw_seed=ints)
def consistencies(confidence: float, resamples: int, draw_seed: int) -> None:
    with refused():
        options = {"confidence": confidence, "num_resamples": resamples, "seed": draw_seed}
        analysis.error_consistency(_answers, _answers, **options)  # type: ignore[arg-type]
        if not 0 < confidence < 1 or resamples < 1:
            raise WrongError(f"confidence={confidence}, num_resamples={resamples} are accepted")


@_property(draws=st.lists(st.floats(), max_size=5), confidence=numbers)
def percentiles(draws: list[float], confidence: float) -> None:
    with refused():
        _interval(analysis.percentile_interval(np.array(draws, float), confidence))
    if not 0 <= (analysis.bootstrap_p_value(np.array(draws, float)) or 0) <= 1 and not all(map(math.isnan, draws)):
        raise WrongError(f"p of {draws}")


@_property(
    logits=st.lists(st.lists(st.floats(width=32), min_size=3, max_size=3), max_size=4),
    aggregation=st.sampled_from(["mean-probability", "sum-probability", "max-probability", "mean-logit", "x"]),
    tie=st.sampled_from(["first", "none", "x"]),
)
def decisions(logits: list[list[float]], aggregation: Any, tie: Any) -> None:
    mapping = analysis.LabelMapping.from_dict({0: "bird", 1: "cat", 2: "dog"}, 3)
    with refused():
        found = mapping.decide(np.array(logits, np.float32).reshape(-1, 3), aggregation, tie)
        if len(found) != len(logits) or not set(found) <= {"bird", "cat", "dog", "na"}:
            raise WrongError(f"{found} for {logits}")
        if not np.isfinite(np.array(logits, float)).all():
            raise WrongError(f"logits {logits} are accepted")
