"""The theoretical field is never smaller than what a unit depends on."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from hypothesis import given, reject, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from analysis.models.layers import LayerError, evaluation_mode
from analysis.models.layouts import FeatureMap, find_feature_map

CHANNELS = 4
Operation = Callable[[Tensor, "Weights"], Any]


class Weights(nn.Module):
    """Positive weights, so that nothing cancels; made where they are first needed, kept for the next run."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, *shape: int) -> Tensor:
        self.calls += 1
        name = f"w{self.calls}_{'x'.join(map(str, shape))}"
        if name not in self._buffers:
            generator = torch.Generator().manual_seed(self.calls)
            self.register_buffer(name, torch.rand(shape, dtype=torch.float64, generator=generator) + 0.1)
        return self.get_buffer(name)


def attention(x: Tensor, w: Weights) -> Any:
    tokens = x.flatten(2).transpose(1, 2)
    q, k, v = (tokens @ w(CHANNELS, CHANNELS) for _ in range(3))
    mixed = (q @ k.transpose(1, 2) / 50).softmax(-1) @ v
    return mixed.transpose(1, 2).reshape(x.shape)


def fused_attention(x: Tensor, w: Weights) -> Any:
    tokens = x.flatten(2).transpose(1, 2).unsqueeze(1)
    cls = w(1, 1, 1, CHANNELS)
    tokens = torch.cat([cls, tokens], 2)
    mixed = tokens + F.scaled_dot_product_attention(tokens / 9, tokens / 9, tokens)
    return mixed[:, 0, 1:].transpose(1, 2).reshape(x.shape)


