"""Whether the convolution of a device is right, before it is timed: against `conv2d` in float64."""

import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

import replknet
from analysis.models.precision import true_float32
from replknet.convolution import toeplitz
from replknet.convolution.planning import Method

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
BOUNDS = {"float32": math.inf, "bfloat16": 1e-2, "float16": 2e-3}
"""Of an error over the largest exact value."""
OVER_OWN = {"float32": 2.0, "bfloat16": 1.5, "float16": 1.5}
"""Of an error over that of `conv2d` of the same data type, to which the resolution of the type is added."""
OVER_OWN_OF_FFT = 4.0
"""The same for FFTs that are insisted on where the plan would not take them: `conv2d`'s error grows with the number of
products that it adds up, that of FFTs hardly does, so that they are the less exact for small maps."""
SHAPES: tuple[tuple[int, int, int, int, int, int], ...] = (
    (4, 16, 56, 56, 31, 31),
    (4, 16, 28, 28, 29, 29),
    (4, 24, 14, 14, 27, 27),
    (4, 32, 7, 7, 13, 13),
    (1, 8, 96, 130, 31, 31),
    (2, 8, 56, 56, 51, 5),
    (2, 8, 56, 56, 5, 51),
    (2, 8, 56, 56, 51, 51),
    (3, 7, 15, 33, 5, 5),
    (2, 5, 9, 11, 31, 31),
    (2, 3, 1, 40, 13, 13),
    (2, 3, 40, 1, 13, 13),
    (5, 1, 1, 1, 3, 3),
    (1, 9, 14, 14, 1, 7),
    (0, 4, 14, 14, 13, 13),
    (33, 17, 12, 10, 7, 7),
)
"""Images, channels, height, width, and height and width of the kernels: maps of the networks with fewer channels,
larger and narrow maps, kernels beyond the map, odd counts, one image and none."""
SPECTRAL_SHAPES: tuple[tuple[int, int, int, int, int, int], ...] = (
    (64, 128, 56, 56, 31, 31),
    (8, 128, 56, 56, 51, 51),
    (4, 128, 256, 256, 31, 31),
)
"""Where the plan itself takes FFTs in float32 on a GPU."""


@dataclass(frozen=True)
class Check:
    """One shape in one data type and layout on one device; `shape` as in `SHAPES`, `method` as of the convolution."""

    shape: tuple[int, int, int, int, int, int]
    dtype: str
    layout: str
    device: str
    method: Method = "auto"


def checks(device: str) -> Iterator[Check]:
    """All shapes in both layouts and all data types; on a CPU, where `conv2d` of half precision may not return, one.

    On a GPU such small maps are given to PyTorch's own convolution, so all other ways are insisted on; FFTs are also
    checked where the plan takes them.
    """
    if device == "cpu":
        methods: dict[str, tuple[Method, ...]] = {"float32": ("auto",)}
    else:
        products: tuple[Method, ...] = ("toeplitz",) if toeplitz.is_usable(torch.device(device)) else ("auto",)
        methods = {dtype: (*products, "fft") if dtype == "float32" else products for dtype in BOUNDS}
    for shape in SHAPES:
        for dtype in methods:
            for layout in LAYOUTS:
                for method in methods[dtype]:
                    yield Check(shape, dtype, layout, device, method)
    for shape in SPECTRAL_SHAPES if device != "cpu" else ():
        for layout in LAYOUTS:
            yield Check(shape, "float32", layout, device)


def errors(check: Check) -> list[dict[str, Any]]:
    """A row for the output and each gradient.

    Returns:
        Rows with the fields of the check, `direction`, `error` and `own_error` (of `replknet.depthwise_conv2d` and
        `conv2d` in that data type, over the largest exact value; for a bias, over the sum of absolute terms), `bound`,
        whether it is kept (`right`) and, where something was raised, a `note`.
    """
    try:
        with true_float32():
            found, note = _errors(check), ""
    except Exception as reason:  # of a compiler or a driver, whatever they are
        text = f"{type(reason).__name__}: {' '.join(str(reason).split())[:200]}"
        found, note = {"output": (math.nan, math.nan)}, text
    resolution = torch.finfo(getattr(torch, check.dtype)).eps
    rows = []
    for direction, (error, own) in found.items():
        over_own = OVER_OWN_OF_FFT if check.method == "fft" else OVER_OWN[check.dtype]
        bound = min(BOUNDS[check.dtype], over_own * own + resolution)
        values = {"direction": direction, "error": error, "own_error": own, "bound": bound, "right": error <= bound}
        shape = "x".join(map(str, check.shape))
        rows.append({**asdict(check), "shape": shape, **values, "note": note})
    return rows


def _errors(check: Check) -> dict[str, tuple[float, float]]:
    num_images, channels, height, width, *sides = check.shape
    generator = torch.Generator().manual_seed(0)
    kind, layout = getattr(torch, check.dtype), LAYOUTS[check.layout]

    def drawn(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(check.device, kind)

    maps, grad = (drawn(num_images, channels, height, width).contiguous(memory_format=layout) for _ in range(2))
    weight, bias = drawn(channels, 1, *sides), drawn(channels)

    def conv2d(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.conv2d(x, weight, bias, padding=(sides[0] // 2, sides[1] // 2), groups=channels)

    def convolution(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return replknet.depthwise_conv2d(x, weight, bias, check.method)

    ours = _directions(convolution, maps, weight, bias, grad)
    if ours["output"].is_contiguous(memory_format=layout) != maps.is_contiguous(memory_format=layout):
        raise ValueError(f"the output is not {check.layout}")
    plain = [tensor.contiguous() for tensor in (maps, weight, bias, grad)]
    own = _directions(conv2d, *plain)
    exact = _directions(conv2d, *(tensor.double() for tensor in plain))
    # The sum that is the bias's gradient may nearly cancel, so that its rounding is that of its terms.
    scales = {direction: value.abs() for direction, value in exact.items()}
    scales["bias gradient"] = grad.double().abs().sum((0, 2, 3))
    return {
        direction: (
            _distance(ours[direction], value, scales[direction]),
            _distance(own[direction], value, scales[direction]),
        )
        for direction, value in exact.items()
    }


def _directions(
    function: Callable[[Tensor, Tensor, Tensor], Tensor], maps: Tensor, weight: Tensor, bias: Tensor, grad: Tensor
) -> dict[str, Tensor]:
    inputs = [tensor.detach().requires_grad_() for tensor in (maps, weight, bias)]
    out = function(*inputs)
    gradients = torch.autograd.grad(out, inputs, grad)
    names = ("input gradient", "weight gradient", "bias gradient")
    return {"output": out.detach(), **dict(zip(names, gradients, strict=True))}


def _distance(found: Tensor, exact: Tensor, scale: Tensor) -> float:
    """Largest difference over the largest of `scale`; NaN if shapes differ or a value is not finite."""
    if found.shape != exact.shape or not bool(found.isfinite().all()):
        return math.nan
    if not exact.numel():
        return 0.0
    return float((found.double() - exact).abs().max() / scale.max().clamp_min(torch.finfo(torch.float64).tiny))


def worst(table: pd.DataFrame) -> pd.DataFrame:
    """Of the rows of `errors`, for each data type and direction, the largest error and how far its bound is used."""
    used = table.assign(used=table["error"] / table["bound"]).sort_values("used", na_position="last")
    groups = used.groupby(["dtype", "method", "layout", "direction"], sort=False)
    found = groups.tail(1).sort_values(["dtype", "method", "direction", "layout"], ignore_index=True)
    return found[["dtype", "method", "direction", "layout", "shape", "error", "own_error", "bound", "right", "note"]]