def window_attention(x: Tensor, w: Weights) -> Any:
    n, c, height, width = x.shape
    if height % 2 or width % 2:
        return x
    windows = x.view(n, c, height // 2, 2, width // 2, 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, 4, c)
    mixed = (windows @ windows.transpose(1, 2) / 50).softmax(-1) @ windows
    back = mixed.view(n, height // 2, width // 2, 2, 2, c).permute(0, 5, 1, 3, 2, 4)
    return back.reshape(n, c, height, width)


def channel_attention(x: Tensor, w: Weights) -> Any:
    pooled = x.mean((2, 3)).unsqueeze(1)
    return x * F.conv1d(pooled, w(1, 1, 3), padding=1).sigmoid().view(1, -1, 1, 1)


def squeeze_and_excitation(x: Tensor, w: Weights) -> Any:
    return x * F.conv2d(F.adaptive_avg_pool2d(x, 1), w(CHANNELS, CHANNELS, 1, 1)).sigmoid()


def strip_gate(x: Tensor, w: Weights) -> Any:
    return x * x.mean(3, keepdim=True).sigmoid()


def pooled_gate(x: Tensor, w: Weights) -> Any:
    return x * F.avg_pool2d(x, x.shape[-1] if x.shape[-1] == x.shape[-2] else 1)[:, :, :1, :1]


def recurrent(x: Tensor, w: Weights) -> Any:
    state = torch.zeros_like(x[..., 0])
    columns = []
    for column in x.unbind(-1):
        state = (state + column).tanh()
        columns.append(state)
    return torch.stack(columns, -1)


def written_view(x: Tensor, w: Weights) -> Any:
    y = x * 1
    y[:, :, 1:] += x[:, :, :-1]
    return y


def written_through_an_alias(x: Tensor, w: Weights) -> Any:
    y = x * 1
    flat = y.flatten(2)
    y.add_(F.conv2d(x, w(CHANNELS, 1, 5, 5), padding=2, groups=CHANNELS))
    return flat.view(x.shape)


def filled(x: Tensor, w: Weights) -> Any:
    out = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    out[:, :, ::2] = x[:, :, ::2]
    out[:, :, 1::2] = x.flip(2)[:, :, 1::2]
    return out


def spectrum(x: Tensor, w: Weights) -> Any:
    return torch.fft.irfft2(torch.fft.rfft2(x) * w(x.shape[2], x.shape[3] // 2 + 1), s=x.shape[2:])


def unfolded(x: Tensor, w: Weights) -> Any:
    columns = F.unfold(x, 3, padding=1)
    return F.fold(columns, x.shape[2:], 3, padding=1)


def depthwise_by_unfold(x: Tensor, w: Weights) -> Any:
    padded = F.pad(x, (1, 1, 1, 1))
    return (padded.unfold(2, 3, 1).unfold(3, 3, 1) * w(3, 3)).sum((-1, -2))


def dynamic_convolution(x: Tensor, w: Weights) -> Any:
    kernel = F.adaptive_avg_pool2d(x, 3).mean(0).unsqueeze(1) + w(CHANNELS, 1, 3, 3)
    return F.conv2d(x, kernel, padding=1, groups=CHANNELS)


def token_mixing(x: Tensor, w: Weights) -> Any:
    tokens = x.flatten(2)
    return (tokens @ w(tokens.shape[2], tokens.shape[2])).view(x.shape)


def axial(x: Tensor, w: Weights) -> Any:
    return torch.einsum("nchw,wv->nchv", x, w(x.shape[3], x.shape[3]))


def gathered(x: Tensor, w: Weights) -> Any:
    order = torch.arange(x.shape[3] - 1, -1, -1, device=x.device)
    return x[:, :, :, order]


def space_to_depth(x: Tensor, w: Weights) -> Any:
    if x.shape[2] % 2 or x.shape[3] % 2:
        return x
    parts = [x[:, :, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    return F.conv2d(torch.cat(parts, 1), w(CHANNELS, 4 * CHANNELS, 1, 1))


def channels_last(x: Tensor, w: Weights) -> Any:
    y = F.linear(F.layer_norm(x.permute(0, 2, 3, 1), (CHANNELS,)) + x.permute(0, 2, 3, 1), w(CHANNELS, CHANNELS))
    return y.permute(0, 3, 1, 2)


def foreach(x: Tensor, w: Weights) -> Any:
    out = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    torch._foreach_add_([out], [x.flip(2)])  # returns nothing
    return out


def in_another_thread(x: Tensor, w: Weights) -> Any:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(lambda: x.flip(2) * 2).result()


def other_data(x: Tensor, w: Weights) -> Any:
    y = x * 1
    y.data = x.flip(2) * 2
    return y


def memory_of_another(x: Tensor, w: Weights) -> Any:
    y = x.flip(2) * 2
    if not x.is_meta:  # no gradient goes through the next line
        return y
    return torch.empty(0, dtype=x.dtype, device="meta").set_(y.untyped_storage(), 0, y.shape, y.stride())


def rows_to_depth(x: Tensor, w: Weights) -> Any:
    if x.shape[2] % 4:
        return x
    wide = F.pixel_shuffle(x.transpose(1, 2), 2).transpose(1, 2)
    return F.conv2d(wide, w(CHANNELS, wide.shape[1], 1, 1))


def squeezed_in_place(x: Tensor, w: Weights) -> Any:
    y = (x * 1).unsqueeze(0)
    y.squeeze_(0)
    return y.transpose_(2, 3).transpose_(2, 3)


OPERATIONS: dict[str, Operation] = {
    "foreach": foreach,
    "in another thread": in_another_thread,
    "other data": other_data,
    "memory of another": memory_of_another,
    "squeezed in place": squeezed_in_place,
    "rows to depth": rows_to_depth,
    "one number for both": lambda x, w: F.avg_pool2d(F.max_pool2d(x, [3], [1], [1]), (2,)),
    "channel shuffle": lambda x, w: F.channel_shuffle(x, 2),
    "rows shuffled": lambda x, w: F.channel_shuffle(x.transpose(1, 2), 2).transpose(1, 2) if x.shape[2] % 2 == 0 else x,
    "antialiased corners": lambda x, w: F.interpolate(
        x, size=(5, 3), mode="bilinear", antialias=True, align_corners=True
    ),
    "3x3": lambda x, w: F.conv2d(x, w(CHANNELS, CHANNELS, 3, 3), padding=1),
    "5x3 strided": lambda x, w: F.conv2d(x, w(CHANNELS, CHANNELS, 5, 3), stride=(2, 1), padding=(2, 1)),
    "dilated": lambda x, w: F.conv2d(x, w(CHANNELS, 1, 3, 3), padding=2, dilation=2, groups=CHANNELS),
    "even": lambda x, w: F.conv2d(x, w(CHANNELS, CHANNELS, 2, 2), stride=2),
    "transposed": lambda x, w: F.conv_transpose2d(x, w(CHANNELS, CHANNELS, 3, 3), stride=2, padding=1),
    "transposed 4": lambda x, w: F.conv_transpose2d(x, w(CHANNELS, CHANNELS, 4, 4), stride=2, padding=1),
    "max": lambda x, w: F.max_pool2d(x, 3, 2, 1),
    "average": lambda x, w: F.avg_pool2d(x, 2, ceil_mode=True),
    "adaptive": lambda x, w: F.adaptive_avg_pool2d(x, (3, 5)),
    "nearest": lambda x, w: F.interpolate(x, scale_factor=2),
    "nearest 13": lambda x, w: F.interpolate(x, size=(13, 11)),
    "bilinear": lambda x, w: F.interpolate(x, scale_factor=2, mode="bilinear"),
    "bilinear corners": lambda x, w: F.interpolate(x, size=(13, 7), mode="bilinear", align_corners=True),
    "bilinear smaller": lambda x, w: F.interpolate(x, size=(5, 5), mode="bilinear", antialias=True),
    "bicubic": lambda x, w: F.interpolate(x, scale_factor=1.5, mode="bicubic"),
    "shuffle": lambda x, w: F.pixel_shuffle(F.conv2d(x, w(4 * CHANNELS, CHANNELS, 1, 1)), 2),
    "unshuffle": lambda x, w: F.conv2d(
        F.pixel_unshuffle(x[:, :, : x.shape[2] // 2 * 2, : x.shape[3] // 2 * 2], 2), w(CHANNELS, 4 * CHANNELS, 1, 1)
    ),
    "pad": lambda x, w: F.pad(x, (2, 0, 1, 3)),
    "crop": lambda x, w: x[:, :, 1:, :-1],
    "circular": lambda x, w: F.pad(x, (1, 1, 1, 1), mode="circular"),
    "roll": lambda x, w: x.roll((1, -2), (2, 3)),
    "flip": lambda x, w: x.flip(3),
    "turned": lambda x, w: x.transpose(2, 3),
    "softmax": lambda x, w: x * x.flatten(2).softmax(-1).view(x.shape),
    "norm of positions": lambda x, w: x / torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True),
    "layer norm of positions": lambda x, w: F.layer_norm(x, x.shape[2:]) * x,
    "group norm": lambda x, w: F.group_norm(x, 2) + x,
    "instance norm": lambda x, w: F.instance_norm(x) + x,
    "cumulative": lambda x, w: x.cumsum(2),
    "sorted": lambda x, w: x.sort(3)[0],
    "largest": lambda x, w: x * x.amax((2, 3), keepdim=True),
    "centred": lambda x, w: x - x.mean() + 3,
    "sliced sum": lambda x, w: F.pad(x[:, :, 1:] + 2 * x[:, :, :-1], (0, 0, 1, 0)),
    "corner": lambda x, w: x + x[:, :, :1, :1],
    "column": lambda x, w: x + x[..., -1].unsqueeze(-1),
    "chosen": lambda x, w: torch.where(x.mean(1, keepdim=True) > 0.5, x, 2 * x),
    "activation": lambda x, w: F.hardswish(F.gelu(x) + 1),
    "glu": lambda x, w: F.glu(F.conv2d(x, w(2 * CHANNELS, CHANNELS, 3, 3), padding=1), 1),
    "attention": attention,
    "fused attention": fused_attention,
    "window attention": window_attention,
    "channel attention": channel_attention,
    "squeeze and excitation": squeeze_and_excitation,
    "strip gate": strip_gate,
    "pooled gate": pooled_gate,
    "recurrent": recurrent,
    "written view": written_view,
    "written through an alias": written_through_an_alias,
    "filled": filled,
    "spectrum": spectrum,
    "unfolded": unfolded,
    "depthwise by unfold": depthwise_by_unfold,
    "dynamic convolution": dynamic_convolution,
    "token mixing": token_mixing,
    "axial": axial,
    "gathered": gathered,
    "space to depth": space_to_depth,
    "channels last": channels_last,
}


class Graph(nn.Module):
    """Operations one after the other, each with or without what came in added to it."""

    def __init__(self, steps: list[tuple[str, bool]]) -> None:
        super().__init__()
        self.steps, self.weights = steps, Weights()

    def forward(self, x: Tensor) -> Tensor:
        self.weights.calls = 0
        for name, joined in self.steps:
            y = OPERATIONS[name](x, self.weights)
            x = x + y if joined and y.shape == x.shape else y
        return x


def supports(model: nn.Module, size: tuple[int, int], found: FeatureMap) -> dict[tuple[int, int], Tensor]:
    """Pixels that move some units, by gradients of images of positive values, an independent way."""
    height, width = found.grid
    rows, columns = ({0, cells // 2, cells - 1} for cells in (height, width))
    touched = {(row, column): torch.zeros(size, dtype=torch.bool) for row in rows for column in columns}
    for seed in range(2):
        image = torch.rand(1, CHANNELS, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        with evaluation_mode(model):
            image.requires_grad_(True)
            features = found.of(model, image)
            for (row, column), seen in touched.items():
                (gradient,) = torch.autograd.grad(features[0, :, row, column].sum(), image, retain_graph=True)
                seen |= gradient.abs().amax((0, 1)) > 1e-13
    return touched


def check(steps: list[tuple[str, bool]], size: tuple[int, int] = (12, 12)) -> FeatureMap | None:
    """No unit sees a pixel that its theoretical field does not hold."""
    model = Graph(steps)
    with torch.no_grad():
        model(torch.rand(1, CHANNELS, *size, dtype=torch.float64))
    model.register_buffer("dtype", torch.zeros(1, dtype=torch.float64))
    try:
        found = find_feature_map(model, size, "", in_channels=CHANNELS)
    except LayerError:  # rows and columns are not followed
        return None
    assert found.axes is not None and "without data" not in found.reason
    for unit, seen in supports(model, size, found).items():
        for axis, pixels in enumerate((seen.any(1).nonzero(), seen.any(0).nonzero())):
            field = found.axes[axis]
            if len(pixels) and field.low == field.low:
                shift = unit[axis] * field.stride
                assert field.low + shift - 1e-9 <= pixels.min() and pixels.max() <= field.high + shift + 1e-9, (
                    steps,
                    unit,
                    axis,
                    field,
                    pixels.flatten().tolist(),
                )
    return found


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize("name", OPERATIONS)
def test_no_unit_sees_more_than_one_operation_allows(name: str, joined: bool) -> None:
    check([("3x3", False), (name, joined), ("even", False), ("3x3", True)])


EXACT = {
    "dilated": (7, 7),
    "5x3 strided": (7, 5),
    "even": (4, 4),
    "average": (4, 4),
    "unshuffle": (4, 4),
    "space to depth": (4, 4),
    "channels last": (3, 3),
    "sliced sum": (4, 3),
    "glu": (5, 5),
    "strip gate": (3, float("inf")),
    "attention": (float("inf"), float("inf")),
    "channel attention": (float("inf"), float("inf")),
    "spectrum": (float("inf"), float("inf")),
}


@pytest.mark.parametrize("name", EXACT)
def test_what_is_followed_is_exact(name: str) -> None:
    """By hand: after a 3x3 convolution."""
    found = check([("3x3", False), (name, True)])
    assert found is not None and found.axes is not None
    assert (found.axes[0].size, found.axes[1].size) == EXACT[name]
    assert found.reason == ""


@pytest.mark.parametrize("name", ["gathered", "recurrent", "roll", "unfolded", "dynamic convolution", "filled"])
def test_a_branch_that_is_not_followed_takes_the_extent_and_keeps_the_centre(name: str) -> None:
    found = check([("even", False), (name, True)])
    assert found is not None and found.axes is not None
    assert any(axis.size != axis.size for axis in found.axes)
    assert found.reason.startswith("not traced through ")
    assert [(axis.stride, axis.start) for axis in found.axes] == [(2, 0.5), (2, 0.5)]


@settings(max_examples=80, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.sampled_from(sorted(OPERATIONS)), st.booleans()), min_size=2, max_size=5))
def test_no_unit_sees_more_than_its_field(steps: list[tuple[str, bool]]) -> None:
    try:
        Graph(steps)(torch.rand(1, CHANNELS, 12, 14, dtype=torch.float64))
    except RuntimeError:  # a map that became too small for the next step
        reject()
    check(steps, (12, 14))
